"""`capture` for CUDA, in Triton; the semantics are those of reference.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from memos_kernels.gpu import TILE_TOKENS, alignment, grid, layer_table, slot_rows, table_on
from memos_kernels.layout import StridedLayout
from memos_kernels.rows import dense

STAGING_BYTES = 256 << 20
"""Device memory that rows on their way to the host may take: more tokens than fit go there in several launches."""


@triton.jit
def _capture_kernel(  # type: ignore[no-untyped-def]
    layers,  # int64 [layers]: addresses of the caches
    table,  # int64 [blocks of the request]
    k,  # [layers, length, heads, head_dim]
    v,
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
    rows = ((tokens.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * head_dim)[:, None] + dims[None, :]
    at = cache + slots[:, None] + dims[None, :]
    tl.store(k + layer * k_layer_stride + rows, tl.load(at, mask=both), mask=both)
    tl.store(v + layer * v_layer_stride + rows, tl.load(at + head_dim, mask=both), mask=both)


def capture(
    caches: Sequence[torch.Tensor],
    layout: StridedLayout,
    block_table: torch.Tensor,
    start: int,
    k: torch.Tensor,
    v: torch.Tensor,
) -> None:
    """Fill k and v. Rows on the host are there when it returns; rows on the device when the current stream has come
    that far.

    The caller has asked `rows.alike` and `rows.check_rows`; the caches' last stride is 1.
    """
    first = caches[0]
    length = k.shape[1]
    if not length:
        return
    table = table_on(block_table, first.shape[2], start, length, first)
    if k.device == first.device and v.device == first.device and dense(k) and dense(v):
        _launch(caches, layout, table, start, k, v)
        return
    gaps = bool((block_table < 0).any())  # their rows must keep what the caller has in them
    step = max(1, STAGING_BYTES // (2 * k[:, 0].numel() * k.element_size()))
    for token in range(0, length, step):
        parts = [rows[:, token : token + step] for rows in (k, v)]
        staged = [_staged(part, first.device, gaps) for part in parts]
        _launch(caches, layout, table, start + token, *staged)
        for part, new in zip(parts, staged, strict=True):
            part.copy_(new)


def _staged(rows: torch.Tensor, device: torch.device, filled: bool) -> torch.Tensor:
    staged = torch.empty(rows.shape, dtype=rows.dtype, device=device)
    return staged.copy_(rows) if filled else staged


def _launch(
    caches: Sequence[torch.Tensor],
    layout: StridedLayout,
    table: torch.Tensor,
    start: int,
    k: torch.Tensor,
    v: torch.Tensor,
) -> None:
    first = caches[0]
    _, heads, block_size, _ = first.shape
    layers, length = k.shape[:2]
    _capture_kernel[grid(length, heads, layers)](
        layer_table(caches),
        table,
        k,
        v,
        start,
        length,
        block_size,
        *(first.stride(dim) for dim in (0, 1, 2)),
        k.stride(0),
        v.stride(0),
        head_dim=layout.head_dim,
        alignment=alignment(caches),
        tile_tokens=TILE_TOKENS,
        width=triton.next_power_of_2(layout.head_dim),
    )
