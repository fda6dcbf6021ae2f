"""KV files: one safetensors file for each KV cube and tensor-parallel rank, atomic, checksummed, self-describing.

tensors   k, v   [layers, tokens, kv_heads of the rank, head_dim], exact or in 8 bit
          k_scale [layers, 1, kv_heads, head_dim], v_scale [layers, tokens, kv_heads, 1]   fp32, with 8 bit only
metadata  format, key, identity (digest), tokens (sha256 of the ids), rank, world, origin, store (auto, int8, fp8),
          dtype and shape of the cube's k, checksum (xxh3_128 of the other metadata and of the tensors' bytes)

A file is read into memory of its reader's own, not mapped: a page fault must not make an engine step wait for a disk,
and a file that another process cuts short must not end this one (SIGBUS).
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash

from memos_vllm.activation.payload import KVCube, Layout, PackedCube, Payload, file_layout, tensor_nbytes
from memos_vllm.activation.quantize import StoreDtype
from memos_vllm.errors import KVUnusable

FORMAT = "memos-kv-2"
KV_DIR = "kv"
SUFFIX = ".safetensors"
DEVIATION_SUFFIX = ".deviation"
MAX_HEADER = 1 << 16
"""Bytes; ours have under 1,200."""
MAX_ORIGIN = 1 << 31
CHUNK = 1 << 20
"""Bytes that are read, then hashed while a core's cache has them."""
HUGE_BYTES = 4 << 20
"""From this size on memory is asked for in huge pages."""
TEMPORARY_SECONDS = 3600.0
"""Age at which a deviation counts as left behind, and, on file systems without locks, an unfinished file."""

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "float8_e4m3fn": "F8_E4M3"}
"""Names in torch, and in safetensors."""

Allocate = Callable[[int], torch.Tensor]
"""Number of bytes → 1-D uint8 tensor in host memory."""


@dataclass(frozen=True)
class KVLabel:
    """What a KV file says of itself, and what its reader demands."""

    key: str
    identity: str
    tokens: str
    rank: int = 0
    world: int = 1
    store: StoreDtype = "auto"
    """A reader of 8-bit K/V takes exact files too and converts them; every other difference is refused."""


def kv_path(memory_dir: Path, identity: str, key: str, rank: int = 0, world: int = 1) -> Path:
    return memory_dir / KV_DIR / identity[:16] / key[:2] / f"{key}.{rank}of{world}{SUFFIX}"


def all_written(memory_dir: Path, identity: str, key: str, world: int) -> bool:
    """Whether every rank's file is there; a folder that cannot be read counts as no."""
    return all(os.path.exists(kv_path(memory_dir, identity, key, rank, world)) for rank in range(world))  # noqa: PTH110


def host_bytes(nbytes: int) -> torch.Tensor:
    """Memory to read into; in huge pages if it is large, for the faults of small ones take longer than the read."""
    if nbytes < HUGE_BYTES:
        return torch.empty(nbytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _hasher(metadata: Mapping[str, str]) -> xxhash.xxh3_128:
    """Hashes all metadata but the checksum; a changed origin is as wrong as a changed key."""
    said = {name: text for name, text in metadata.items() if name != "checksum"}
    return xxhash.xxh3_128(json.dumps(said, sort_keys=True).encode())


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _entries(layout: Layout) -> dict[str, Any]:
    """The layout as a safetensors header has it."""
    entries, place = {}, 0
    for name, (dtype, shape) in layout.items():
        end = place + tensor_nbytes(dtype, shape)
        entries[name] = {"dtype": DTYPES[_name(dtype)], "shape": list(shape), "data_offsets": [place, end]}
        place = end
    return entries


def _metadata(label: KVLabel, payload: Payload) -> dict[str, str]:
    return {
        "format": FORMAT,
        "key": label.key,
        "identity": label.identity,
        "tokens": label.tokens,
        "rank": str(label.rank),
        "world": str(label.world),
        "origin": str(payload.origin),
        "store": payload.store,
        "dtype": _name(payload.dtype),
        "shape": ",".join(map(str, payload.k.shape)),
    }


def _header(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    text = json.dumps({"__metadata__": metadata} | _entries(layout)).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def _unfinished(path: Path) -> BinaryIO:
    """A new file beside `path`, locked for as long as its writer lives, where the file system has locks."""
    while True:
        file = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp").open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.fstat(file.fileno()).st_nlink == 0
        except OSError as error:
            taken = isinstance(error, BlockingIOError)
        if not taken:
            return file
        file.close()  # a sweeper came before the lock and takes the file for a dead writer's


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that becomes `path` at the end, at once and durably; after an error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _unfinished(path) as file:
        temporary = Path(file.name)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_kv(path: Path, label: KVLabel, payload: Payload) -> None:
    """Write a KV file: temporary file, fsync, rename, fsync of the folder. Raises OSError (a full disk, say).

    The file says `payload.store`, whatever `label.store` is.
    """
    parts = [_bytes_of(tensor) for tensor in payload.tensors().values()]
    metadata = _metadata(label, payload)
    hasher = _hasher(metadata)
    for part in parts:
        hasher.update(part)
    layout = file_layout(payload.k.shape, payload.dtype, payload.store)
    with _replacing(path) as file:
        file.write(_header(layout, metadata | {"checksum": hasher.hexdigest()}))
        for part in parts:
            file.write(part)


def _open(path: Path) -> FileIO:
    try:
        return FileIO(path)
    except OSError as error:
        raise KVUnusable(f"{path.name} cannot be read: {error.strerror}") from error


def _parse(file: FileIO, path: Path) -> tuple[dict[str, str], dict[str, Any], int]:
    """Metadata and tensor entries of the header, and the bytes behind it. Raises KVUnusable."""
    try:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            raise KVUnusable(f"{path.name} is no {FORMAT} file")
        entries = json.loads(file.read(size))
        metadata = entries.pop("__metadata__")
        left = os.fstat(file.fileno()).st_size - 8 - size
        if all(isinstance(text, str) for text in metadata.values()) and metadata["format"] == FORMAT:
            return metadata, entries, left
    except OSError as error:
        raise KVUnusable(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KVUnusable(f"{path.name} is cut short or no {FORMAT} file") from error
    raise KVUnusable(f"{path.name} is no {FORMAT} file")


def read_header(path: Path) -> dict[str, str]:
    """A KV file's metadata, unchecked. Raises KVUnusable when the file is missing, cut short or no KV file."""
    with _open(path) as file:
        return _parse(file, path)[0]


def _check_label(metadata: Mapping[str, str], label: KVLabel, path: Path) -> None:
    for field in ("key", "identity", "tokens", "rank", "world"):
        if metadata.get(field) != str(getattr(label, field)):
            raise KVUnusable(f"{path.name} is of another {field}")
    if metadata.get("store") not in ("auto", label.store):
        raise KVUnusable(f"{path.name} is of another store: {metadata.get('store')}, wanted {label.store}")


def _check_layout(
    metadata: Mapping[str, str], entries: Any, left: int, shape: Sequence[int] | None, path: Path
) -> Layout:
    """The tensors that the metadata announce, if they are what the header lists and the file has the bytes."""
    said = metadata.get("shape", "")
    if shape is not None and said != ",".join(map(str, shape)):
        raise KVUnusable(f"{path.name} has shape {said}, not {','.join(map(str, shape))}")
    dtype = getattr(torch, metadata.get("dtype", "")) if metadata.get("dtype") in DTYPES else None
    store = metadata["store"]
    try:
        sizes = tuple(int(size) for size in said.split(","))
        layout = file_layout(sizes, dtype, "auto" if store == "auto" else store)  # type: ignore[arg-type]
        fits = len(sizes) == 4 and min(sizes) > 0 and entries == _entries(layout)
    except (ValueError, KeyError, AttributeError) as error:
        raise KVUnusable(f"{path.name} has a nonsensical header") from error
    if not fits:
        raise KVUnusable(f"{path.name} has a nonsensical header")
    if left != sum(tensor_nbytes(*entry) for entry in layout.values()):
        raise KVUnusable(f"{path.name} is cut short or too long")
    return layout


def _read_data(file: FileIO, data: torch.Tensor, hasher: xxhash.xxh3_128, path: Path) -> None:
    """Fill `data` and hash it, in one pass."""
    view = data.numpy().data
    place = 0
    while place < len(view):
        part = view[place : place + CHUNK]
        read = file.readinto(part)
        if not read:
            raise KVUnusable(f"{path.name} is cut short")
        hasher.update(part[:read])
        place += read


def _split(data: torch.Tensor, layout: Layout) -> dict[str, torch.Tensor]:
    tensors, place = {}, 0
    for name, (dtype, shape) in layout.items():
        end = place + tensor_nbytes(dtype, shape)
        tensors[name] = data[place:end].view(dtype).view(shape)
        place = end
    return tensors


def read_payload(
    path: Path, label: KVLabel, shape: Sequence[int] | None = None, allocate: Allocate = host_bytes
) -> Payload:
    """The KV cube that `label`, and `shape` of its k if given, demand, as it is stored.

    Raises KVUnusable when the file is truncated, corrupt or foreign; with an OSError as its cause when the file is
    missing or cannot be read.
    """
    with _open(path) as file:
        metadata, entries, left = _parse(file, path)
        _check_label(metadata, label, path)
        layout = _check_layout(metadata, entries, left, shape, path)
        data = allocate(left)
        hasher = _hasher(metadata)
        try:
            _read_data(file, data, hasher, path)
        except OSError as error:
            raise KVUnusable(f"{path.name} cannot be read: {error.strerror}") from error
    if hasher.hexdigest() != metadata.get("checksum"):
        raise KVUnusable(f"{path.name} is corrupt: its checksum does not match")
    origin = metadata.get("origin", "")
    if not (origin.isascii() and origin.isdigit() and int(origin) < MAX_ORIGIN):
        raise KVUnusable(f"{path.name} has a nonsensical origin")
    tensors = _split(data, layout)
    if metadata["store"] == "auto":
        return KVCube(**tensors, origin=int(origin))
    return PackedCube(**tensors, origin=int(origin), dtype=getattr(torch, metadata["dtype"]), store=label.store)


def read_kv(path: Path, label: KVLabel, shape: Sequence[int] | None = None, allocate: Allocate = host_bytes) -> KVCube:
    """`read_payload`, unpacked."""
    return read_payload(path, label, shape, allocate).unpack()


def deviation_path(memory_dir: Path, identity: str, key: str, world: int = 1) -> Path:
    """Where a worker leaves the deviations of a cube's tokens (one byte each), for the API server to take."""
    return kv_path(memory_dir, identity, key, 0, world).with_suffix(DEVIATION_SUFFIX)


def write_deviation(path: Path, packed: bytes) -> None:
    """Write the file at once or not at all. Raises OSError."""
    with _replacing(path) as file:
        file.write(packed)


def _sweep(temporary: Path) -> bool:
    """Remove an unfinished file unless its writer lives; whether it did. Raises OSError when it is gone already."""
    with temporary.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no locks on this file system
            if time.time() - os.fstat(file.fileno()).st_mtime < TEMPORARY_SECONDS:
                return False
        temporary.unlink()
        return True


def _sweep_old(path: Path) -> bool:
    """Remove a deviation that no API server took; whether it was old enough. Raises OSError when it is gone already."""
    if time.time() - path.stat().st_mtime < TEMPORARY_SECONDS:
        return False
    path.unlink()
    return True


def sweep_temporaries(memory_dir: Path) -> int:
    """Remove what killed writers and readers left behind; returns how many files. Those of living writers stay."""
    swept = 0
    for sweep, pattern in ((_sweep, ".*.tmp"), (_sweep_old, f"*{DEVIATION_SUFFIX}")):
        for path in (memory_dir / KV_DIR).glob(f"*/*/{pattern}"):
            with suppress(OSError):
                swept += sweep(path)
    return swept
