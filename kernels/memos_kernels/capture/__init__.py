"""capture: paged blocks → contiguous K/V rows of a token range, all layers in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memos_kernels.capture import cpu, reference
from memos_kernels.cpu import available, prefer_huge_pages
from memos_kernels.dispatch import Implementation, choose
from memos_kernels.layout import CpuVecLayout, Layout, StridedLayout
from memos_kernels.rows import Rows, check_rows, dense, new_rows

__all__ = ["capture"]


def capture(
    caches: Sequence[torch.Tensor],
    layout: Layout,
    block_table: torch.Tensor,
    block_size: int,
    start: int,
    length: int,
    out: Rows | None = None,
) -> Rows:
    """K[l, t] = cache_l.key[slot(start + t)], V likewise, slot(p) = block_table[p // block_size], p % block_size.

    caches: one paged cache for each layer, `[num_blocks, kv_heads, block_size, 2 * head_dim]`; block_table: int64
    `[blocks of the request]`, on any device; out: K and V to fill, which saves the time of new memory.
    Returns K and V, `[layers, length, kv_heads, head_dim]` in the caches' dtype: `out`, or new ones on the host. A
    negative block id is skipped: its rows stay as they are in `out`, and are zero in new ones.
    Raises ValueError when `out` does not fit, IndexError when the block table is too short or names no block.
    """
    k, v = out if out is not None else _new_rows(caches, layout, block_table, length)
    check_rows(caches, layout, k, v)
    if k.shape[1] != length:
        raise ValueError(f"out holds {k.shape[1]} tokens, not {length}")
    implementation = choose(caches, layout)
    if implementation is Implementation.CPU and dense(k) and dense(v):
        assert isinstance(layout, CpuVecLayout)
        cpu.capture(caches, layout, block_table, start, k, v)
    elif implementation is Implementation.TRITON:
        from memos_kernels.capture import triton  # imports Triton, which a CPU installation may lack

        assert isinstance(layout, StridedLayout)
        triton.capture(caches, layout, block_table, start, k, v)
    else:
        reference.capture(caches, layout, block_table, block_size, start, length, (k, v))
    return k, v


def _new_rows(caches: Sequence[torch.Tensor], layout: Layout, block_table: torch.Tensor, length: int) -> Rows:
    rows = new_rows(caches, layout, block_table, length)
    if available():
        for part in rows:
            prefer_huge_pages(part)
    return rows
