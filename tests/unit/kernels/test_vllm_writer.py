"""The C++ kernels against vLLM's own writer of the CPU cache, `cpu_attn_reshape_and_cache`: the same bytes."""

from __future__ import annotations

import pytest
import torch
from memos_kernels.capture import capture
from memos_kernels.layout import CpuVecLayout
from memos_kernels.splice import splice

from tests.unit.kernels.cases import EPSILON, Case, same_bits


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize(
    ("isa", "block_size", "head_dim"),
    [("vec", 32, 64), ("vec", 64, 128), ("vec", 128, 128), ("vec", 128, 256), ("vec16", 16, 64), ("vec16", 32, 80)],
)
def test_what_vllm_writes(dtype: torch.dtype, isa: str, block_size: int, head_dim: int) -> None:
    from vllm import _custom_ops as ops

    case = Case(dtype, block_size, head_dim, layers=1, start=5, length=200)
    ours, theirs = case.poisoned(), case.poisoned()
    layout, at, (k, v) = CpuVecLayout(head_dim), (case.table, block_size, 5), case.rows()
    splice(ours, layout, *at, k, v, 0, case.rope)
    positions = torch.arange(5, 205)
    slots = case.table[positions // block_size] * block_size + positions % block_size
    blocks = theirs[0].shape[0]
    halves = theirs[0].view(blocks, case.heads, 2 * block_size, head_dim).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(k[0].contiguous(), v[0].contiguous(), *halves, slots, isa)
    assert same_bits(ours[0], theirs[0])
    got_k, got_v = capture(theirs, layout, *at, 200)
    assert same_bits(got_k, k) and same_bits(got_v, v)
