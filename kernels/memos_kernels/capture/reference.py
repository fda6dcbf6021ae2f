"""The oracle of every `capture` kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memos_kernels.layout import Layout, slots
from memos_kernels.rows import Rows, new_rows


def capture(
    caches: Sequence[torch.Tensor],
    layout: Layout,
    block_table: torch.Tensor,
    block_size: int,
    start: int,
    length: int,
    out: Rows | None = None,
) -> Rows:
    """See `memos_kernels.capture.capture`. The device holds one layer's rows at a time."""
    k, v = out if out is not None else new_rows(caches, layout, block_table, length)
    at = slots(block_table.to(caches[0].device), block_size, start, length)
    for layer, cache in enumerate(caches):
        k_rows, v_rows = layout.read(cache, at.blocks, at.offsets)
        k[layer, at.tokens.to(k.device)] = k_rows.to(k.device)
        v[layer, at.tokens.to(v.device)] = v_rows.to(v.device)
    return k, v
