"""Policies that spend a budget, a share of the spliced tokens, on the tokens that seem to need it most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from memos_vllm.activation.repair.base import Placed, Span
from memos_vllm.activation.repair.budget import Scores, choose

REACH = 6
"""Tokens. What is told right after a token that moved rests on it: "Their" moves, so "favourite tea is oolong" must."""
FADE = 0.9
"""Part of a token's deviation that is left at the next token within its reach."""
UNSEEN = 0.1
"""Weight of a token's deviation in a sentence that does not fit the query; the best-fitting sentence has 1 more."""
SETTLED = 0.15
"""Deviation below which a token is taken for one that does not look before its cube; `mixed` leaves it alone."""
MOST_MIXED = 96
"""Tokens that `mixed` recomputes at most, however long the memories are: a question is about a few sentences, and the
time to first token grows with every token.
"""
FALL = 1e-5
"""By what a sentence's score falls from token to token, so that one over the budget is cut, not left out."""
HEAD_FADE = 24.0
"""Tokens over which the need of a cube's head falls to a third, where no deviation was measured."""


@dataclass(frozen=True)
class DeviationRepair:
    """Recompute the tokens whose K/V moved most behind another context when the cube was captured."""

    share: float
    needs_relevance: ClassVar[bool] = False
    needs_deviation: ClassVar[bool] = True

    def spans(self, cubes: Sequence[Placed]) -> list[Span]:
        return choose(cubes, [_need(cube) for cube in cubes], _budget(cubes, self.share))


@dataclass(frozen=True)
class GuidedRepair:
    """Recompute the sentences that fit the query best (as InfoFlow and ProphetKV choose by the query, with the scores
    of the search instead of attention). Without scores: the heads of the cubes.
    """

    share: float
    needs_relevance: ClassVar[bool] = True
    needs_deviation: ClassVar[bool] = False

    def spans(self, cubes: Sequence[Placed]) -> list[Span]:
        fits = _relevance(cubes)
        scores = [_head(cube) for cube in cubes] if fits is None else fits
        return choose(cubes, scores, _budget(cubes, self.share))


@dataclass(frozen=True)
class MixedRepair:
    """Recompute tokens that moved *and* are asked for: deviation times relevance.

    A token matters when its K/V would be another in this prompt (deviation) and the answer looks at it (relevance).
    Each alone spends the budget on what the other would spare.
    """

    share: float
    needs_relevance: ClassVar[bool] = True
    needs_deviation: ClassVar[bool] = True

    def spans(self, cubes: Sequence[Placed]) -> list[Span]:
        needs, fits = [_need(cube) for cube in cubes], _relevance(cubes)
        needs = [np.where(need < SETTLED, 0.0, need) for need in needs]
        if fits is not None:
            needs = [need * (UNSEEN + fit) for need, fit in zip(needs, fits, strict=True)]
        return choose(cubes, needs, min(MOST_MIXED, _budget(cubes, self.share)))


def _budget(cubes: Sequence[Placed], share: float) -> int:
    return int(share * sum(cube.length for cube in cubes))


def _need(cube: Placed) -> Scores:
    """Deviation of each token or, faded, of one before it; of a cube without measurements, its head's."""
    if cube.deviation is None:
        return _head(cube)
    need = moved = np.asarray(cube.deviation, dtype=np.float64)
    for distance in range(1, min(REACH + 1, cube.length)):
        need = np.maximum(need, np.concatenate((np.zeros(distance), moved[:-distance] * FADE**distance)))
    return need


def _head(cube: Placed) -> Scores:
    return np.exp(-np.arange(cube.length) / HEAD_FADE)


def _relevance(cubes: Sequence[Placed]) -> list[Scores] | None:
    """Scores of all tokens, 1 in the best sentence of all cubes; None when no sentence has a score above 0."""
    scores = []
    for cube in cubes:
        score = np.zeros(cube.length)
        for start, end, value in cube.relevance or ():
            falling = value * (1 - FALL * np.arange(end - start))
            score[start:end] = np.maximum(score[start:end], falling)
        scores.append(score)
    best = max((score.max(initial=0.0) for score in scores), default=0.0)
    return [score / best for score in scores] if best > 0 else None
