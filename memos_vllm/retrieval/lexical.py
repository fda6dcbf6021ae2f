"""BM25 over stemmed words (bm25s, method `lucene`), one index a principal."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import bm25s
import numpy as np

from memos_vllm.cube import MemCube, now
from memos_vllm.retrieval.base import Hit, Scored, matches, text_of
from memos_vllm.retrieval.sentences import sentence_scores
from memos_vllm.retrieval.words import words_of
from memos_vllm.vault import Vault

MAX_INDEXES = 256


@dataclass(frozen=True)
class _Index:
    """cubes in id order, words of each; bm25 is None where no cube has a word."""

    revision: int
    cubes: list[MemCube]
    words: dict[tuple[str, int], list[str]]
    bm25: bm25s.BM25 | None

    def scores(self, query: list[str]) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """float32 [len(cubes)], 0 where no word of the query occurs."""
        known = [word for word in query if self.bm25 and word in self.bm25.vocab_dict]
        if not known or self.bm25 is None:
            return np.zeros(len(self.cubes), dtype=np.float32)
        return np.asarray(self.bm25.get_scores(known), dtype=np.float32)


class LexicalOperator:
    """Finds by words. Where none matches, the most recent memories are the answer, with score 0."""

    def __init__(self, vault: Vault, *, max_indexes: int = MAX_INDEXES) -> None:
        self._vault = vault
        self._max_indexes = max_indexes
        self._indexes: OrderedDict[str, _Index] = OrderedDict()
        self._lock = threading.Lock()

    def search(self, principal: str, query: str, *, top_k: int, filters: Mapping[str, Any] | None = None) -> list[Hit]:
        """See `Operator.search`."""
        index = self._index(principal)
        scores = index.scores(list(words_of(query)))
        best = np.argsort(-scores, kind="stable")[: np.count_nonzero(scores)].tolist()
        hits = (Hit(index.cubes[i], float(scores[i])) for i in best)
        found = list(islice(_admitted(hits, filters or {}), top_k))
        if found:
            return found
        recent = sorted(index.cubes, key=lambda cube: (cube.header.updated, cube.id), reverse=True)
        return list(islice(_admitted((Hit(cube, 0.0) for cube in recent), filters or {}), top_k))

    def sentence_scores(self, query: str, text: str) -> Scored:
        """See `Operator.sentence_scores`."""
        return sentence_scores(query, text)

    def _index(self, principal: str) -> _Index:
        """The principal's index, built anew when their memories have changed."""
        revision = self._vault.revision(principal)
        with self._lock:
            held = self._indexes.get(principal)
        if held is None or held.revision != revision:
            held = _build(revision, self._vault.readable(principal), held.words if held else {})
        with self._lock:
            self._indexes[principal] = held
            self._indexes.move_to_end(principal)
            while len(self._indexes) > self._max_indexes:
                self._indexes.popitem(last=False)
        return held


def _admitted(hits: Iterable[Hit], filters: Mapping[str, Any]) -> Iterator[Hit]:
    moment = now()
    return (hit for hit in hits if not hit.cube.expired(moment) and matches(hit.cube, filters))


def _build(revision: int, cubes: list[MemCube], known: Mapping[tuple[str, int], list[str]]) -> _Index:
    """`known`: words of the index before, so that only what is new is stemmed."""
    words = {}
    for cube in cubes:
        key = (cube.id, cube.version)
        words[key] = known[key] if key in known else list(words_of(text_of(cube)))
    if not any(words.values()):
        return _Index(revision, cubes, words, None)
    bm25 = bm25s.BM25()
    bm25.index([words[cube.id, cube.version] for cube in cubes], show_progress=False)
    return _Index(revision, cubes, words, bm25)
