"""The C++ kernels against the oracle, on every instruction set that this machine has."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memos_kernels import capture as capture_package
from memos_kernels import cpu, dispatch
from memos_kernels import splice as splice_package
from memos_kernels.capture import capture
from memos_kernels.capture import cpu as capture_cpu
from memos_kernels.layout import CpuVecLayout, StridedLayout
from memos_kernels.rotation import Rotation
from memos_kernels.splice import cpu as splice_cpu
from memos_kernels.splice import splice

from tests.unit.kernels.cases import EPSILON, PAGE_EDGES, Case, cases, check_capture, check_splice, same_bits

pytestmark = pytest.mark.skipif(not cpu.available(), reason=f"no C++ kernels: {cpu.problem()}")
ISAS = ("avx512_bf16", "avx512", "avx2", "portable")
HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""vLLM's CPU backend has these."""
ANY_ISA = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""The fixture only chooses the kernels: it may serve all examples."""


def forget_choice() -> None:
    for cached in (cpu.problem, cpu.kernels, cpu.isa):
        cached.cache_clear()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(cpu.ISA_ENV, request.param)
    forget_choice()
    if reason := cpu.problem():
        forget_choice()
        pytest.skip(reason)
    yield request.param
    forget_choice()


def do_splice(
    caches: Sequence[torch.Tensor],
    table: torch.Tensor,
    start: int,
    k: torch.Tensor,
    v: torch.Tensor,
    delta: int,
    rope: Rotation,
) -> None:
    layout = CpuVecLayout(k.shape[-1])
    assert cpu.supports(caches, layout)
    splice_cpu.splice(caches, layout, table, start, k, v, delta, rope)


def do_capture(
    caches: Sequence[torch.Tensor], table: torch.Tensor, start: int, k: torch.Tensor, v: torch.Tensor
) -> None:
    layout = CpuVecLayout(k.shape[-1])
    assert cpu.supports(caches, layout)
    capture_cpu.capture(caches, layout, table, start, k, v)


def check(case: Case) -> None:
    check_splice(case, CpuVecLayout(case.head_dim), do_splice)
    check_capture(case, CpuVecLayout(case.head_dim), do_capture)


def test_the_isa_asked_for_is_the_one_in_use(isa: str) -> None:
    assert cpu.isa() == isa


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize(("start", "length"), PAGE_EDGES)
def test_page_edges(isa: str, dtype: torch.dtype, start: int, length: int) -> None:
    check(Case(dtype=dtype, start=start, length=length, delta=-77, layers=1))


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("block_size", [16, 32, 48, 64, 96, 128, 160])
def test_block_and_head_sizes(isa: str, dtype: torch.dtype, head_dim: int, block_size: int) -> None:
    shape = {"dtype": dtype, "head_dim": head_dim, "block_size": block_size, "rotary_dim": head_dim}
    check(Case(**shape, start=7, length=2 * block_size + 3, layers=1, delta=9))  # type: ignore[arg-type]


@given(case=cases(block_sizes=(16, 32, 64, 128), head_dims=(32, 64, 80, 128)))
@ANY_ISA
def test_any_call(isa: str, case: Case) -> None:
    check(case)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("interleaved", [False, True], ids=["neox", "interleaved"])
def test_streaming_stores(isa: str, dtype: torch.dtype, interleaved: bool) -> None:
    """Enough rows that they go past the caches; 2 layers of 2.1 MB of keys in 16 bits."""
    shape = {"heads": 8, "head_dim": 128, "rotary_dim": 128, "block_size": 128, "layers": 2}
    check(Case(dtype, **shape, start=3, length=1050, delta=4097, interleaved=interleaved))  # type: ignore[arg-type]


@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=64, max_size=64), dtype=st.sampled_from(["bf16", "fp16"]))
@ANY_ISA
def test_special_numbers_turn_like_torchs(isa: str, bits: list[int], dtype: str) -> None:
    """Infinities, NaNs, the largest and the smallest numbers; a key whose pair is no number has no number either."""
    kind = torch.bfloat16 if dtype == "bf16" else torch.float16
    case = Case(kind, length=1, heads=1, layers=1, delta=3)
    k = torch.tensor(bits, dtype=torch.int32).to(torch.int16).view(kind).reshape(1, 1, 1, 64)
    caches, layout = case.poisoned(), CpuVecLayout(64)
    do_splice(caches, case.table, 0, k, torch.zeros_like(k), 3, case.rope)
    got = capture(caches, layout, case.table, 32, 0, 1)[0].float()
    wanted = splice_package.rotate(k, 3, case.rope).float()
    assert torch.equal(got.isnan(), wanted.isnan())
    size = k.float().nan_to_num(0, 0, 0).abs().max()
    finite = wanted.isfinite() & got.isfinite()
    assert ((got - wanted)[finite].abs() <= EPSILON[kind] * size + 2e-38).all()
    overflow = 3e38 if kind is torch.bfloat16 else 65000.0
    assert (wanted[~finite & ~wanted.isnan()].nan_to_num(0, 4e38, -4e38).abs() >= overflow).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(Case(torch.bfloat16, start=5, length=333, layers=3, delta=11))
    finally:
        torch.set_num_threads(before)


def test_calls_from_many_threads_at_once() -> None:
    """The interpreter is let go during the work; another thread's call must not disturb it."""
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for _ in range(10):
                check(Case(torch.bfloat16, start=seed, length=200, delta=seed, seed=seed))
        except BaseException as error:  # noqa: BLE001 (handed to the test)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_no_tokens_are_no_work() -> None:
    case = Case()
    caches = case.poisoned()
    k, v = case.rows()
    splice(caches, CpuVecLayout(64), case.table, 32, 0, k[:, :0], v[:, :0], 5, case.rope)
    assert all(bool(cache.isnan().all()) for cache in caches)
    assert capture(caches, CpuVecLayout(64), case.table, 32, 0, 0)[0].shape == (2, 0, 2, 64)


def test_wrong_arguments_are_refused() -> None:
    case = Case(length=40)
    caches, (k, v), layout = case.poisoned(), case.rows(), CpuVecLayout(64)
    at = (caches, layout, case.table, 32)
    with pytest.raises(IndexError, match="too short"):
        splice(caches, layout, case.table[:1], 32, 0, k, v, 0, case.rope)
    with pytest.raises(IndexError, match="past the end"):
        splice(caches, layout, case.table + 100, 32, 0, k, v, 0, case.rope)
    with pytest.raises(ValueError, match="rows are"):
        splice(*at, 0, k[:1], v, 0, case.rope)
    with pytest.raises(ValueError, match="rows are"):
        splice(*at, 0, k, v[:, :5], 0, case.rope)
    with pytest.raises(ValueError, match="rows are"):
        splice(*at, 0, k.half(), v.half(), 0, case.rope)
    with pytest.raises(ValueError, match="out holds"):
        capture(*at, 0, 5, out=(k.clone(), v.clone()))
    with pytest.raises(ValueError, match="rotary"):
        splice(*at, 0, k, v, 1, Rotation(torch.ones(33)))
    assert all(bool(cache.isnan().all()) for cache in caches)


def test_captured_rows_can_go_into_given_tensors() -> None:
    case = Case(torch.bfloat16, length=50)
    caches, layout, (k, v) = case.poisoned(), CpuVecLayout(64), case.rows()
    splice(caches, layout, case.table, 32, 0, k, v, 0, case.rope)
    out = (torch.empty_like(k), torch.empty_like(v))
    got = capture(caches, layout, case.table, 32, 0, 50, out=out)
    assert got[0] is out[0] and got[1] is out[1]
    assert same_bits(out[0], k) and same_bits(out[1], v)


def test_what_the_kernels_do_not_know_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    caches = case.poisoned()
    chosen = dispatch.choose
    assert chosen(caches, CpuVecLayout(64)) is dispatch.Implementation.CPU
    assert chosen(caches, StridedLayout(64)) is dispatch.Implementation.REFERENCE
    assert chosen([cache.double() for cache in caches], CpuVecLayout(64)) is dispatch.Implementation.REFERENCE
    assert chosen([caches[0], caches[1][:3]], CpuVecLayout(64)) is dispatch.Implementation.REFERENCE
    monkeypatch.setenv(dispatch.ENV, "reference")
    assert chosen(caches, CpuVecLayout(64)) is dispatch.Implementation.REFERENCE
    monkeypatch.setenv(dispatch.ENV, "fastest")
    with pytest.raises(ValueError, match="'auto' or 'reference'"):
        chosen(caches, CpuVecLayout(64))


@pytest.mark.parametrize("wanted", ["auto", "reference"])
def test_the_entry_points_agree(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.ENV, wanted)

    def by_splice(caches: Sequence[torch.Tensor], table: torch.Tensor, start: int, *rest: object) -> None:
        splice_package.splice(caches, CpuVecLayout(64), table, 32, start, *rest)  # type: ignore[arg-type]

    def by_capture(
        caches: Sequence[torch.Tensor], table: torch.Tensor, start: int, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        capture_package.capture(caches, CpuVecLayout(64), table, 32, start, k.shape[1], (k, v))

    case = Case(torch.bfloat16, start=9, length=100, delta=-3, skipped=frozenset({1}))
    check_splice(case, CpuVecLayout(64), by_splice)
    check_capture(case, CpuVecLayout(64), by_capture)


def test_an_unknown_isa_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu.ISA_ENV, "mmx")
    forget_choice()
    assert cpu.problem() == f"{cpu.ISA_ENV}: this machine's kernels are {cpu_names()}, not mmx"
    forget_choice()


def cpu_names() -> str:
    from memos_kernels import _cpu

    names = []
    for name in ISAS:
        try:
            names.append(_cpu.Cpu(name).isa)
        except ValueError:
            continue
    return ", ".join(names)


def test_a_process_has_one_openmp_runtime_and_the_wanted_threads() -> None:
    """Two runtimes would each keep threads of its own on the same cores."""
    program = """
import os, torch
from memos_kernels import cpu, splice
from tests.unit.kernels.cases import Case
from memos_kernels.layout import CpuVecLayout
torch.set_num_threads(3)
torch.ones(1000, 1000) @ torch.ones(1000, 1000)
torch.ones(1_000_000).exp_()
before = len(os.listdir("/proc/self/task"))
case = Case(torch.bfloat16, length=500)
splice.splice(case.poisoned(), CpuVecLayout(64), case.table, 32, 0, *case.rows(), 5, case.rope)
after = len(os.listdir("/proc/self/task"))
paths = {line.split()[-1] for line in open("/proc/self/maps")}
print(cpu.available(), after - before, sum("omp.so" in path or "omp5.so" in path for path in paths))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0", "1"]
