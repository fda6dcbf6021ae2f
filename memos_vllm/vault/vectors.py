"""Vectors of cubes in the vault: which embedder made them, which cubes await theirs.

The rows are written by `index` with the cubes: a vector in the vault is always that of the present text. What is
computed in the background is stored only where the text it was computed from is still the present one.
"""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import msgspec
import numpy as np

from memos_vllm.cube import MemCube
from memos_vllm.vault import keys
from memos_vllm.vault.env import Txn
from memos_vllm.vault.index import EMBEDDER
from memos_vllm.vault.postings import DIGEST_BYTES, ID
from memos_vllm.vault.tables import load
from memos_vllm.vault.words import spoken_text


class Vector(msgspec.Struct, frozen=True):
    """halves: little-endian float16; text: what they were computed from."""

    text: str
    halves: bytes


def embedder_digest(name: str) -> bytes:
    """What stands for an embedder in its vectors."""
    return hashlib.blake2b(name.encode(), digest_size=DIGEST_BYTES).digest()


def adopt(txn: Txn, name: str) -> None:
    """Have every cube in the index await a vector of this embedder, unless that is the case already."""
    if is_adopted(txn, name):
        return
    txn.put("meta", EMBEDDER, embedder_digest(name))
    txn.clear("vectors")
    txn.clear("unembedded")
    for key in sorted({row[ID] for _, row in txn.scan("entries")}):
        txn.put("unembedded", key)


def is_adopted(txn: Txn, name: str) -> bool:
    """Whether vectors are this embedder's."""
    return txn.get("meta", EMBEDDER) == embedder_digest(name)


def awaiting(txn: Txn, *, after: str, limit: int) -> list[MemCube]:
    """Cubes that await a vector, by id."""
    rows = txn.scan("unembedded", after=keys.cube_key(after) if after else b"")
    cubes = (load(txn, "cubes", key, MemCube) for key, _ in islice(rows, limit))
    return [cube for cube in cubes if cube is not None]


def store(txn: Txn, name: str, vectors: Mapping[str, Vector]) -> int:
    """Store vectors by cube id, and return how many were still wanted."""
    digest = embedder_digest(name)
    if txn.get("meta", EMBEDDER) != digest:
        return 0
    stored = 0
    for cube_id, vector in vectors.items():
        key = keys.cube_key(cube_id)
        cube = load(txn, "cubes", key, MemCube)
        if cube is not None and spoken_text(cube) == vector.text and txn.delete("unembedded", key):
            txn.put("vectors", key, digest + vector.halves)
            stored += 1
    return stored


def of_cubes(txn: Txn, cube_ids: Iterable[str]) -> dict[str, "np.ndarray[Any, np.dtype[np.float16]]"]:
    """Vectors of the present embedder by cube id, of the cubes that have one."""
    rows = txn.get_many("vectors", [keys.cube_key(cube_id) for cube_id in cube_ids])
    return {key.hex(): np.frombuffer(row, dtype="<f2", offset=DIGEST_BYTES) for key, row in rows}
