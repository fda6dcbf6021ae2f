"""The oracle of every `capture` kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memos_kernels.layout import Layout, slots


def capture(
    caches: Sequence[torch.Tensor], layout: Layout, block_ids: torch.Tensor, block_size: int, start: int, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """K[l, t] = cache_l.key[slot(start + t)], V likewise.

    caches: one paged cache for each layer; block_ids: int64 `[blocks of the request]`.
    Returns K and V, `[layers, length, kv_heads, head_dim]`, in the caches' dtype, on the host; the device holds one
    layer's rows at a time.
    """
    blocks, offsets = slots(block_ids, block_size, start, length)
    rows = [tuple(part.cpu() for part in layout.read(cache, blocks, offsets)) for cache in caches]
    return torch.stack([k for k, _ in rows]), torch.stack([v for _, v in rows])
