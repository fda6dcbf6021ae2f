"""Safetensors files of adapters: their header, whether their numbers can be served, and the form they are stored in.

The library judges whether a file is well formed; what is read here is where each tensor lies. A stored file is written
anew from its tensors alone, so nothing else that came with them goes any further.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from memos_vllm.errors import BadInput

MAX_HEADER = 16 << 20
"""Bytes; a header takes about 150 for each tensor."""
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Of the element types that can be served."""

_CHUNK = 1 << 20
_PICKLES = (b"PK\x03\x04", b"\x80")
"""How files of `torch.save` begin: a zip archive, or a bare pickle."""
_LARGEST: dict[str, tuple[str, int]] = {"F32": ("<u4", 0x477FE000), "F16": ("<u2", 0x7BFF), "BF16": ("<u2", 0x477F)}
"""Integers of each type's size, and the bits of the largest number up to 65504, float16's largest, without its sign.

Magnitudes sort as these integers do, and infinities and NaN lie above all of them.
"""

Unsigned: TypeAlias = "np.memmap[Any, np.dtype[np.unsignedinteger[Any]]]"


class Tensor(msgspec.Struct, frozen=True):
    """A tensor in a file: its bytes are `[start, end)`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Header(msgspec.Struct, frozen=True):
    tensors: tuple[Tensor, ...]
    metadata: dict[str, str]


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_header(path: Path, *, max_bytes: int = MAX_HEADER) -> Header:
    """The tensors of a file in the order of their names, and its metadata. Raises BadInput, OSError."""
    with path.open("rb") as file:
        start = file.read(8)
        size = int.from_bytes(start, "little")
        if len(start) < 8 or size > min(max_bytes, os.fstat(file.fileno()).st_size - 8):
            if start.startswith(_PICKLES):
                raise BadInput("The weights are a pickle, which is never loaded; save them as safetensors.")
            raise BadInput("The weights are no whole safetensors file: its header is cut short or too long.")
        raw = file.read(size)
    try:
        with safe_open(path, framework="numpy"):
            pass
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(fields.pop("__metadata__", b"{}"), type=dict[str, str])
        entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in fields.items()}
    except (SafetensorError, msgspec.MsgspecError, RecursionError) as error:
        raise BadInput(f"The weights are no whole safetensors file: {str(error)[:200]}.") from error
    return Header(tuple(_tensors(entries, 8 + size)), metadata)


def check_values(path: Path, tensors: Sequence[Tensor]) -> None:
    """Raises BadInput where a number is NaN, infinite or too large to be served. Of ITEM_BYTES' types only."""
    for tensor in tensors:
        kind, largest = _LARGEST[tensor.dtype]
        count = (tensor.end - tensor.start) // ITEM_BYTES[tensor.dtype]
        if not count:
            continue
        bits: Unsigned = np.memmap(path, dtype=kind, mode="r", offset=tensor.start, shape=(count,))
        magnitude = int(np.max(bits & np.array((1 << (bits.itemsize * 8 - 1)) - 1, dtype=kind)))
        if magnitude > largest:
            raise BadInput(f"{tensor.name[:100]} holds NaN, infinity or a number above 65504; the training has failed.")


def write(target: Path, source: Path, tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file of these tensors of another one, in this order, synced. Raises OSError."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    place = 0
    for tensor in tensors:
        end = place + tensor.end - tensor.start
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("xb") as file, source.open("rb") as stream:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            _copy_range(stream, file, tensor)
        file.flush()
        os.fsync(file.fileno())


def _tensors(entries: Mapping[str, _Entry], base: int) -> Iterator[Tensor]:
    for name, entry in sorted(entries.items()):
        start, end = entry.data_offsets
        yield Tensor(name, entry.dtype, entry.shape, base + start, base + end)


def _copy_range(stream: BinaryIO, file: BinaryIO, tensor: Tensor) -> None:
    stream.seek(tensor.start)
    left = tensor.end - tensor.start
    while left:
        chunk = stream.read(min(left, _CHUNK))
        if not chunk:
            raise BadInput("The weights were cut short while they were read.")
        file.write(chunk)
        left -= len(chunk)
