"""Who was forgotten lately, so that what was under way for them at that time is not stored after all, in any process.

    meta    "forgotten " + digest(principal)    1 where the whole person was, 0 where their memories were; Unix seconds

A row stays for KEPT seconds. Work that began longer ago may not be stored either: nobody knows any more.
"""

import struct
import time

from memos_vllm.errors import Forgotten
from memos_vllm.vault import keys
from memos_vllm.vault.env import Txn

KEPT = 3600.0
_PREFIX = b"forgotten "
_ROW = struct.Struct(">?d")


def note(txn: Txn, principal: str, *, whole: bool) -> None:
    """All memories of a principal go in this transaction; whole: everything about them does."""
    sweep(txn)
    known = _row(txn, principal)
    txn.put("meta", _key(principal), _ROW.pack(whole or (known is not None and known[0]), time.time()))


def check(txn: Txn, principal: str, since: float) -> None:
    """Raises Forgotten where work that began at `since` (Unix seconds) may not be stored for a principal any more."""
    row = _row(txn, principal)
    if since <= max(row[1] if row else 0.0, time.time() - KEPT):
        raise Forgotten(f"The memories of {principal!r} were deleted meanwhile; nothing was stored.")


def is_whole(txn: Txn, principal: str, since: float) -> bool:
    """Whether the person was forgotten at `since` (Unix seconds) or later."""
    row = _row(txn, principal)
    return row is not None and row[0] and row[1] >= since


def sweep(txn: Txn) -> None:
    """Remove the rows whose time is over."""
    limit = time.time() - KEPT
    for key in [key for key, stored in txn.scan("meta", _PREFIX) if _ROW.unpack(stored)[1] < limit]:
        txn.delete("meta", key)


def any_over(txn: Txn) -> bool:
    """Whether `sweep` has something to do."""
    limit = time.time() - KEPT
    return any(_ROW.unpack(stored)[1] < limit for _, stored in txn.scan("meta", _PREFIX))


def _row(txn: Txn, principal: str) -> tuple[bool, float] | None:
    stored = txn.get("meta", _key(principal))
    return None if stored is None else _ROW.unpack(stored)


def _key(principal: str) -> bytes:
    return _PREFIX + keys.digest(principal)
