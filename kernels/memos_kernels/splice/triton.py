"""`splice` for CUDA, in Triton; the semantics are those of reference.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from memos_kernels.gpu import TILE_TOKENS, alignment, grid, layer_table, slot_rows, table_on
from memos_kernels.layout import StridedLayout
from memos_kernels.rotation import Rotation
from memos_kernels.rows import dense


@triton.jit
def _splice_kernel(  # type: ignore[no-untyped-def]
    layers,  # int64 [layers]: addresses of the caches
    table,  # int64 [blocks of the request]
    k,  # [layers, length, heads, head_dim]
    v,
    cosines,  # fp32 [half]
    sines,
    start,
    length,
    block_size,
    block_stride,
    head_stride,
    token_stride,
    k_layer_stride,
    v_layer_stride,
    head_dim: tl.constexpr,
    alignment: tl.constexpr,  # bytes, of the caches
    half: tl.constexpr,  # of the rotary dimensions; 0: keys are not turned
    interleaved: tl.constexpr,
    tile_tokens: tl.constexpr,
    width: tl.constexpr,  # head_dim, made a power of two
):
    layer = tl.program_id(2).to(tl.int64)
    tokens, slots, mask = slot_rows(
        table, start, length, block_size, block_stride, head_stride, token_stride, tile_tokens=tile_tokens
    )
    cache = tl.multiple_of(tl.load(layers + layer).to(tl.pointer_type(k.dtype.element_ty)), alignment)
    dims = tl.arange(0, width)
    both = mask[:, None] & (dims < head_dim)[None, :]
    rows = (tokens.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * head_dim
    k_rows = k + layer * k_layer_stride + rows[:, None]
    key = tl.load(k_rows + dims[None, :], mask=both)
    if half > 0:
        # A dimension's partner is read anew, out of the first-level cache.
        if interleaved:
            partner, angle, first = dims ^ 1, dims // 2, dims % 2 == 0
        else:
            partner, angle, first = tl.where(dims < half, dims + half, dims - half), dims % half, dims < half
        turns = dims < 2 * half
        other = tl.load(k_rows + partner[None, :], mask=both & turns[None, :], other=0.0).to(tl.float32)
        cosine = tl.load(cosines + angle, mask=turns, other=1.0)
        sine = tl.load(sines + angle, mask=turns, other=0.0)
        sine = tl.where(first, -sine, sine)
        turned = key.to(tl.float32) * cosine[None, :] + other * sine[None, :]
        key = tl.where(turns[None, :], turned.to(key.dtype), key)
    to = cache + slots[:, None] + dims[None, :]
    tl.store(to, key, mask=both)
    tl.store(to + head_dim, tl.load(v + layer * v_layer_stride + rows[:, None] + dims[None, :], mask=both), mask=both)


def splice(
    caches: Sequence[torch.Tensor],
    layout: StridedLayout,
    block_table: torch.Tensor,
    start: int,
    k: torch.Tensor,
    v: torch.Tensor,
    delta: int,
    rope: Rotation,
) -> None:
    """Queued on the current stream; rows on the host are copied first, without waiting when they are pinned.

    The caller has asked `rows.alike` and `rows.check_rows`; the caches' last stride is 1.
    """
    first = caches[0]
    _, heads, block_size, _ = first.shape
    layers, length = k.shape[:2]
    if not length:
        return
    table = table_on(block_table, block_size, start, length, first)
    k, v = (rows.to(first.device, non_blocking=True) for rows in (k, v))
    k, v = (rows if dense(rows) else rows.contiguous() for rows in (k, v))
    cosines, sines = (part.to(first.device, non_blocking=True) for part in rope.cos_sin(delta))
    _splice_kernel[grid(length, heads, layers)](
        layer_table(caches),
        table,
        k,
        v,
        cosines,
        sines,
        start,
        length,
        block_size,
        *(first.stride(dim) for dim in (0, 1, 2)),
        k.stride(0),
        v.stride(0),
        head_dim=layout.head_dim,
        alignment=alignment(caches),
        half=rope.rotary_dim // 2 if delta else 0,
        interleaved=rope.interleaved,
        tile_tokens=TILE_TOKENS,
        width=triton.next_power_of_2(layout.head_dim),
    )
