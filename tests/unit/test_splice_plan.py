"""Plans: composing, covering, signing, refusing."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_vllm.activation.compose import Part, capture_plan, compose
from memos_vllm.activation.plan import PARAMS_KEY, Segment, SplicePlan, Window, merge, sign, validate, verify
from memos_vllm.activation.repair import parse_policy
from memos_vllm.errors import BadInput, PlanRefused

SECRET = b"s" * 32

part_lists = st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=8)


def parts_of(shapes: list[tuple[int, bool]]) -> list[Part]:
    return [Part(range(n, n + length), f"key{n}" if keyed else None) for n, (length, keyed) in enumerate(shapes)]


@given(
    scaffold=st.integers(0, 20),
    scaffold_keyed=st.booleans(),
    shapes=part_lists,
    policy=st.sampled_from(["none", "head:3", "full"]),
)
def test_a_composed_plan_covers_everything_up_to_its_last_cube(
    scaffold: int, scaffold_keyed: bool, shapes: list[tuple[int, bool]], policy: str
) -> None:
    parts = parts_of(shapes)
    plan = compose(Part(range(scaffold), "s" if scaffold_keyed else None), parts, parse_policy(policy))
    keyed = [part for part in parts if part.key and part.ids]
    if plan is None:
        assert not keyed
        return
    validate(plan)
    prompt = [*range(scaffold), *(token for part in parts for token in part.ids)]
    for segment in plan.segments:
        source = next((part for part in keyed if part.key == segment.key), Part(range(scaffold)))
        assert prompt[segment.start : segment.end] == list(source.ids)
    recomputed = sum(window.length for window in plan.windows)
    assert recomputed == len({position for w in plan.windows for position in range(w.start, w.end)})
    if policy == "full":
        assert recomputed >= plan.cover - scaffold
    assert verify(sign(plan, SECRET), SECRET, [*prompt, 1, 2, 3]) == plan


def test_a_cube_at_its_origin_needs_no_repair() -> None:
    cubes = [Part(range(30), "a"), Part(range(30), "b")]
    plan = compose(Part(range(10), "s"), cubes, parse_policy("head:16"))
    assert plan is not None
    assert plan.windows == (Window(40, 16),)
    assert plan.segments == (Segment("s", 0, 10), Segment("a", 10, 30), Segment("b", 40, 30))


def test_equal_plans_have_equal_digests_and_others_do_not() -> None:
    scaffold, cubes = Part(range(10), "s"), [Part(range(30), "a"), Part(range(40), "b")]
    plans = [
        compose(scaffold, order, parse_policy(p)) for order in (cubes, cubes[::-1]) for p in ("none", "head:4", "full")
    ]
    again = [
        compose(scaffold, order, parse_policy(p)) for order in (cubes, cubes[::-1]) for p in ("none", "head:4", "full")
    ]
    digests = [plan.digest() for plan in plans if plan]
    assert digests == [plan.digest() for plan in again if plan]
    assert len(set(digests)) == 6


@pytest.mark.parametrize(
    "broken",
    [
        SplicePlan(segments=(Segment("a", 0, 5),), cover=6),
        SplicePlan(segments=(Segment("a", 0, 5), Segment("b", 4, 5)), cover=9),
        SplicePlan(segments=(Segment("a", 0, 5),), windows=(Window(3, 9),), cover=5),
        SplicePlan(segments=(Segment("a", 0, 0),), cover=0),
        SplicePlan(windows=(Window(-2, 7),), cover=5),
        SplicePlan(windows=(Window(2, 3), Window(0, 2)), cover=5),
    ],
)
def test_a_plan_that_breaks_its_invariants_is_refused(broken: SplicePlan) -> None:
    with pytest.raises(PlanRefused):
        sign(broken, SECRET)


def test_a_signed_plan_cannot_be_altered_or_moved() -> None:
    plan = capture_plan(Part(range(5), "s"), Part(range(5, 20), "a"))
    params, prompt = sign(plan, SECRET), list(range(20))
    assert verify(params, SECRET, prompt) == plan
    assert verify(None, SECRET, prompt) is None
    assert verify({"other": 1}, SECRET, prompt) is None
    altered = params[PARAMS_KEY]["plan"].replace('"a"', '"b"')
    for bad, ids, secret in (
        ({PARAMS_KEY: params[PARAMS_KEY] | {"plan": altered}}, prompt, SECRET),
        (params, prompt[:-1], SECRET),
        (params, [*prompt[:-1], 99], SECRET),
        (params, prompt, b"t" * 32),
    ):
        with pytest.raises(PlanRefused):
            verify(bad, secret, ids)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_junk_in_the_plans_place_is_refused(junk: object) -> None:
    if junk is not None:
        with pytest.raises(PlanRefused):
            verify({PARAMS_KEY: junk}, SECRET, [1, 2, 3])
    if junk is not None and not isinstance(junk, dict):
        with pytest.raises(PlanRefused):
            verify(junk, SECRET, [1, 2, 3])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10))))
def test_merge_is_the_union(pairs: list[tuple[int, int]]) -> None:
    spans = [(start, start + length) for start, length in pairs]
    merged = merge(spans)
    assert {p for s, e in merged for p in range(s, e)} == {p for s, e in spans for p in range(s, e)}
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))


@pytest.mark.parametrize(
    "text", ["", "head", "head:", "head:0", "head:-1", "head:x", "head:5000", "Full", "none:1", "deviation:2"]
)
def test_an_unknown_policy_is_named_with_the_known_ones(text: str) -> None:
    with pytest.raises(BadInput, match="none, head:K"):
        parse_policy(text)


def test_plans_survive_msgspec_round_trips() -> None:
    plan = compose(
        Part(range(4), "s"), [Part(range(9), "a"), Part(range(3)), Part(range(7), "b")], parse_policy("head:2")
    )
    assert msgspec.json.decode(msgspec.json.encode(plan), type=SplicePlan) == plan


def test_a_plan_says_how_dear_its_cubes_are() -> None:
    parts = [Part(range(5), "a", weight=4.0), Part(range(5), "b"), Part(range(5), weight=0.25)]
    plan = compose(Part(range(3), "s"), parts, parse_policy("none"))
    assert plan is not None and plan.weights == {"a": 4.0}
    light = compose(Part(range(3), "s"), [Part(part.ids, part.key) for part in parts], parse_policy("none"))
    assert light is not None and light.digest() == plan.digest(), "the K/V are the same"
