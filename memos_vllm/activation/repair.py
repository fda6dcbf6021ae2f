"""Repair policies: which spliced tokens are recomputed so that they see the text before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from memos_vllm.errors import BadInput


@dataclass(frozen=True)
class Placed:
    """A KV cube at its place in a prompt; `exact` when it stands where it was captured, behind the same tokens."""

    start: int
    length: int
    exact: bool = False


class RepairPolicy(Protocol):
    """Chooses `[start, end)` spans of the placed cubes for recomputation."""

    def spans(self, cubes: Sequence[Placed]) -> list[tuple[int, int]]: ...


@dataclass(frozen=True)
class NoRepair:
    """Recompute nothing: fastest, a cube has not seen the text before it."""

    def spans(self, cubes: Sequence[Placed]) -> list[tuple[int, int]]:
        return []


@dataclass(frozen=True)
class HeadRepair:
    """Recompute the first `tokens` tokens of each cube that is not exact (EPIC LegoLink, arXiv 2410.15332)."""

    tokens: int

    def spans(self, cubes: Sequence[Placed]) -> list[tuple[int, int]]:
        return [(cube.start, cube.start + min(self.tokens, cube.length)) for cube in cubes if not cube.exact]


@dataclass(frozen=True)
class FullRepair:
    """Recompute every cube: the answers of a plain prefill, at its price."""

    def spans(self, cubes: Sequence[Placed]) -> list[tuple[int, int]]:
        return [(cube.start, cube.start + cube.length) for cube in cubes]


def parse_policy(text: str) -> RepairPolicy:
    """The policy that `none`, `head:K` or `full` names. Raises BadInput for anything else."""
    name, _, count = text.partition(":")
    if name == "head" and count.isascii() and count.isdigit() and 0 < int(count) <= 4096:
        return HeadRepair(int(count))
    if text == "none":
        return NoRepair()
    if text == "full":
        return FullRepair()
    raise BadInput(f"'{text}' is no repair policy: use none, head:K (K from 1 to 4096, e.g. head:16) or full")
