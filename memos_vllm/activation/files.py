"""KV files: one safetensors file for each KV cube and tensor-parallel rank, atomic, checksummed, self-describing.

tensors   k, v   [layers, tokens, kv_heads of the rank, head_dim]
metadata  format, key, identity (digest), tokens (sha256 of the ids), origin, rank, world, checksum (xxh3_128)
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from memos_vllm.errors import KVUnusable

FORMAT = "memos-kv-1"
KV_DIR = "kv"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class KVLabel:
    """What a KV file says of itself, and what its reader demands. `origin`: position of the first token at capture."""

    key: str
    identity: str
    tokens: str
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class KVCube:
    """A KV cube's payload on the host; k and v are `[layers, tokens, kv_heads, head_dim]`."""

    k: torch.Tensor
    v: torch.Tensor
    origin: int

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


def kv_path(memory_dir: Path, identity: str, key: str, rank: int = 0, world: int = 1) -> Path:
    return memory_dir / KV_DIR / identity[:16] / key[:2] / f"{key}.{rank}of{world}{SUFFIX}"


def all_written(memory_dir: Path, identity: str, key: str, world: int) -> bool:
    """Whether every rank's file is there; a folder that cannot be read counts as no."""
    return all(os.path.exists(kv_path(memory_dir, identity, key, rank, world)) for rank in range(world))  # noqa: PTH110


def checksum(cube: KVCube) -> str:
    hasher = xxhash.xxh3_128()
    for tensor in (cube.k, cube.v):
        hasher.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_kv(path: Path, label: KVLabel, cube: KVCube) -> None:
    """Write a KV file: temporary file, fsync, rename, fsync of the folder. Raises OSError (a full disk, say)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    metadata = {
        "format": FORMAT,
        "key": label.key,
        "identity": label.identity,
        "tokens": label.tokens,
        "rank": str(label.rank),
        "world": str(label.world),
        "origin": str(cube.origin),
        "checksum": checksum(cube),
    }
    try:
        save_file({"k": cube.k.contiguous(), "v": cube.v.contiguous()}, temporary, metadata)
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_header(path: Path) -> dict[str, str]:
    """A KV file's metadata. Raises KVUnusable when the file is missing, cut short or no KV file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise KVUnusable(f"{path.name} cannot be read: {error}") from error
    if metadata.get("format") != FORMAT:
        raise KVUnusable(f"{path.name} is no {FORMAT} file")
    return metadata


def read_kv(path: Path, label: KVLabel) -> KVCube:
    """The KV cube that `label` demands. Raises KVUnusable when the file is missing, truncated, corrupt or foreign."""
    metadata = read_header(path)
    for field in ("key", "identity", "tokens", "rank", "world"):
        if metadata.get(field) != str(getattr(label, field)):
            raise KVUnusable(f"{path.name} is of another {field}")
    try:
        with safe_open(path, framework="pt") as file:
            cube = KVCube(file.get_tensor("k"), file.get_tensor("v"), int(metadata["origin"]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise KVUnusable(f"{path.name} cannot be read: {error}") from error
    if checksum(cube) != metadata.get("checksum"):
        raise KVUnusable(f"{path.name} is corrupt: its checksum does not match")
    return cube


def sweep_temporaries(memory_dir: Path) -> int:
    """Remove what a killed writer left behind; returns how many files."""
    leftovers = list((memory_dir / KV_DIR).glob("*/*/.*.tmp"))
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)
