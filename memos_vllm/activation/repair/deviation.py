"""How far each token of a cube moves when other text stands before it, measured once, when the cube is captured.

The cube is prefilled twice: behind the scaffold, and behind the scaffold and a decoy. A token whose keys and values
hardly differ does not look at what stands before the cube; one that moved much (a pronoun, and what is told about it)
was computed from text that another prompt may not have, and is what a repair should recompute. CacheBlend (arXiv
2405.16444, section 4) picks tokens by the same difference, but between cached and fresh K/V of each prompt, which costs
every request a pass over the first layers; here a request pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DECOY = (
    "Robin lives in Ghent with a sister called Noor. She works as a nurse, he is learning Greek. "
    "Their blue car was late on Monday."
)
"""The text of the other context, which stands before the cube as a memory would: it names people, places and things
that a pronoun or an article in a cube could refer to. Text without any would leave such words where they are.
"""
_STEPS_PER_UNIT = 127.5
"""A deviation is kept in a byte, from 0 to 2 in steps of 1/127.5: more than 2 is as bad as 2."""


def deviation(k1: torch.Tensor, v1: torch.Tensor, k2: torch.Tensor, v2: torch.Tensor) -> torch.Tensor:
    """One number for each token, fp32 `[tokens]`: the mean over layers of |k1 - k2| / |k1| and |v1 - v2| / |v1|.

    All four are `[layers, tokens, kv_heads, head_dim]`: K/V of the same tokens behind the scaffold (1) and behind
    scaffold and decoy (2), keys rotated to the same positions. |x| is the Euclidean norm over heads and channels.
    """
    moved = _relative(k1, k2) + _relative(v1, v2)
    return moved.mean(0) / 2


def _relative(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    first, second = first.float().flatten(2), second.float().flatten(2)
    relative: torch.Tensor = (first - second).norm(dim=-1) / first.norm(dim=-1).clamp_min(1e-6)
    return relative


def pack(deviations: Iterable[float]) -> bytes:
    """Deviations as they are stored with a cube, one byte for each token."""
    return bytes(min(255, max(0, round(value * _STEPS_PER_UNIT))) for value in deviations)


def unpack(stored: bytes) -> Sequence[float]:
    """What `pack` stored."""
    return [value / _STEPS_PER_UNIT for value in stored]
