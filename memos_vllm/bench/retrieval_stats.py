"""From the ranks of evidence to recall and reciprocal rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

DEPTH = 100
"""Memories that every search is asked for; evidence further down counts as not found."""
TOP_K = (1, 2, 3, 5, 10, 15, 20, 25, 50, DEPTH)
BUDGETS = (16, 40)
"""Turns to read, for comparing memories of different sizes: `budget // chunk` memories of `chunk` turns."""
ALL = "all"


@dataclass(frozen=True)
class Asked:
    """One question in one arm. ranks: of each evidence turn's memory, from 1, or None; seconds: the HTTP request."""

    arm: str
    chunk: int
    conversation: str
    category: str
    question: int
    ranks: tuple[int | None, ...]
    seconds: float

    def recall(self, k: int) -> float:
        """Share of the evidence turns among the first k memories."""
        return sum(rank is not None and rank <= k for rank in self.ranks) / len(self.ranks)

    @property
    def reciprocal(self) -> float:
        """1 / rank of the first evidence, 0 where none was found."""
        return 1 / min((rank for rank in self.ranks if rank is not None), default=float("inf"))


@dataclass(frozen=True)
class RecallRow:
    """Means over the questions of one arm and chunk size: all of them, or one category's or conversation's.

    recalls: at each of TOP_K; budgets: at each of BUDGETS turns; mrr: mean reciprocal rank of the first evidence.
    """

    arm: str
    chunk: int
    category: str
    conversation: str
    questions: int
    recalls: tuple[float, ...]
    budgets: tuple[float, ...]
    mrr: float
    p50: float
    p90: float

    def recall(self, k: int) -> float:
        """Raises ValueError for a k that is not in TOP_K."""
        return self.recalls[TOP_K.index(k)]


def summarise_retrieval(asked: Sequence[Asked]) -> list[RecallRow]:
    """Rows over all questions, each category and each conversation, arms and chunk sizes in the order of `asked`."""
    rows = []
    for arm, chunk in dict.fromkeys((one.arm, one.chunk) for one in asked):
        here = [one for one in asked if (one.arm, one.chunk) == (arm, chunk)]
        rows.append(_row(here, ALL, ALL))
        for category in sorted({one.category for one in here}):
            rows.append(_row([one for one in here if one.category == category], category, ALL))
        for name in dict.fromkeys(one.conversation for one in here):
            rows.append(_row([one for one in here if one.conversation == name], ALL, name))
    return rows


def _row(asked: Sequence[Asked], category: str, conversation: str) -> RecallRow:
    chunk, seconds = asked[0].chunk, sorted(one.seconds for one in asked)
    return RecallRow(
        arm=asked[0].arm,
        chunk=chunk,
        category=category,
        conversation=conversation,
        questions=len(asked),
        recalls=tuple(fmean(one.recall(k) for one in asked) for k in TOP_K),
        budgets=tuple(fmean(one.recall(budget // chunk) for one in asked) for budget in BUDGETS),
        mrr=fmean(one.reciprocal for one in asked),
        p50=seconds[len(seconds) // 2],
        p90=seconds[len(seconds) * 9 // 10],
    )
