"""Diversity: of memories that say the same, one is enough.

Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): next comes the candidate with the highest

    TRADE * score - (1 - TRADE) * max over those taken of similarity
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from memos_vllm.cube import MemCube
from memos_vllm.vault.words import text_of, words_of

TRADE = 0.7
"""Memories on different things share few words (similarity below 0.2): there the score decides, and among those that
repeat one another the penalty does."""
MAX_COMPARED = 64
"""Taken candidates that the others are compared with: for a prompt of hundreds of memories the rest goes by score."""
MAX_CHARS = 2000
"""Characters of a text that its word set is made of."""

Similarity = Callable[[int, int], float]
"""How alike two candidates are, by their places: 0 for nothing in common to 1 for the same."""
Vector = np.ndarray[Any, np.dtype[Any]]


class Marginal:
    """Candidates that wait, by their places in `scores` (each from 0 to 1); ties go to the earlier place."""

    def __init__(self, scores: Sequence[float], similarity: Similarity) -> None:
        self._scores = scores
        self._similarity = similarity
        self._waiting = list(range(len(scores)))
        self._taken = 0
        self.nearest: list[tuple[float, int]] = [(0.0, -1)] * len(scores)

    def pop(self) -> int | None:
        """Remove and return the best one that waits; None when none does."""
        if not self._waiting:
            return None
        best = max(self._waiting, key=self.value)  # the first of equals
        self._waiting.remove(best)
        return best

    def places(self) -> Sequence[int]:
        """Those that wait, in the order they came."""
        return self._waiting

    def value(self, place: int) -> float:
        return TRADE * self._scores[place] - (1 - TRADE) * self.nearest[place][0]

    def take(self, place: int) -> None:
        """It goes into the prompt: what resembles it is worth less from now on."""
        self._taken += 1
        if self._taken <= MAX_COMPARED:
            for other in self._waiting:
                self.nearest[other] = max(self.nearest[other], (self._similarity(place, other), place))


def by_words(cubes: Sequence[MemCube]) -> Similarity:
    """Jaccard similarity of stemmed words, those of each text's first MAX_CHARS."""
    words = [frozenset(words_of(text_of(cube)[:MAX_CHARS])) for cube in cubes]

    def similarity(one: int, other: int) -> float:
        shared = len(words[one] & words[other])
        return shared / (len(words[one]) + len(words[other]) - shared) if shared else 0.0

    return similarity


def by_vectors(cubes: Sequence[MemCube], vectors: Mapping[str, Vector]) -> Similarity:
    """Cosine of the vectors (by cube id, any dtype), not below 0; by words where one of the two has no vector."""
    fallback = by_words(cubes)
    units = [_unit(vectors.get(cube.id)) for cube in cubes]

    def similarity(one: int, other: int) -> float:
        left, right = units[one], units[other]
        if left is None or right is None:
            return fallback(one, other)
        return max(float(left @ right), 0.0)

    return similarity


def _unit(vector: Vector | None) -> Vector | None:
    if vector is None:
        return None
    wide = vector.astype(np.float32)
    norm = float(np.linalg.norm(wide))
    return wide / norm if norm > 0 else None
