"""How signals become one score: pure functions over arrays with one place a cube.

A turn of a conversation often tells little alone ("Yes, last week!"), so it is read together with its neighbours: BM25
counts words over a few turns, nearer ones counting more. BM25 is Lucene's variant (Kamphuis et al., ECIR 2020, "Which
BM25 Do You Mean?", table 1), its statistics those of the cubes that the caller may read.

The weights were found on conversations of two people over months, chosen on some and measured on others; half or twice
of each costs recall a few points at most.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from memos_vllm.vault.lookup import Flags, Floats

SameConversation = Callable[[int], Flags]
"""See `Scope.same_conversation`."""


@dataclass(frozen=True)
class Ranking:
    """The weights of a search.

    k1, b: BM25's saturation and length normalisation
    turns: by offset (-1: the turn before), how much a neighbour's words count for a turn
    meanings: the same for its meaning
    dense: weight of meaning; words have 1
    hints, shares of the best score:
    speaker: for what was said by somebody whom the question names
    time: for what happened in the month or year that the question names
    asks: taken from texts that ask rather than tell
    tells: for long texts, half of it at `length` words
    """

    k1: float = 1.2
    b: float = 0.75
    turns: Mapping[int, float] = field(
        default_factory=lambda: {-3: 0.216, -2: 0.36, -1: 0.6, 1: 0.45, 2: 0.27, 3: 0.162}
    )
    meanings: Mapping[int, float] = field(default_factory=lambda: {-2: 0.25, -1: 0.5, 1: 0.5, 2: 0.25})
    dense: float = 0.5
    speaker: float = 0.2
    time: float = 0.2
    asks: float = 0.1
    tells: float = 0.2
    length: float = 8.0


DEFAULT = Ranking()


class Neighbours:
    """Adds to what turns have a share of what the turns around them have."""

    def __init__(self, same: SameConversation, weights: Mapping[int, float]) -> None:
        self._weights = weights
        self._masks = {distance: same(distance) for distance in {abs(offset) for offset in weights}}

    def given(self, values: Floats) -> Floats:
        """float32 `[..., n]`."""
        given = values.copy()
        for offset, weight in self._weights.items():
            distance = abs(offset)
            mask = self._masks[distance]
            if not mask.any():
                continue
            if offset > 0:
                given[..., :-distance] += weight * mask * values[..., distance:]
            else:
                given[..., distance:] += weight * mask * values[..., :-distance]
        return given


def bm25(counts: Floats, lengths: Floats, ranking: Ranking = DEFAULT) -> Floats:
    """float32 `[n]`, 0 where none of the terms occurs. counts: of each term in each cube, `[terms, n]`."""
    holding = np.count_nonzero(counts, axis=1)
    idf = np.log1p((len(lengths) - holding + 0.5) / (holding + 0.5)).astype(np.float32)
    mean = max(float(lengths.mean()), 1e-9)
    saturation = ranking.k1 * (1 - ranking.b + ranking.b * lengths / mean)
    scores: Floats = idf @ (counts / np.maximum(counts + saturation, 1e-9))
    return scores


def fused(words: Floats, meaning: Floats | None, ranking: Ranking = DEFAULT) -> Floats:
    """One score a cube, above 0 where it matches; words and meaning are first brought to one scale."""
    return scaled(words) if meaning is None else scaled(words) + ranking.dense * scaled(meaning)


def scaled(scores: Floats) -> Floats:
    """Scores from 0 to 1, the best 1: a scale that does not depend on how many cubes there are."""
    best = float(scores.max(initial=0.0))
    return np.clip(scores, 0.0, None) / best if best > 0 else np.zeros_like(scores)


def hints(lengths: Floats, asks: Flags, named: Flags, timely: Flags, ranking: Ranking = DEFAULT) -> Floats:
    """What else speaks for a cube that matches, or against it.

    lengths: words of each; named: said by somebody in the question; timely: happened when the question asks about.
    """
    tells = ranking.tells * lengths / (lengths + ranking.length)
    total: Floats = tells + ranking.speaker * named + ranking.time * timely - ranking.asks * asks
    return total.astype(np.float32)
