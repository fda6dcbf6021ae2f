"""Quartiles, ratios and break-even of the benchmark."""

from __future__ import annotations

import random

import numpy as np
import pytest

from memos_vllm.bench.arms import ARMS
from memos_vllm.bench.stats import Build, Quartiles, break_even, summarise
from tests.unit.bench_cases import BUILDS, samples


@pytest.mark.parametrize("count", [1, 2, 3, 10, 11, 100])
def test_quartiles_are_numpys(count: int) -> None:
    rng = random.Random(count)
    values = [rng.lognormvariate(0, 1) for _ in range(count)]
    found = Quartiles.of(values)
    assert [found.q1, found.median, found.q3] == pytest.approx(np.percentile(values, [25, 50, 75]).tolist())


def test_quartiles_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        Quartiles.of([])


@pytest.mark.parametrize(
    ("build", "saved", "uses"), [(3.0, 1.0, 3), (3.1, 1.0, 4), (0.5, 1.0, 1), (3.0, 0.0, None), (3.0, -1.0, None)]
)
def test_break_even(build: float, saved: float, uses: int | None) -> None:
    assert break_even(build, saved) == uses


def test_summary_has_a_row_for_each_arm_at_each_size() -> None:
    rows = summarise(samples(), BUILDS, ARMS)
    assert [(row.context, row.query, row.arm) for row in rows] == [
        (context, query, arm.name) for context in (600, 6000) for query in (100, 900) for arm in ARMS
    ]
    assert {row.samples for row in rows} == {5}


def test_summary_compares_medians() -> None:
    rows = {row.arm: row for row in summarise(samples(), BUILDS, ARMS) if (row.context, row.query) == (600, 100)}
    floor, reordered, text, spliced, *_ = (rows[arm.name] for arm in ARMS[1:])
    assert floor.to_floor == reordered.speed_up == 1.0
    assert spliced.to_floor == pytest.approx(spliced.median / floor.median)
    assert spliced.speed_up == pytest.approx(reordered.median / spliced.median)
    assert spliced.break_even == break_even(0.2, reordered.median - spliced.median)
    assert text.break_even is None
    assert floor.q1 <= floor.median <= floor.q3


def test_one_outlier_does_not_move_a_median() -> None:
    calm, wild = samples(), samples(outlier=50.0)
    before, after = (summarise(found, BUILDS, ARMS) for found in (calm, wild))
    assert [row.median for row in before] == [row.median for row in after]


def test_break_even_uses_the_median_build() -> None:
    slow = [*BUILDS, Build(600, 90.0, (30.0, 30.0, 30.0), 1)]
    assert [row.break_even for row in summarise(samples(), slow, ARMS)] == [
        row.break_even for row in summarise(samples(), BUILDS, ARMS)
    ]
