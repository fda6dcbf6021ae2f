"""The contiguous side of capture and splice: K and V as `[layers, tokens, kv_heads, head_dim]`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memos_kernels.layout import Layout

Rows = tuple[torch.Tensor, torch.Tensor]


def alike(caches: Sequence[torch.Tensor]) -> bool:
    """Whether all layers' caches agree in shape, strides, dtype and device."""
    first = caches[0]
    return all(
        (cache.shape, cache.stride(), cache.dtype, cache.device)
        == (first.shape, first.stride(), first.dtype, first.device)
        for cache in caches
    )


def new_rows(caches: Sequence[torch.Tensor], layout: Layout, block_table: torch.Tensor, length: int) -> Rows:
    """K and V on the host for `length` tokens, uninitialised; zeros where a negative block id leaves a gap."""
    shape = (len(caches), length, caches[0].shape[1], layout.head_dim)
    make = torch.zeros if bool((block_table < 0).any()) else torch.empty
    return make(shape, dtype=caches[0].dtype), make(shape, dtype=caches[0].dtype)


def check_rows(caches: Sequence[torch.Tensor], layout: Layout, k: torch.Tensor, v: torch.Tensor) -> None:
    """Raise ValueError when k and v are not rows of these caches."""
    first = caches[0]
    wanted = (len(caches), k.shape[1], first.shape[1], layout.head_dim)
    for rows in (k, v):
        if tuple(rows.shape) != wanted or rows.dtype != first.dtype:
            raise ValueError(f"rows are {tuple(rows.shape)} of {rows.dtype}, not {wanted} of {first.dtype}")


def dense(rows: torch.Tensor) -> bool:
    """Whether each layer is dense: only layers may lie apart, as they do in a slice of a cube's tokens."""
    return rows.numel() == 0 or rows[0].is_contiguous()
