"""The oracles themselves: rotation against complex numbers in fp64, slots against plain indexing."""

from __future__ import annotations

import pytest
import torch
from memos_kernels.capture import reference as capture_reference
from memos_kernels.layout import CpuVecLayout, Layout, StridedLayout
from memos_kernels.rotation import Rotation
from memos_kernels.splice import reference as splice_reference
from memos_kernels.splice import rotate

from tests.unit.kernels.cases import EPSILON, PAGE_EDGES, Case, layout_of, same_bits

HEAD_DIM = 64
LAYOUTS = pytest.mark.parametrize("kind", [CpuVecLayout, StridedLayout])


def naive_rope(x: torch.Tensor, position: int, rope: Rotation) -> torch.Tensor:
    """RoPE by complex multiplication in fp64."""
    turn = torch.polar(torch.ones(rope.rotary_dim // 2, dtype=torch.float64), position * rope.inv_freq.double())
    x = x.double()
    out = x.clone()
    half = rope.rotary_dim // 2
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
        if rope.interleaved
        else (
            slice(0, half),
            slice(half, 2 * half),
        )
    )
    z = torch.complex(x[..., first], x[..., second]) * turn
    out[..., first], out[..., second] = z.real, z.imag
    return out


@pytest.mark.parametrize("interleaved", [False, True], ids=["neox", "interleaved"])
@pytest.mark.parametrize("rotary_dim", [HEAD_DIM, 16, 6])
@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("delta", [-131072, -8000, -1, 1, 33, 8191, 131072])
def test_rotation_moves_a_key_to_another_position(
    dtype: torch.dtype, delta: int, rotary_dim: int, interleaved: bool
) -> None:
    rope = Case(rotary_dim=rotary_dim, interleaved=interleaved).rope
    x = torch.randn(5, 2, HEAD_DIM)
    there = naive_rope(x, 140000 + delta, rope)
    moved = rotate(naive_rope(x, 140000, rope).to(dtype), delta, rope)
    assert moved.dtype == dtype
    assert (moved.double() - there).abs().max() <= 2 * EPSILON[dtype] * there.abs().max()
    assert torch.equal(moved[..., rotary_dim:], x.to(dtype)[..., rotary_dim:])


def test_a_key_that_does_not_move_is_the_same_object() -> None:
    k = torch.randn(3, 2, HEAD_DIM)
    assert rotate(k, 0, Case().rope) is k


@LAYOUTS
@pytest.mark.parametrize(("start", "length"), PAGE_EDGES)
@pytest.mark.parametrize("skipped", [frozenset(), frozenset({0})], ids=["", "skipped"])
def test_what_is_spliced_is_captured(
    kind: type[CpuVecLayout] | type[StridedLayout], start: int, length: int, skipped: frozenset[int]
) -> None:
    case = Case(start=start, length=length, skipped=skipped)
    layout: Layout = layout_of(case, kind)
    caches, (k, v) = case.poisoned(), case.rows()
    at = (case.table, case.block_size, start)
    splice_reference.splice(caches, layout, *at, k, v, 0, case.rope)
    got_k, got_v = capture_reference.capture(caches, layout, *at, length)
    held = case.held()
    assert same_bits(got_k[:, held], k[:, held]) and same_bits(got_v[:, held], v[:, held])
    assert not got_k[:, ~held].any() and not got_v[:, ~held].any()
    for cache in caches:
        assert int(cache.isfinite().sum()) == 2 * int(held.sum()) * case.heads * case.head_dim


@LAYOUTS
def test_a_block_table_that_is_too_short_is_an_index_error(kind: type[CpuVecLayout] | type[StridedLayout]) -> None:
    case = Case(start=10, length=60)
    with pytest.raises(IndexError):
        capture_reference.capture(case.poisoned(), layout_of(case, kind), case.table[:1], case.block_size, 10, 60)
