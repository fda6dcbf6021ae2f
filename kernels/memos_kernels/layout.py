"""How one layer's K/V lie in vLLM's paged cache, seen as one row of `[kv_heads, head_dim]` for each token.

vLLM 0.32 hands every layer's cache to a connector as `[num_blocks, kv_heads, block_size, 2 * head_dim]`
(dimensions in that order; the strides may differ by backend).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class Layout(Protocol):
    """Reads and writes token rows of one layer's paged cache.

    `blocks` and `offsets` are int64 `[tokens]`: the block id of each token and its place in the block.
    Rows are `[tokens, kv_heads, head_dim]` in the cache's dtype.
    """

    @property
    def head_dim(self) -> int: ...

    def read(
        self, cache: torch.Tensor, blocks: torch.Tensor, offsets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V rows, contiguous copies."""

    def write(
        self, cache: torch.Tensor, blocks: torch.Tensor, offsets: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        """Write K and V rows in place; no other slot is touched."""


@dataclass(frozen=True)
class StridedLayout:
    """K in the first half of the last dimension, V in the second: FlashAttention, Triton attention and FlashInfer on
    CUDA. vLLM's physical layouts (LBNHC, LBHNC, LHBNC, BLHNC, BLNHC, BHLNC) differ in the strides alone.
    """

    head_dim: int

    def read(
        self, cache: torch.Tensor, blocks: torch.Tensor, offsets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = cache[blocks, :, offsets]
        return rows[..., : self.head_dim].contiguous(), rows[..., self.head_dim :].contiguous()

    def write(
        self, cache: torch.Tensor, blocks: torch.Tensor, offsets: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        cache[blocks, :, offsets] = torch.cat([k, v], dim=-1)


@dataclass(frozen=True)
class CpuVecLayout:
    """The CPU backend's `vec` layout (x86, no AMX): in each block and head, first all keys, then all values;
    the keys lie transposed, `[head_dim, block_size]`.
    """

    head_dim: int

    def _halves(self, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views: keys `[blocks, heads, head_dim, block_size]` and values `[blocks, heads, block_size, head_dim]`."""
        blocks, heads, size, _ = cache.shape
        halves = cache.view(blocks, heads, 2, size * self.head_dim)
        keys, values = halves[:, :, 0], halves[:, :, 1]
        return (
            keys.view(blocks, heads, self.head_dim, size),
            values.view(blocks, heads, size, self.head_dim),
        )

    def read(
        self, cache: torch.Tensor, blocks: torch.Tensor, offsets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._halves(cache)
        return keys[blocks, :, :, offsets].contiguous(), values[blocks, :, offsets].contiguous()

    def write(
        self, cache: torch.Tensor, blocks: torch.Tensor, offsets: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        keys, values = self._halves(cache)
        keys[blocks, :, :, offsets] = k
        values[blocks, :, offsets] = v


@dataclass(frozen=True)
class Slots:
    """Where tokens lie: their numbers, counted from the first, their block ids and their places in the blocks."""

    tokens: torch.Tensor
    blocks: torch.Tensor
    offsets: torch.Tensor


def slots(block_table: torch.Tensor, block_size: int, start: int, length: int) -> Slots:
    """Slots of the tokens `[start, start + length)` of a request, those in a block with a negative id left out.

    Raises IndexError when the block table is too short.
    """
    positions = torch.arange(start, start + length, device=block_table.device)
    blocks = block_table[positions // block_size]
    tokens = (blocks >= 0).nonzero().flatten()
    return Slots(tokens, blocks[tokens], (positions % block_size)[tokens])
