"""Cosines of a question with the vectors of a Scope. Those of large partitions are kept in RAM between searches."""

import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from memos_vllm.vault.lookup import Floats, Integers, Rows, Scope

LARGE = 2048
"""Cubes from which on a partition's vectors are kept; those of smaller ones are read anew in a millisecond or two."""
MAX_BYTES = 256 << 20

_Stamps: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]


class _Matrix(NamedTuple):
    """Vectors of a partition, some of cubes that are gone. stamps: what each was read for; rows may have spare ones."""

    stamps: _Stamps
    rows: Floats

    @property
    def held(self) -> Floats:
        return self.rows[: len(self.stamps)]

    def find(self, stamps: _Stamps) -> Integers:
        """Row of each stamp, -1 where there is none."""
        if not len(self.stamps):
            return np.full(len(stamps), -1, dtype=np.intp)
        if np.array_equal(stamps, self.stamps):
            return np.arange(len(stamps))
        order = np.argsort(self.stamps)
        rows = order.take(np.searchsorted(self.stamps, stamps, sorter=order), mode="clip")
        return np.where(self.stamps[rows] == stamps, rows, -1)

    def extended(self, stamps: _Stamps, vectors: Floats) -> "_Matrix":
        """With more vectors, put into spare rows where there are enough; who holds the old one does not see them."""
        used, needed = len(self.stamps), len(self.stamps) + len(stamps)
        rows = self.rows
        if needed > len(rows):
            rows = np.empty((needed + needed // 8, vectors.shape[1]), dtype=np.float32)
            rows[:used] = self.held
        rows[used:needed] = vectors
        return _Matrix(np.concatenate([self.stamps, stamps]), rows)

    def only(self, rows: Integers) -> "_Matrix":
        return _Matrix(self.stamps[rows], self.held[rows])


class Meanings:
    """Least recently used partitions go first when `max_bytes` are in use."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[int, bytes], _Matrix] = OrderedDict()
        self._lock = threading.Lock()

    def cosines(self, scope: Scope, embedder: bytes, query: Floats) -> tuple[Integers, Floats]:
        """Positions of the cubes that have a vector of this embedder, and its product with the question's."""
        positions, products = [np.empty(0, dtype=np.intp)], [np.empty(0, dtype=np.float32)]
        for part in scope.parts:
            if len(part.rows) < LARGE:
                found, vectors = _read(scope, part.rows, embedder, len(query))
                product = vectors @ query
            else:
                found, product = self._kept_product(scope, part.number, part.rows, embedder, query)
            positions.append(found + part.start)
            products.append(product)
        return np.concatenate(positions), np.concatenate(products)

    def drop(self, numbers: Collection[int]) -> None:
        """Let go of the vectors of some partitions."""
        with self._lock:
            for key in [key for key in self._kept if key[0] in numbers]:
                del self._kept[key]

    def _kept_product(
        self, scope: Scope, number: int, rows: Rows, embedder: bytes, query: Floats
    ) -> tuple[Integers, Floats]:
        key, stamps = (number, embedder), _stamps(rows)
        with self._lock:
            matrix = self._kept.pop(key, None) or _empty(len(query))
            places = matrix.find(stamps)
            if len(matrix.stamps) > 2 * len(rows):
                matrix = matrix.only(places[places >= 0])
                places = matrix.find(stamps)
            missing = np.flatnonzero(places < 0)
            found, vectors = _read(scope, rows[missing], embedder, len(query))
            if len(found):
                places[missing[found]] = len(matrix.stamps) + np.arange(len(found))
                matrix = matrix.extended(stamps[missing[found]], vectors)
            self._keep(key, matrix)
        present = np.flatnonzero(places >= 0)
        return present, (matrix.held @ query)[places[present]]

    def _keep(self, key: tuple[int, bytes], matrix: _Matrix) -> None:
        self._kept[key] = matrix
        while len(self._kept) > 1 and sum(kept.rows.nbytes for kept in self._kept.values()) > self._max_bytes:
            self._kept.popitem(last=False)


def _empty(dimensions: int) -> _Matrix:
    return _Matrix(np.empty(0, dtype=np.uint64), np.empty((0, dimensions), dtype=np.float32))


def _stamps(rows: Rows) -> _Stamps:
    """What changes with a cube's text: the random half of its id, mixed with the time of its last change."""
    random = np.frombuffer(rows["id"].tobytes(), dtype=np.uint64).reshape(-1, 2)[:, 1]
    changed = rows["updated"].astype(np.uint64) ^ rows["words"].astype(np.uint64)
    stamps: _Stamps = random ^ (changed * np.uint64(0x9E3779B97F4A7C15))
    return stamps


def _read(scope: Scope, rows: Rows, embedder: bytes, dimensions: int) -> tuple[Integers, Floats]:
    """Which of the rows have a vector of this embedder, and the vectors, float32 `[n, dimensions]`."""
    size = len(embedder) + 2 * dimensions
    ids = rows["id"].tobytes()
    keys = [ids[at : at + 16] for at in range(0, len(ids), 16)]
    held = {key: row for key, row in scope.vector_rows(keys) if len(row) == size and row.startswith(embedder)}
    found = [at for at, key in enumerate(keys) if key in held]
    joined = np.frombuffer(b"".join(held[keys[at]] for at in found), dtype=np.uint8).reshape(-1, size)
    halves = np.ascontiguousarray(joined[:, len(embedder) :]).view("<f2")
    return np.asarray(found, dtype=np.intp), halves.astype(np.float32)
