"""MemOperator: words and meaning over the vault's index, in one snapshot of it."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from memos_vllm.cube import MemCube, Scalar, SemanticType, now
from memos_vllm.errors import BadInput, VaultUnavailable
from memos_vllm.retrieval.base import (
    SIGNALS,
    Hit,
    Scored,
    TimeWindow,
    checked_filters,
    is_field,
    matches,
    options_of,
    tagged,
)
from memos_vllm.retrieval.dates import months_in
from memos_vllm.retrieval.embedders import QueryEmbedder
from memos_vllm.retrieval.meaning import Meanings
from memos_vllm.retrieval.ranking import DEFAULT, Ranking
from memos_vllm.retrieval.sentences import sentence_scores
from memos_vllm.retrieval.signals import Asked, signals_of
from memos_vllm.vault import Vault
from memos_vllm.vault.env import Txn
from memos_vllm.vault.index import partition_of
from memos_vllm.vault.lookup import Flags, Integers, Scope
from memos_vllm.vault.postings import TYPES, facet_of, micros
from memos_vllm.vault.tables import cubes_under, load
from memos_vllm.vault.words import names_in, words_of

MAX_CHARS = 8192
"""Characters of a question that are read."""
_INDEXED_FIELDS = frozenset({"owner", "source", "fingerprint", "tags"})


@dataclass(frozen=True)
class _Limits:
    """Which cubes a search is about."""

    principals: tuple[str, ...]
    filters: Mapping[str, Any]
    tags: Sequence[Sequence[str]]
    window: TimeWindow
    types: frozenset[int] | None
    clearance: frozenset[str] | None

    @property
    def owners(self) -> list[str] | None:
        """Whose cubes are asked for; None for everybody's."""
        if "owner" not in self.filters:
            return None
        return [name for name in options_of(self.filters["owner"]) if isinstance(name, str)]


class MemOperator:
    """Finds by words, and by meaning where there is an embedder; see `Operator`.

    Where nothing matches, the most recent memories are the answer, with score 0.
    """

    def __init__(self, vault: Vault, embedder: QueryEmbedder | None = None, ranking: Ranking = DEFAULT) -> None:
        self._vault = vault
        self._embedder = embedder
        self._ranking = ranking
        self._meanings = Meanings()

    def search(
        self,
        principals: str | Sequence[str],
        query: str,
        *,
        top_k: int,
        filters: Mapping[str, Any] | None = None,
        window: TimeWindow | None = None,
        types: Sequence[SemanticType] | None = None,
        tags: Sequence[Sequence[str]] = (),
        neighbours: bool = True,
        using: Collection[str] | None = None,
        clearance: Collection[str] | None = None,
    ) -> list[Hit]:
        """See `Operator.search`."""
        limits = _Limits(
            principals=(principals,) if isinstance(principals, str) else tuple(principals),
            filters=checked_filters(filters or {}),
            tags=tags,
            window=window or TimeWindow(),
            types=frozenset(TYPES[name] for name in types) if types else None,
            clearance=None if clearance is None else frozenset(clearance),
        )
        signals = self._checked(using) - (set() if neighbours else {"neighbours"})
        asked = self._asked(query, signals, limits.principals)
        return self._vault.read(lambda txn: self._hits(txn, limits, asked, top_k))

    def sentence_scores(self, query: str, text: str) -> Scored:
        """See `Operator.sentence_scores`."""
        return sentence_scores(query, text)

    def vectors_of(self, cube_ids: Collection[str]) -> Mapping[str, Any]:
        """Vectors of length 1 by cube id, of the cubes that have one."""
        return self._vault.vectors_of(cube_ids)

    @contextmanager
    def forgetting(self, principal: str) -> Iterator[None]:
        """All cubes of a principal are deleted inside it; after it nothing of their vectors is kept in RAM."""
        numbers = self._vault.read(lambda txn: _partitions_with(txn, principal)) if self._embedder else set()
        yield
        self._meanings.drop(numbers)

    def _checked(self, using: Collection[str] | None) -> frozenset[str]:
        """The signals of a search. Raises BadInput for those that there are not."""
        present = [name for name in SIGNALS if name != "dense" or self._embedder]
        wanted = frozenset(present if using is None else using)
        if not wanted <= set(present):
            names = ", ".join(sorted(wanted - set(present)))[:200]
            raise BadInput(f"This server does not search by {names!r}; it has {', '.join(present)}.")
        return wanted

    def _asked(self, query: str, signals: Collection[str], principals: Sequence[str]) -> Asked:
        hints = "hints" in signals
        meant = self._embedder if "dense" in signals else None
        return Asked(
            words=[*dict.fromkeys(words_of(query[:MAX_CHARS]))] if "lexical" in signals else [],
            vector=meant.embed_query(query) if meant else None,
            embedder=meant.digest if meant else b"",
            names=[*_speakers_in(query[:MAX_CHARS])] if hints else [],
            months=months_in(query[:MAX_CHARS]) if hints else [],
            neighbours="neighbours" in signals,
            hints=hints,
        )

    def _hits(self, txn: Txn, limits: _Limits, asked: Asked, top_k: int) -> list[Hit]:
        scope = Scope(txn, limits.principals, limits.clearance, limits.owners)
        alive = scope.rows["expires"] > time.time_ns() // 1000
        admitted = alive & _admitted(scope, limits)
        if not admitted.any():
            return []
        signals = signals_of(scope, asked, alive, self._ranking, self._meanings)
        reader = _Reader(txn, scope, limits)
        positions = np.flatnonzero(admitted & (signals.score > 0))
        updated = scope.rows["updated"].astype(np.int64)
        best = _in_order(positions, (updated, signals.score), top_k)
        hits = [Hit(cube, float(signals.score[at]), signals.parts(at)) for at, cube in reader.take(best, top_k)]
        if hits:
            return hits
        recent = _in_order(np.flatnonzero(admitted), (updated,), top_k)
        return [Hit(cube, 0.0) for _, cube in reader.take(recent, top_k)]


class _Reader:
    """Loads cubes in the order of a search and keeps those that are asked for."""

    def __init__(self, txn: Txn, scope: Scope, limits: _Limits) -> None:
        self._txn = txn
        self._scope = scope
        self._limits = limits
        self._moment = now()

    def take(self, positions: Iterable[int], count: int) -> Iterator[tuple[int, MemCube]]:
        """The first `count` cubes that are admitted, each once."""
        seen: set[str] = set()
        for position in positions:
            if len(seen) == count:
                return
            cube = self._load(self._scope.id_at(position))
            if cube.id not in seen and self._admits(cube):
                seen.add(cube.id)
                yield position, cube

    def _load(self, cube_id: str) -> MemCube:
        cube = load(self._txn, "cubes", bytes.fromhex(cube_id), MemCube)
        if cube is None:
            raise VaultUnavailable("The search index is damaged; run `memos-vllm vault reindex`.")
        return cube

    def _admits(self, cube: MemCube) -> bool:
        """What the index may not know to the letter; access is looked at twice."""
        limits = self._limits
        readable = not set(limits.principals).isdisjoint(cube.readers())
        cleared = limits.clearance is None or limits.clearance.issuperset(cube.header.sensitivity)
        wanted = matches(cube, limits.filters) and tagged(cube, limits.tags)
        return readable and cleared and wanted and not cube.expired(self._moment)


def _partitions_with(txn: Txn, owner: str) -> set[int]:
    """The partitions that an owner's cubes may be in."""
    readers = {name for cube in cubes_under(txn, "owners", owner) for name in cube.readers()}
    found = (partition_of(txn, name) for name in {owner, *readers})
    return {partition.number for partition in found if partition is not None}


def _admitted(scope: Scope, limits: _Limits) -> Flags:
    """Which cubes pass the filters that the index knows."""
    rows, window = scope.rows, limits.window
    admitted = np.ones(len(scope), dtype=np.bool_)
    if limits.types is not None:
        admitted &= np.isin(rows["type"], [*limits.types])
    if window.start:
        admitted &= rows["happened"] >= micros(window.start)
    if window.end:
        admitted &= rows["happened"] < micros(window.end)
    for tags in limits.tags:
        admitted &= scope.holding(_facets("tags", tags))
    for name, wanted in limits.filters.items():
        if name in _INDEXED_FIELDS or not is_field(name):
            admitted &= scope.holding(_facets(name, options_of(wanted)))
    return admitted


def _facets(name: str, options: Sequence[Any]) -> list[bytes]:
    field = name if is_field(name) else f"\0{name}"
    return [facet_of(field, option) for option in options if isinstance(option, Scalar)]


def _in_order(positions: Integers, keys: Sequence["np.ndarray[Any, Any]"], first: int) -> Iterator[int]:
    """Positions by the last of the keys, ties by the one before, highest first.

    Of many, only the `first` and some more are sorted before they are asked for.
    """
    head = 4 * first + 64
    tail = positions[:0]
    if len(positions) > 4 * head:
        cut = np.argpartition(-keys[-1][positions], head)
        positions, tail = positions[cut[:head]], positions[cut[head:]]
    for part in (positions, tail):
        yield from part[np.lexsort([-key[part] for key in keys])].tolist()


def _speakers_in(query: str) -> Iterator[str]:
    """Words of a question that may name a speaker; "Carols letter" may mean Carol's."""
    for name in dict.fromkeys(names_in(query)):
        yield name
        if name.endswith("s"):
            yield name[:-1]
