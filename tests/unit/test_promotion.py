"""Which cubes become K/V: the cost model and the verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.scheduler.promotion import NEW_CUBE, Candidate, CostModel, judge

MODEL = CostModel(prefill=1000.0, copy=1e9, overhead=0.005, bytes_per_token=1000)
LONG = Candidate(tokens=400, repaired=16, scaffold=40)

candidates = st.builds(
    Candidate,
    tokens=st.integers(1, 4096),
    repaired=st.just(0),
    scaffold=st.integers(0, 200),
    heat=st.floats(0, 1000),
    pinned=st.just(False),
)
models = st.builds(
    CostModel,
    prefill=st.floats(10, 1e6),
    copy=st.floats(1e6, 1e12),
    overhead=st.floats(0, 1),
    bytes_per_token=st.integers(1, 1 << 20),
)


def test_the_sums_are_those_of_the_formulas() -> None:
    assert MODEL.saving(100, 16) == pytest.approx(84 / 1000 - 0.005 - 100e3 / 1e9)
    assert MODEL.building(100, 40) == pytest.approx(140 / 1000 + 100e3 / 1e9)


def test_long_hot_cold_and_short() -> None:
    assert judge(LONG, MODEL, "auto").cause == "long"
    middling = Candidate(tokens=40, repaired=16, scaffold=100)
    assert judge(middling, MODEL, "auto").cause == "cold"
    assert judge(replace(middling, heat=20.0), MODEL, "auto").cause == "hot"
    short = judge(Candidate(tokens=16, repaired=16, scaffold=10, heat=1e6), MODEL, "auto")
    assert (short.promote, short.cause) == (False, "short") and short.saves < 0


def test_the_heat_that_a_cold_cube_is_said_to_need_is_enough() -> None:
    cold = Candidate(tokens=40, repaired=16, scaffold=100, heat=1.0)
    verdict = judge(cold, MODEL, "auto")
    needed = MODEL.building(40, 100) / verdict.saves - NEW_CUBE
    assert f"{needed:.1f}" in verdict.reason
    assert judge(replace(cold, heat=needed + 0.01), MODEL, "auto").promote
    assert not judge(replace(cold, heat=needed - 0.01), MODEL, "auto").promote


def test_a_pin_wins_over_cost_and_a_mode_over_a_pin() -> None:
    short = Candidate(tokens=3, repaired=3, scaffold=0, pinned=True)
    assert judge(short, MODEL, "auto").cause == "pinned" and judge(short, MODEL, "auto").promote
    assert not judge(short, MODEL, "off").promote
    assert judge(replace(short, pinned=False), MODEL, "all").promote


@settings(deadline=None)
@given(candidates, models)
def test_a_use_more_or_a_pin_never_demotes(cube: Candidate, model: CostModel) -> None:
    if judge(cube, model, "auto").promote:
        assert judge(replace(cube, heat=cube.heat + 1), model, "auto").promote
        assert judge(replace(cube, scaffold=0), model, "auto").promote
        assert judge(replace(cube, pinned=True), model, "auto").promote


@settings(deadline=None)
@given(candidates, models)
def test_what_is_promoted_for_its_cost_pays(cube: Candidate, model: CostModel) -> None:
    verdict = judge(cube, model, "auto")
    if verdict.promote:
        assert verdict.saves * (NEW_CUBE + cube.heat) > model.building(cube.tokens, cube.scaffold)


def test_the_rate_is_the_difference_of_two_prefills() -> None:
    measured = MODEL.measured(short=(32, 0.132), long=(232, 0.332))
    assert measured.prefill == pytest.approx(1000.0)
    for nonsense in ((32, 0.5), (232, 0.1)):
        assert MODEL.measured(short=(32, 0.2), long=nonsense) == MODEL


def test_loads_move_the_copy_rate_and_small_ones_do_not() -> None:
    model = MODEL
    for _ in range(100):
        model = model.loaded(4 << 20, 0.005 + (4 << 20) / 2e9, splices=1)
    assert model.copy == pytest.approx(2e9, rel=0.01)
    assert MODEL.loaded(1000, 1.0, 1) == MODEL
    assert MODEL.loaded(4 << 20, 0.0, 1) == MODEL
    assert MODEL.loaded(4 << 20, 0.001, 1).copy > 0
