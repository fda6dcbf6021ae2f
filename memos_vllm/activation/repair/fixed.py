"""Policies that look at nothing but where cubes stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from memos_vllm.activation.repair.base import Placed, Span


@dataclass(frozen=True)
class NoRepair:
    """Recompute nothing: fastest, a cube has not seen the text before it."""

    needs_relevance: ClassVar[bool] = False
    needs_deviation: ClassVar[bool] = False

    def spans(self, cubes: Sequence[Placed]) -> list[Span]:
        return []


@dataclass(frozen=True)
class HeadRepair:
    """Recompute the first `tokens` tokens of each cube that is not exact (EPIC LegoLink, arXiv 2410.15332)."""

    tokens: int
    needs_relevance: ClassVar[bool] = False
    needs_deviation: ClassVar[bool] = False

    def spans(self, cubes: Sequence[Placed]) -> list[Span]:
        return [(cube.start, cube.start + min(self.tokens, cube.length)) for cube in cubes if not cube.exact]


@dataclass(frozen=True)
class FullRepair:
    """Recompute every cube: the answers of a plain prefill, at its price."""

    needs_relevance: ClassVar[bool] = False
    needs_deviation: ClassVar[bool] = False

    def spans(self, cubes: Sequence[Placed]) -> list[Span]:
        return [(cube.start, cube.start + cube.length) for cube in cubes]
