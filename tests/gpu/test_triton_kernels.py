"""The Triton kernels on a GPU: the same cases as under the interpreter, and rows that come from the host."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from memos_kernels.capture import capture
from memos_kernels.dispatch import Implementation, choose
from memos_kernels.layout import StridedLayout
from memos_kernels.splice import splice

from tests.unit.kernels.cases import EPSILON, ORDERS, PAGE_EDGES, Case, cases, check_capture, check_splice, same_bits

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]


def check(case: Case, order: str = "LBHNC") -> None:
    layout = StridedLayout(case.head_dim)

    def do_splice(caches: Sequence[torch.Tensor], table: torch.Tensor, start: int, *rest: object) -> None:
        assert choose(caches, layout) is Implementation.TRITON
        splice(caches, layout, table, case.block_size, start, *rest)  # type: ignore[arg-type]

    def do_capture(
        caches: Sequence[torch.Tensor], table: torch.Tensor, start: int, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        capture(caches, layout, table, case.block_size, start, k.shape[1], (k, v))

    check_splice(case, layout, do_splice, order, "cuda")
    check_capture(case, layout, do_capture, order, "cuda")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_physical_layouts(order: str, dtype: torch.dtype) -> None:
    check(Case(dtype, block_size=16, start=5, length=400, delta=-77), order)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize(("start", "length"), PAGE_EDGES)
def test_page_edges(start: int, length: int, dtype: torch.dtype) -> None:
    check(Case(dtype, block_size=16, start=start, length=length, delta=1000))


@given(case=cases(block_sizes=(16, 32, 64, 128), head_dims=(32, 64, 80, 96, 128, 192, 256), longest=700))
@settings(max_examples=100, deadline=None)
def test_any_call(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
@pytest.mark.parametrize("on_device", [False, True], ids=["host table", "device table"])
def test_rows_from_the_host_and_back(pinned: bool, on_device: bool) -> None:
    case = Case(torch.bfloat16, 16, 128, heads=8, layers=4, start=3, length=1000)
    layout, (k, v) = StridedLayout(128), case.rows()
    if pinned:
        k, v = k.pin_memory(), v.pin_memory()
    table = case.table.cuda() if on_device else case.table
    caches = case.poisoned("LBNHC", "cuda")
    splice(caches, layout, table, 16, 3, k, v, 0, case.rope)
    got_k, got_v = capture(caches, layout, table, 16, 3, 1000)
    assert same_bits(got_k, k) and same_bits(got_v, v)


def test_a_slot_past_two_to_the_thirty_one_elements() -> None:
    """Offsets are 64 bits wide: 5 GB of cache in one layer."""
    blocks = 2**31 // (16 * 8 * 256) + 100
    cache = torch.zeros(blocks, 8, 16, 256, dtype=torch.bfloat16, device="cuda")
    case = Case(torch.bfloat16, 16, 128, heads=8, layers=1, length=16)
    (k, v), table = case.rows(), torch.tensor([blocks - 1])
    splice([cache], StridedLayout(128), table, 16, 0, k, v, 0, case.rope)
    got_k, got_v = capture([cache], StridedLayout(128), table, 16, 0, 16)
    assert same_bits(got_k, k) and same_bits(got_v, v)
