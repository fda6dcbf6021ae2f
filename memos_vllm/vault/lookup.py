"""What a search reads of the index, in one transaction: the cubes of some principals and their signals, as arrays.

A Scope numbers the cubes of its partitions from 0; `positions` are such numbers. Turns of one conversation follow each
other by id.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from memos_vllm.vault.env import Txn
from memos_vllm.vault.index import partition_of
from memos_vllm.vault.postings import DELICATE, DIGEST_BYTES, ENTRY, NUMBER, POSTING, Partition, facet_of

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Integers: TypeAlias = np.ndarray[Any, np.dtype[np.intp]]
Flags: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
Clearance: TypeAlias = Collection[str] | None
Owners: TypeAlias = Collection[str] | None
Rows: TypeAlias = np.ndarray[Any, np.dtype[np.void]]

_ENTRIES = np.dtype(
    [
        *(("partition", ">u4"), ("conversation", ">u8"), ("id", "V16"), ("ordinal", ">u4"), ("words", ">u4")),
        *(("type", ">u2"), ("asks", ">u2"), ("happened", ">i8"), ("updated", ">i8"), ("expires", ">i8")),
    ]
)
_POSTINGS = np.dtype([("term", f"V{NUMBER.size + DIGEST_BYTES}"), ("ordinal", ">u4"), ("count", ">u2")])
_SPARSE = 16
"""Ordinals per cube above which a table over all of them would waste time."""


class Postings(NamedTuple):
    """The cubes that hold a term, and how often."""

    positions: Integers
    counts: Floats


class Part:
    """One partition, or what of it a clearance covers and some owners have, at the positions from `start` on."""

    def __init__(
        self, txn: Txn, partition: Partition, start: int, clearance: Clearance = None, owners: Owners = None
    ) -> None:
        self.number = partition.number
        self.start = start
        self._key = NUMBER.pack(partition.number)
        self.rows: Rows = np.frombuffer(txn.dups("entries", self._key, ENTRY.size), dtype=_ENTRIES)
        self._number_rows()
        if clearance is not None:
            self._keep(self._covered(txn, clearance))
        if owners is not None:
            self._keep(self._owned(txn, owners))

    def _keep(self, rows: Flags) -> None:
        if not rows.all():
            self.rows = self.rows[rows]
            self._number_rows()

    def _owned(self, txn: Txn, owners: Iterable[str]) -> Flags:
        owned = np.zeros(len(self.rows), dtype=np.bool_)
        for owner in owners:
            owned[self.postings(txn, facet_of("owner", owner)).positions - self.start] = True
        return owned

    def _number_rows(self) -> None:
        self._ordinals = self.rows["ordinal"].astype(np.intp)
        self._places = self._table()

    def _covered(self, txn: Txn, clearance: Collection[str]) -> Flags:
        """The cubes all of whose sensitivity tags are in the clearance."""
        uncovered = np.zeros(len(self.rows), dtype=np.int64)
        for term, sign in ((DELICATE, 1), *((facet_of("sensitivity", tag), -1) for tag in clearance)):
            found = self.postings(txn, term)
            uncovered[found.positions - self.start] += sign * found.counts.astype(np.int64)
        covered: Flags = uncovered == 0
        return covered

    def _table(self) -> Integers | None:
        """Position of each ordinal, -1 where there is none; None where ordinals are sparse."""
        top = int(self._ordinals.max(initial=-1)) + 1
        if top > _SPARSE * len(self.rows):
            return None
        places = np.full(top, -1, dtype=np.intp)
        places[self._ordinals] = np.arange(len(self.rows))
        return places

    def postings(self, txn: Txn, term: bytes) -> Postings:
        found = np.frombuffer(txn.dups("terms", self._key + term, POSTING.size), dtype=_POSTINGS)
        places = self._placed(found["ordinal"].astype(np.intp))
        known = places >= 0
        return Postings(places[known] + self.start, found["count"][known].astype(np.float32))

    def _placed(self, ordinals: Integers) -> Integers:
        if not len(self.rows):
            return np.full(len(ordinals), -1, dtype=np.intp)
        if self._places is not None:
            return np.where(ordinals < len(self._places), self._places.take(ordinals, mode="clip"), -1)
        order = np.argsort(self._ordinals)
        places = order.take(np.searchsorted(self._ordinals, ordinals, sorter=order), mode="clip")
        return np.where(self._ordinals[places] == ordinals, places, -1)


class Scope:
    """The cubes that some principals may read; a cube that several may is in it several times.

    clearance: without those that have another sensitivity tag, as if they were not there; None for all.
    owners: only theirs, as if there were no others: what people share with each other slows down no prompt.
    """

    def __init__(self, txn: Txn, principals: Iterable[str], clearance: Clearance = None, owners: Owners = None) -> None:
        self._txn = txn
        self.parts: list[Part] = []
        start = 0
        for partition in filter(None, (partition_of(txn, name) for name in dict.fromkeys(principals))):
            part = Part(txn, partition, start, clearance, owners)
            self.parts.append(part)
            start += len(part.rows)
        self.rows: Rows = _joined([part.rows for part in self.parts])

    def __len__(self) -> int:
        return len(self.rows)

    def id_at(self, position: int) -> str:
        """The cube's id."""
        return bytes(self.rows["id"][position]).hex()

    def postings(self, term: bytes) -> Postings:
        """The cubes that hold a term of `postings.term_of` or `facet_of`."""
        found = [part.postings(self._txn, term) for part in self.parts]
        if len(found) == 1:
            return found[0]
        none = Postings(np.empty(0, np.intp), np.empty(0, np.float32))
        return Postings(*map(np.concatenate, zip(*(found or [none]), strict=True)))

    def holding(self, terms: Iterable[bytes]) -> Flags:
        """Which cubes hold any of these terms."""
        found = np.zeros(len(self), dtype=np.bool_)
        for term in terms:
            found[self.postings(term).positions] = True
        return found

    def vector_rows(self, ids: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Rows of `vectors`, of the cubes that have one."""
        return self._txn.get_many("vectors", ids)

    def same_conversation(self, distance: int) -> Flags:
        """Whether the cube `distance` places after each is a turn of its conversation;
        `[max(len(self) - distance, 0)]`.
        """
        rows, later = self.rows[: max(len(self) - distance, 0)], self.rows[distance:]
        same = (rows["conversation"] == later["conversation"]) & (rows["partition"] == later["partition"])
        turns: Flags = same & (rows["conversation"] != 0)
        return turns


def _joined(rows: Sequence[Rows]) -> Rows:
    return rows[0] if len(rows) == 1 else np.concatenate([np.empty(0, dtype=_ENTRIES), *rows])
