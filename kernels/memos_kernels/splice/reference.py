"""The oracle of every `splice` kernel.

Rotary position embedding (RoFormer, arXiv 2104.09864, eq. 14) is a rotation by `position * inv_freq`; rotations add
up, so a key made at position p becomes the key at position p + delta by one more rotation by `delta * inv_freq`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memos_kernels.layout import Layout, slots


def rotate(k: torch.Tensor, delta: int, inv_freq: torch.Tensor) -> torch.Tensor:
    """Rotate keys by `delta` positions, NeoX style (halves, not pairs), in fp32, once.

    k: `[..., head_dim]`; inv_freq: fp32 `[rotary_dim / 2]`, dimensions past rotary_dim are left alone.
    Returns a tensor like k; the same object when delta is 0.
    """
    if delta == 0:
        return k
    angle = (delta * inv_freq.double()).to(k.device)  # fp64: |delta * inv_freq| can be thousands of radians
    cos, sin = angle.cos().float(), angle.sin().float()
    half = inv_freq.numel()
    a, b, rest = k[..., :half].float(), k[..., half : 2 * half].float(), k[..., 2 * half :]
    return torch.cat([(a * cos - b * sin).to(k.dtype), (b * cos + a * sin).to(k.dtype), rest], dim=-1)


def splice(
    caches: Sequence[torch.Tensor],
    layout: Layout,
    block_ids: torch.Tensor,
    block_size: int,
    start: int,
    k: torch.Tensor,
    v: torch.Tensor,
    delta: int,
    inv_freq: torch.Tensor,
) -> None:
    """cache_l.key[slot(start + t)] = rotate(K[l, t], delta), cache_l.value[slot(start + t)] = V[l, t]; in place.

    k, v: `[layers, length, kv_heads, head_dim]` in the caches' dtype; delta: new position minus captured position.
    """
    blocks, offsets = slots(block_ids, block_size, start, k.shape[1])
    k = rotate(k, delta, inv_freq)
    for cache, k_rows, v_rows in zip(caches, k, v, strict=True):
        layout.write(cache, blocks, offsets, k_rows.to(cache.device), v_rows.to(cache.device))
