"""What speaks for each cube of a Scope, given a question."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memos_vllm.retrieval.dates import Month, in_months
from memos_vllm.retrieval.meaning import Meanings
from memos_vllm.retrieval.ranking import Neighbours, Ranking, bm25, fused, hints
from memos_vllm.vault.lookup import Flags, Floats, Scope
from memos_vllm.vault.postings import speaker_term, term_of

MAX_WORDS = 64
"""Words of a question that count, its rarest ones: a pasted page must not take seconds of a large memory."""
_CHUNK = 1 << 18
"""Counts that are worked on at a time: they fit a core's cache."""
_LEAST = 1e-6
"""Score of a match that hints speak against."""


@dataclass(frozen=True)
class Asked:
    """What a question asks of the cubes.

    words: stemmed, each once; empty where words do not count
    vector: float32 of length 1, by the embedder of this digest; None where meaning does not count
    names: words that may name a speaker; months: what it asks about; both empty where hints do not count
    """

    words: Sequence[str]
    vector: Floats | None
    embedder: bytes
    names: Sequence[str]
    months: Sequence[Month]
    neighbours: bool
    hints: bool


@dataclass(frozen=True)
class Signals:
    """float32 `[n]` each. words: BM25; meaning: cosines; hinted: what hints add; score: above 0 for a match."""

    words: Floats
    meaning: Floats | None
    hinted: Floats
    score: Floats

    def parts(self, position: int) -> dict[str, float]:
        """Of one cube, by name."""
        parts = {"lexical": self.words, "dense": self.meaning, "hints": self.hinted}
        return {name: float(values[position]) for name, values in parts.items() if values is not None}


def signals_of(scope: Scope, asked: Asked, alive: Flags, ranking: Ranking, meanings: Meanings) -> Signals:
    """alive: cubes that have not expired; the others neither match nor count for their neighbours."""
    lengths = scope.rows["words"].astype(np.float32) * alive
    words = _words(scope, asked, lengths, alive, ranking)
    meaning = _meaning(scope, asked, alive, ranking, meanings)
    score = fused(words, meaning, ranking)
    matches = score > 0
    hinted = _hints(scope, asked, lengths, ranking) * matches
    return Signals(words, meaning, hinted, np.where(matches, np.maximum(score + hinted, _LEAST), 0).astype(np.float32))


def _words(scope: Scope, asked: Asked, lengths: Floats, alive: Flags, ranking: Ranking) -> Floats:
    """BM25 over the words of each cube and of its neighbours."""
    turns = Neighbours(scope.same_conversation, ranking.turns if asked.neighbours else {})
    around = turns.given(lengths)
    scores = np.zeros(len(scope), dtype=np.float32)
    held = filter(lambda found: len(found.positions), (scope.postings(term_of(word)) for word in asked.words))
    rarest = sorted(held, key=lambda found: len(found.positions))[:MAX_WORDS]
    step = max(1, _CHUNK // len(scope))
    for first in range(0, len(rarest), step):
        chunk = rarest[first : first + step]
        counts = np.zeros((len(chunk), len(scope)), dtype=np.float32)
        for row, found in zip(counts, chunk, strict=True):
            row[found.positions] = found.counts
        scores += bm25(turns.given(counts * alive), around, ranking)
    return scores * alive


def _meaning(scope: Scope, asked: Asked, alive: Flags, ranking: Ranking, meanings: Meanings) -> Floats | None:
    """Mean cosine of each cube and its neighbours, 0 for cubes whose vector is still to be made."""
    if asked.vector is None:
        return None
    positions, cosines = meanings.cosines(scope, asked.embedder, asked.vector)
    present, scores = np.zeros((2, len(scope)), dtype=np.float32)
    present[positions] = 1
    scores[positions] = cosines
    present *= alive
    if asked.neighbours:
        turns = Neighbours(scope.same_conversation, ranking.meanings)
        scores = turns.given(scores * present) / np.maximum(turns.given(present), 1)
    return scores * present


def _hints(scope: Scope, asked: Asked, lengths: Floats, ranking: Ranking) -> Floats:
    if not asked.hints:
        return np.zeros(len(scope), dtype=np.float32)
    named = scope.holding(map(speaker_term, asked.names))
    return hints(lengths, scope.rows["asks"] > 0, named, in_months(scope.rows, asked.months), ranking)
