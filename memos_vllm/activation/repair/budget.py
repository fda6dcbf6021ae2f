"""From a score for each token to few spans that keep within a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from memos_vllm.activation.repair.base import Placed, Span

Scores = npt.NDArray[np.float64]
GAP = 8
"""Tokens; spans closer than this become one: another row of the batch costs more than a few tokens."""
MOST_SPANS = 16
"""Spans of one cube."""


def choose(cubes: Sequence[Placed], scores: Sequence[Scores], budget: int) -> list[Span]:
    """The spans of the best tokens, as many as fit: those of the lowest score at which the spans hold `budget` tokens
    at most. Tokens of score 0 are never wanted; cubes that are exact are left alone.

    Spans at a lower score hold no fewer tokens than those at a higher one, so the score is found by bisection.
    """
    wanted = [
        (cube, np.asarray(score)) for cube, score in zip(cubes, scores, strict=True) if not cube.exact and cube.length
    ]
    if budget <= 0 or not wanted:
        return []
    levels = np.unique(np.concatenate([score[score > 0] for _, score in wanted]))
    low, high = 0, len(levels)  # spans at levels[high] fit, where `high` stands for none
    while low < high:
        middle = (low + high) // 2
        if _size(_spans_at(wanted, levels[middle])) <= budget:
            high = middle
        else:
            low = middle + 1
    return _spans_at(wanted, levels[high]) if high < len(levels) else []


def _spans_at(wanted: Sequence[tuple[Placed, Scores]], level: float) -> list[Span]:
    found: list[Span] = []
    for cube, score in wanted:
        found += [(cube.start + start, cube.start + end) for start, end in runs(score >= level)]
    return found


def runs(chosen: npt.NDArray[np.bool_]) -> list[Span]:
    """`[start, end)` of the true stretches, those closer than GAP as one, and the closest ones until MOST_SPANS are
    left.
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([False], chosen, [False])).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    gaps = starts[1:] - ends[:-1]
    keep = gaps >= GAP
    if keep.sum() >= MOST_SPANS:
        widest = np.argsort(-gaps, kind="stable")[: MOST_SPANS - 1]
        keep = np.zeros(len(gaps), dtype=bool)
        keep[widest] = True
    first, last = np.concatenate(([True], keep)), np.concatenate((keep, [True]))
    if not len(starts):
        return []
    return [(int(start), int(end)) for start, end in zip(starts[first], ends[last], strict=True)]


def _size(spans: Sequence[Span]) -> int:
    return sum(end - start for start, end in spans)
