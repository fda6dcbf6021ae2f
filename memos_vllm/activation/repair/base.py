"""What a repair policy is given and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

Span = tuple[int, int]
"""`[start, end)` of prompt positions."""


@dataclass(frozen=True)
class Placed:
    """A KV cube at its place in a prompt.

    start, length: prompt positions, tokens
    exact: it stands where it was captured, behind the same tokens, and needs no repair
    deviation: for every token of the cube, how far its K/V moved behind another context (see `deviation.py`)
    relevance: `(start, end, score)` of spans of the cube's tokens, counted from its start: how well a sentence fits the
        query, scores from 0 on, higher is better, in any unit; None when no query was searched with
    """

    start: int
    length: int
    exact: bool = False
    deviation: Sequence[float] | None = None
    relevance: Sequence[tuple[int, int, float]] | None = None


class RepairPolicy(Protocol):
    """Chooses spans of the placed cubes for recomputation: in order, apart, each within one cube.

    needs_relevance: whether it reads `Placed.relevance`, which costs a search
    needs_deviation: whether it reads `Placed.deviation`, which costs a second prefill of every cube when it is captured
    """

    needs_relevance: ClassVar[bool]
    needs_deviation: ClassVar[bool]

    def spans(self, cubes: Sequence[Placed]) -> list[Span]: ...
