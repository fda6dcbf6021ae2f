"""What searches, lists from the newest on, and the embedding worker ask of a vault."""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import numpy as np

from memos_vllm.cube import MemCube
from memos_vllm.vault import index, keys, tables, vectors
from memos_vllm.vault.base import Opened
from memos_vllm.vault.env import Txn
from memos_vllm.vault.vectors import Vector

Result = TypeVar("Result")
Cubes = list[MemCube]
Vectors: TypeAlias = dict[str, np.ndarray[Any, np.dtype[np.float16]]]


class Searchable(Opened):
    """The part of a Vault that reads the search index and fills in its vectors."""

    def read(self, work: Callable[[Txn], Result]) -> Result:
        """`work` on one snapshot of the vault; it may run again, and keeps nothing of the transaction."""
        return self._env.read(work)

    @property
    def is_ready(self) -> bool:
        """Whether a read would begin at once now, as it nearly always does: else it waits for others to end."""
        return self._env.is_ready

    def is_bare(self, principals: Iterable[str]) -> bool:
        """Whether no search can find any of these anything."""
        names = [*principals]
        return self._env.read(lambda txn: not any(index.finds(txn, name) for name in names))

    def reindex(self) -> int:
        """Make the search index anew from the cubes, in one transaction; returns how many are in it."""
        return self._writable().write(index.rebuild)

    def latest(self, owner: str, *, skip: int = 0, limit: int, before: str = "") -> Cubes:
        """Newest versions of an owner's cubes, newest cube first; what is skipped is not read.

        before: the last id of the page before.
        """
        prefix = keys.digest(owner)
        end = keys.of_principal(owner, before) if before else prefix + b"\xff" * (keys.ID_BYTES + 1)

        def work(txn: Txn) -> Cubes:
            rows = islice(txn.scan_back("owners", prefix, end), skip, skip + limit)
            return [tables.cube_named(txn, key, value) for key, value in rows]

        return self._env.read(work)

    def adopt_embedder(self, name: str) -> None:
        """Vectors are this embedder's from now on; those of another one are removed and made anew."""
        self._writable().write(lambda txn: vectors.adopt(txn, name))

    def is_embedder(self, name: str) -> bool:
        """Whether vectors are this embedder's: another server on the same vault may have adopted its own."""
        return self._env.read(lambda txn: vectors.is_adopted(txn, name))

    def awaiting_vectors(self, *, after: str = "", limit: int) -> Cubes:
        """Cubes whose text has no vector yet, by id; `after` is the last id of the page before."""
        return self._env.read(lambda txn: vectors.awaiting(txn, after=after, limit=limit))

    def put_vectors(self, embedder: str, computed: Mapping[str, Vector]) -> int:
        """Store vectors by cube id where the text is still the present one; returns how many were."""
        return self._writable().write(lambda txn: vectors.store(txn, embedder, computed))

    def vectors_of(self, cube_ids: Iterable[str]) -> Vectors:
        """Vectors by cube id, of length 1, of the cubes that have one."""
        ids = [*cube_ids]
        return self._env.read(lambda txn: vectors.of_cubes(txn, ids))

    def vector_counts(self) -> tuple[int, int]:
        """Cubes with a vector, and those that await one."""
        return self._env.read(lambda txn: (txn.count("vectors"), txn.count("unembedded")))
