"""The Triton kernels under Triton's interpreter; tests/gpu/ runs the same cases natively."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from memos_kernels.layout import StridedLayout
from memos_kernels.rotation import Rotation

from tests.unit.kernels.cases import EPSILON, ORDERS, Case, cases, check_capture, check_splice

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter would stand in for the GPU's tests")
FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def kernels() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The kernels' modules, imported while the interpreter is on: Triton decides when a kernel is defined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        from memos_kernels.capture import triton as capture_triton
        from memos_kernels.splice import triton as splice_triton

        yield capture_triton, splice_triton


def check(case: Case, kernels: tuple[ModuleType, ModuleType], order: str = "LBHNC") -> None:
    layout = StridedLayout(case.head_dim)

    def splice(caches: Sequence[torch.Tensor], table: torch.Tensor, start: int, *rest: object) -> None:
        kernels[1].splice(caches, layout, table, start, *rest)

    def capture(
        caches: Sequence[torch.Tensor], table: torch.Tensor, start: int, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        kernels[0].capture(caches, layout, table, start, k, v)

    check_splice(case, layout, splice, order)
    check_capture(case, layout, capture, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_physical_layouts(order: str, dtype: torch.dtype, kernels: tuple[ModuleType, ModuleType]) -> None:
    check(Case(dtype, block_size=16, start=5, length=40, delta=-77), kernels, order)


@pytest.mark.parametrize(("start", "length"), [(0, 1), (15, 1), (0, 15), (0, 16), (1, 16), (3, 17), (31, 33), (16, 64)])
def test_page_edges(start: int, length: int, kernels: tuple[ModuleType, ModuleType]) -> None:
    check(Case(torch.bfloat16, block_size=16, start=start, length=length, delta=1000, layers=1), kernels)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192])
@pytest.mark.parametrize("interleaved", [False, True], ids=["neox", "interleaved"])
@pytest.mark.parametrize("rotary_part", [1.0, 0.5, 0.25])
def test_rotary_dimensions(
    head_dim: int, interleaved: bool, rotary_part: float, kernels: tuple[ModuleType, ModuleType]
) -> None:
    shape = {"head_dim": head_dim, "rotary_dim": int(head_dim * rotary_part), "interleaved": interleaved}
    check(Case(**shape, length=20, layers=1, delta=131072), kernels)  # type: ignore[arg-type]


@given(case=cases(block_sizes=(16, 32), head_dims=(32, 80), longest=70))
@FEW
def test_any_call(case: Case, kernels: tuple[ModuleType, ModuleType]) -> None:
    check(case, kernels)


def test_more_rows_than_the_staging_memory_holds(
    kernels: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels[0], "STAGING_BYTES", 2 * 2 * 2 * 64 * 4 * 9)
    case = Case(block_size=16, start=3, length=40, skipped=frozenset({1}))

    def capture(
        caches: Sequence[torch.Tensor], table: torch.Tensor, start: int, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        # Rows that are not dense take the same way as rows on another device.
        wide = [torch.stack([rows, rows], dim=2).flatten(2, 3)[:, :, : case.heads] for rows in (k, v)]
        assert not wide[0][0].is_contiguous()
        kernels[0].capture(caches, StridedLayout(64), table, start, *wide)
        k.copy_(wide[0])
        v.copy_(wide[1])

    check_capture(case, StridedLayout(64), capture)


def test_bad_block_tables_are_index_errors(kernels: tuple[ModuleType, ModuleType]) -> None:
    case = Case(length=40)
    caches, (k, v) = case.poisoned(), case.rows()
    rope: Rotation = case.rope
    for table in (case.table[:1], case.table + 100):
        with pytest.raises(IndexError):
            kernels[1].splice(caches, StridedLayout(64), table, 0, k, v, 0, rope)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from memos_kernels.capture.triton import _capture_kernel
from memos_kernels.splice.triton import _splice_kernel

POINTERS = {"layers": "*i64", "table": "*i64", "k": "*bf16", "v": "*bf16", "cosines": "*fp32", "sines": "*fp32"}
SHAPE = {"head_dim": 80, "alignment": 16, "tile_tokens": 16, "width": 128}
for kernel, more in [
    (_capture_kernel, {}),
    (_splice_kernel, {"half": 0, "interleaved": False}),
    (_splice_kernel, {"half": 40, "interleaved": False}),
    (_splice_kernel, {"half": 16, "interleaved": True}),
]:
    constants = SHAPE | more
    types = {name: "constexpr" if name in constants else POINTERS.get(name, "i32") for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(ASTSource(kernel, types, values), target=GPUTarget("cuda", 90, 32))
    print(len(compiled.asm["cubin"]) > 0)
"""


def test_they_compile_for_a_hopper_gpu_without_one() -> None:
    """What the interpreter lets through, the compiler might not."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"] * 4, done.stderr
