"""`splice` for the CPU backend's caches, in C++; the semantics are those of reference.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memos_kernels.cpu import kernels, paged
from memos_kernels.layout import CpuVecLayout
from memos_kernels.rotation import Rotation


def splice(
    caches: Sequence[torch.Tensor],
    layout: CpuVecLayout,
    block_table: torch.Tensor,
    start: int,
    k: torch.Tensor,
    v: torch.Tensor,
    delta: int,
    rope: Rotation,
) -> None:
    """Write k and v, `[layers, length, kv_heads, head_dim]`, on the host, each layer dense.

    The caller has asked `cpu.supports`, `rows.check_rows` and `rows.dense`.
    """
    cos, sin = (part.tolist() for part in rope.cos_sin(delta)) if delta else ([], [])
    kernels().splice(
        paged(caches, layout),
        block_table.tolist(),
        start,
        k.shape[1],
        k.data_ptr(),
        v.data_ptr(),
        k.stride(0),
        v.stride(0),
        cos,
        sin,
        rope.interleaved,
        torch.get_num_threads(),
    )
