"""The oracle of every `splice` kernel.

Rotary position embedding (RoFormer, arXiv 2104.09864, eq. 14) is a rotation by `position * inv_freq`; rotations add
up, so a key made at position p becomes the key at position p + delta by one more rotation by `delta * inv_freq`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memos_kernels.layout import Layout, slots
from memos_kernels.rotation import Rotation


def rotate(k: torch.Tensor, delta: int, rope: Rotation) -> torch.Tensor:
    """Rotate keys `[..., head_dim]` by `delta` positions, in fp32, once.

    Returns a tensor like k; the same object when delta is 0.
    """
    if delta == 0:
        return k
    cos, sin = (part.to(k.device) for part in rope.cos_sin(delta))
    pairs, rest = k[..., : rope.rotary_dim].float(), k[..., rope.rotary_dim :]
    a, b = (pairs[..., 0::2], pairs[..., 1::2]) if rope.interleaved else pairs.chunk(2, dim=-1)
    a, b = a * cos - b * sin, b * cos + a * sin
    turned = torch.stack([a, b], dim=-1).flatten(-2) if rope.interleaved else torch.cat([a, b], dim=-1)
    return torch.cat([turned.to(k.dtype), rest], dim=-1)


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
    """See `memos_kernels.splice.splice`."""
    at = slots(block_table.to(caches[0].device), block_size, start, k.shape[1])
    for cache, k_rows, v_rows in zip(caches, k, v, strict=True):
        new_k, new_v = (rows.to(cache.device)[at.tokens] for rows in (k_rows, v_rows))
        layout.write(cache, at.blocks, at.offsets, rotate(new_k, delta, rope), new_v)
