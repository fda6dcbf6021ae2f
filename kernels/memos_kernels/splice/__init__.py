"""splice: contiguous K/V rows → paged blocks at any position, keys rotated by the position delta, all layers in one
launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memos_kernels.dispatch import Implementation, choose
from memos_kernels.layout import CpuVecLayout, Layout, StridedLayout
from memos_kernels.rotation import Rotation
from memos_kernels.rows import check_rows, dense
from memos_kernels.splice import cpu, reference
from memos_kernels.splice.reference import rotate

__all__ = ["rotate", "splice"]


def splice(
    caches: Sequence[torch.Tensor],
    layout: Layout,
    block_table: torch.Tensor,
    block_size: int,
    start: int,
    k: torch.Tensor,
    v: torch.Tensor,
    delta: int,
    rope: Rotation,
) -> None:
    """cache_l.key[slot(start + t)] = rotate(K[l, t], delta), cache_l.value[slot(start + t)] = V[l, t]; in place.

    slot(p) = block_table[p // block_size], p % block_size; a negative block id is skipped, and no other slot is
    touched. caches: one paged cache for each layer, `[num_blocks, kv_heads, block_size, 2 * head_dim]`; block_table:
    int64 `[blocks of the request]`, on any device; k, v: `[layers, length, kv_heads, head_dim]` in the caches' dtype,
    on the host or the caches' device; delta: new position minus captured position. Keys are rotated in fp32, once.
    On CUDA the work is queued on the current stream.
    Raises ValueError when k or v does not fit, IndexError when the block table is too short or names no block.
    """
    check_rows(caches, layout, k, v)
    implementation = choose(caches, layout)
    if implementation is Implementation.CPU and dense(k) and dense(v):
        assert isinstance(layout, CpuVecLayout)
        cpu.splice(caches, layout, block_table, start, k, v, delta, rope)
    elif implementation is Implementation.TRITON:
        from memos_kernels.splice import triton  # imports Triton, which a CPU installation may lack

        assert isinstance(layout, StridedLayout)
        triton.splice(caches, layout, block_table, start, k, v, delta, rope)
    else:
        reference.splice(caches, layout, block_table, block_size, start, k, v, delta, rope)
