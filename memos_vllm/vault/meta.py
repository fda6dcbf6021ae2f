"""What an LMDB data file says of itself, read without LMDB, which would map pages that are not there.

LMDB 0.9, 64 bits, little-endian: the first two pages are meta pages, and the one of the newer transaction holds. Each
has a head of 16 bytes, magic and version (4 each), address and map size (8 each), two databases of 48 bytes (the first
begins with the page size), last page and transaction number (8 each).
"""

import struct
from pathlib import Path

_META = struct.Struct("<16xII8x8xI44x48xQQ")
_MAGIC = 0xBEEFC0DE


def pages_bytes(data_file: Path) -> int:
    """Where the last page ends that the file says it has; 0 where it is none of LMDB's."""
    with data_file.open("rb") as file:
        first = _read(file.read(_META.size))
        if first is None:
            return 0
        file.seek(first[0])
        second = _read(file.read(_META.size)) or first
    page_size, last_page, _ = max(first, second, key=lambda meta: meta[2])
    return (last_page + 1) * page_size


def _read(head: bytes) -> tuple[int, int, int] | None:
    """Page size, last page and transaction number."""
    if len(head) < _META.size:
        return None
    magic, _, page_size, last_page, transaction = _META.unpack(head)
    return (page_size, last_page, transaction) if magic == _MAGIC else None
