"""Capture and splice references: round trips, rotation, page edges, untouched neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memos_kernels.capture import capture
from memos_kernels.layout import CpuVecLayout, Layout, StridedLayout
from memos_kernels.splice import rotate, splice

HEAD_DIM, HEADS, BLOCK, BLOCKS, LAYERS = 64, 2, 32, 12, 3
INV_FREQ = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float32) / HEAD_DIM)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
EDGES = [1, 15, 16, 17, 31, 32, 33, 64, 65]


def nan_caches(dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.full((BLOCKS, HEADS, BLOCK, 2 * HEAD_DIM), float("nan"), dtype=dtype) for _ in range(LAYERS)]


def naive_rope(x: torch.Tensor, position: int) -> torch.Tensor:
    """RoPE by complex multiplication in fp64, NeoX pairing (i, i + d/2)."""
    half = HEAD_DIM // 2
    z = torch.complex(x[..., :half].double(), x[..., half:].double())
    z = z * torch.polar(torch.ones(half, dtype=torch.float64), position * INV_FREQ.double())
    return torch.cat([z.real, z.imag], dim=-1)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("delta", [-8000, -1, 1, 33, 8191])
def test_rotation_moves_a_key_to_another_position(dtype: torch.dtype, delta: int) -> None:
    x = torch.randn(5, HEADS, HEAD_DIM)
    there = naive_rope(x, 8192 + delta)
    moved = rotate(naive_rope(x, 8192).to(dtype), delta, INV_FREQ)
    assert moved.dtype == dtype
    assert (moved.double() - there).abs().max() <= TOLERANCE[dtype] * there.abs().max()


def test_rotation_leaves_dimensions_past_the_rotary_ones_alone() -> None:
    k = torch.randn(4, HEADS, HEAD_DIM)
    moved = rotate(k, 7, INV_FREQ[:8])
    assert torch.equal(moved[..., 16:], k[..., 16:])
    assert not torch.equal(moved[..., :16], k[..., :16])


@pytest.mark.parametrize("layout", [CpuVecLayout(HEAD_DIM), StridedLayout(HEAD_DIM)], ids=["vec", "strided"])
@pytest.mark.parametrize("length", EDGES)
@given(start=st.integers(0, 80), dtype=st.sampled_from(list(TOLERANCE)), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_what_is_spliced_is_captured_and_nothing_else_is_touched(
    layout: Layout, length: int, start: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(LAYERS, length, HEADS, HEAD_DIM, generator=generator).to(dtype) for _ in range(2))
    table = torch.randperm(BLOCKS, generator=generator)[:6]
    caches = nan_caches(dtype)
    splice(caches, layout, table, BLOCK, start, k, v, 0, INV_FREQ)
    got_k, got_v = capture(caches, layout, table, BLOCK, start, length)
    assert torch.equal(got_k, k)
    assert torch.equal(got_v, v)
    for cache in caches:
        assert int(cache.isfinite().sum()) == 2 * length * HEADS * HEAD_DIM


def test_splice_rotates_keys_and_not_values() -> None:
    k, v = (torch.randn(LAYERS, 40, HEADS, HEAD_DIM) for _ in range(2))
    caches, table = nan_caches(torch.float32), torch.tensor([3, 1, 7])
    splice(caches, CpuVecLayout(HEAD_DIM), table, BLOCK, 11, k, v, -500, INV_FREQ)
    got_k, got_v = capture(caches, CpuVecLayout(HEAD_DIM), table, BLOCK, 11, 40)
    assert torch.equal(got_v, v)
    assert torch.allclose(got_k, rotate(k, -500, INV_FREQ))
