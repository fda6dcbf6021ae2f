"""Repair policies: spans within cubes and budget, by deviation and by relevance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memos_vllm.activation.repair import Placed, deviation, pack, parse_policy, unpack
from memos_vllm.activation.repair.budget import GAP, MOST_SPANS, choose, runs
from memos_vllm.activation.repair.scored import MOST_MIXED
from memos_vllm.errors import BadInput

SHARES = ("0.02", "0.15", ".5", "1")
SCORED = ("deviation", "guided", "mixed")
NAMES = ("none", "head:1", "head:16", "full", *(f"{name}:{share}" for name in SCORED for share in SHARES))


@st.composite
def placed(draw: st.DrawFn) -> list[Placed]:
    """Cubes of a prompt with some, all or none of the measurements, gaps of text between them."""
    cubes, position = [], draw(st.integers(0, 40))
    for index in range(draw(st.integers(1, 5))):
        length = draw(st.integers(1, 150))
        values = st.floats(0, 2, allow_nan=False, width=32)
        moved = draw(st.none() | st.lists(values, min_size=length, max_size=length))
        edges = sorted(draw(st.sets(st.integers(0, length), max_size=6)))
        fits = [(a, b, draw(st.floats(0, 9))) for a, b in itertools.pairwise(edges)] or None
        cubes.append(Placed(position, length, index == 0 and draw(st.booleans()), moved, fits))
        position += length + draw(st.integers(0, 30))
    return cubes


@given(placed(), st.sampled_from(NAMES))
def test_spans_stand_in_order_within_cubes_and_budget(cubes: list[Placed], name: str) -> None:
    spans = parse_policy(name).spans(cubes)
    assert all(start < end for start, end in spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    homes = [next(cube for cube in cubes if cube.start <= a and b <= cube.start + cube.length) for a, b in spans]
    size = sum(end - start for start, end in spans)
    kind, _, amount = name.partition(":")
    if kind in SCORED:
        assert size <= float(amount) * sum(cube.length for cube in cubes)
        assert all(sum(home is cube for home in homes) <= MOST_SPANS for cube in cubes)
    if name != "full":
        assert not any(home.exact for home in homes)
    else:
        assert size == sum(cube.length for cube in cubes)


@given(st.lists(st.booleans(), max_size=400))
def test_runs_hold_what_was_chosen_and_leave_only_wide_gaps(chosen: list[bool]) -> None:
    found = runs(np.array(chosen, dtype=bool))
    inside = {place for start, end in found for place in range(start, end)}
    assert {place for place, wanted in enumerate(chosen) if wanted} <= inside
    assert all(b[0] - a[1] >= GAP for a, b in itertools.pairwise(found))
    assert len(found) <= MOST_SPANS
    assert all(chosen[start] and chosen[end - 1] for start, end in found)


@given(placed(), st.integers(0, 200), st.randoms(use_true_random=False))
def test_choose_takes_the_lowest_level_that_fits(cubes: list[Placed], budget: int, rng: object) -> None:
    values = np.random.default_rng(len(cubes) + budget)
    scores = [values.integers(0, 12, cube.length).astype(float) for cube in cubes]

    def at(level: float) -> list[tuple[int, int]]:
        return [
            (cube.start + a, cube.start + b)
            for cube, score in zip(cubes, scores, strict=True)
            if not cube.exact
            for a, b in runs(score >= level)
        ]

    fitting = [at(level) for level in range(1, 12) if sum(b - a for a, b in at(level)) <= budget]
    assert choose(cubes, scores, budget) == (fitting[0] if fitting else [])


def test_the_budget_goes_where_tokens_moved() -> None:
    moved = [0.0] * 100
    moved[40:44] = [1.0] * 4
    cubes = [Placed(10, 100, exact=True), Placed(110, 100, deviation=moved), Placed(210, 100, deviation=[0.0] * 100)]
    (span,) = parse_policy("deviation:0.05").spans(cubes)
    assert span[0] == 150
    assert 154 <= span[1] <= 165


def test_the_query_chooses_among_tokens_that_moved() -> None:
    moved = [0.0] * 100
    moved[10:14] = moved[60:64] = [1.0] * 4
    cube = Placed(0, 100, deviation=moved, relevance=[(0, 50, 0.0), (50, 80, 3.0), (80, 100, 3.0)])
    (span,) = parse_policy("mixed:0.1").spans([cube])
    assert span[0] == 60
    assert span[1] <= 70
    assert len(parse_policy("deviation:0.28").spans([cube])) == 2


def test_mixed_spends_no_more_on_longer_memories() -> None:
    cubes = [Placed(start, 4000, deviation=[1.0, 0.0] * 2000) for start in (0, 4000)]
    assert sum(end - start for start, end in parse_policy("mixed:0.15").spans(cubes)) <= MOST_MIXED
    settled = [Placed(0, 400, deviation=[0.1] * 400)]
    assert parse_policy("mixed:0.15").spans(settled) == []
    assert parse_policy("deviation:1").spans(settled) == [(0, 400)]


def test_without_measurements_heads_are_repaired() -> None:
    cubes = [Placed(0, 50), Placed(50, 50)]
    for name in ("deviation:0.2", "guided:0.2", "mixed:0.2"):
        assert parse_policy(name).spans(cubes) == [(0, 10), (50, 60)]


def test_measurements_are_asked_for_only_where_they_are_used() -> None:
    policies = {name.partition(":")[0]: parse_policy(name) for name in NAMES}
    assert {name for name, policy in policies.items() if policy.needs_relevance} == {"guided", "mixed"}
    assert {name for name, policy in policies.items() if policy.needs_deviation} == {"deviation", "mixed"}


@pytest.mark.parametrize(
    "text", ["deviation", "deviation:0", "deviation:1.5", "guided:x", "mixed:-1", "mixed:1e-3", "none:1", "head:99999"]
)
def test_what_is_no_policy_is_refused_with_the_names_of_those_that_are(text: str) -> None:
    with pytest.raises(BadInput, match=r"none, head:K .*deviation:R, guided:R or mixed:R .* or full"):
        parse_policy(text)


def test_deviation_is_the_mean_relative_change_of_keys_and_values() -> None:
    generator = torch.Generator().manual_seed(0)
    k1, v1 = (torch.randn(3, 5, 2, 4, generator=generator) for _ in range(2))
    k2, v2 = k1.clone(), v1.clone()
    k2[1, 2] *= 1.5
    v2[0, 4] = -v1[0, 4]
    expected = torch.zeros(5)
    expected[2], expected[4] = 0.5 / 6, 2 / 6
    torch.testing.assert_close(deviation(k1, v1, k2, v2), expected)
    assert deviation(k1.bfloat16(), v1.bfloat16(), k2.bfloat16(), v2.bfloat16()).dtype == torch.float32


@given(st.lists(st.floats(0, 5), max_size=50))
def test_deviations_survive_a_byte_each(values: list[float]) -> None:
    stored = pack(values)
    assert len(stored) == len(values)
    assert list(unpack(stored)) == pytest.approx([min(value, 2.0) for value in values], abs=0.5 / 127.5 + 1e-9)
