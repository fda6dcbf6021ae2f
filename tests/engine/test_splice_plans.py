"""Random plans against plain vLLM and against transformers."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memos_vllm.activation.compose import Part
from memos_vllm.activation.plan import SplicePlan, Window
from tests.engine.harness import VOCAB, Engine, Oracle, plan_for, prompt_of

TOLERANCE = 1e-3
"""max |Δ logprob| in float32."""
MAX_PROMPT = 3000

Shape = tuple[int, int, list[tuple[int, int]], int]
"""Seed, scaffold length, (gap length, cube length) of each cube, length of the text behind them."""


@pytest.fixture(scope="module")
def oracle(random_llama: Path) -> Oracle:
    return Oracle(random_llama)


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(2, VOCAB - 2) for _ in range(count)]


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """(seed, scaffold length, [(gap length, cube length)], trailing text length)."""
    cubes = draw(
        st.lists(st.tuples(st.sampled_from([0, 0, 1, 5, 32, 61]), st.integers(1, 300)), min_size=1, max_size=8)
    )
    return draw(st.integers(0, 2**32)), draw(st.integers(1, 70)), cubes, draw(st.integers(1, 40))


def build(engine: Engine, shape: Shape) -> tuple[Part, list[Part], list[int]]:
    """Capture the shape's cubes, in another order than they will stand in."""
    seed, scaffold_length, cubes, rest = shape
    rng = random.Random(seed)
    scaffold = engine.scaffold(tokens(rng, scaffold_length))
    parts = []
    for gap, length in cubes:
        if gap:
            parts.append(Part(tokens(rng, gap)))
        parts.append(engine.capture(scaffold, tokens(rng, length)))
    rng.shuffle(parts)
    return scaffold, parts, tokens(rng, rest)


def recut(plan: SplicePlan, seed: int) -> SplicePlan:
    """The same plan with its windows cut into up to twelve pieces in all."""
    rng, windows = random.Random(seed), list(plan.windows)
    while len(windows) < 12:
        index = rng.randrange(len(windows))
        window = windows[index]
        if window.length < 2:
            break
        cut = rng.randrange(1, window.length)
        windows[index : index + 1] = [Window(window.start, cut), Window(window.start + cut, window.length - cut)]
    return msgspec.structs.replace(plan, windows=tuple(windows))


@given(shape=shapes())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_full_repair_equals_plain_vllm(engine: Engine, shape: Shape) -> None:
    scaffold, parts, rest = build(engine, shape)
    prompt = prompt_of(scaffold, parts, rest)
    if len(prompt) > MAX_PROMPT:
        return
    plain = engine.ask(prompt)
    plan = plan_for(scaffold, parts, "full")
    for candidate in (plan, recut(plan, shape[0])):
        repaired = engine.ask(prompt, candidate)
        assert repaired.tokens == plain.tokens
        assert repaired.distance(plain) <= TOLERANCE
        assert "fallback" not in repaired.report
        assert repaired.report["spliced"] + repaired.report["repaired"] == plan.cover


@pytest.mark.parametrize("policy", ["none", "head:16"])
@given(shape=shapes())
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_splice_equals_the_oracle(engine: Engine, oracle: Oracle, policy: str, shape: Shape) -> None:
    scaffold, parts, rest = build(engine, shape)
    prompt = prompt_of(scaffold, parts, rest)
    if len(prompt) > MAX_PROMPT:
        return
    plan = plan_for(scaffold, parts, policy)
    answer = engine.ask(prompt, plan, tokens=1)
    assert answer.report["repaired"] == sum(window.length for window in plan.windows)
    assert answer.distance(oracle.next_logprobs(plan, scaffold, parts, rest)) <= TOLERANCE


def test_an_unrepaired_splice_differs_from_a_plain_prefill(engine: Engine) -> None:
    """The tests above would prove nothing if splicing changed nothing."""
    scaffold, parts, rest = build(engine, (7, 20, [(0, 120), (0, 90)], 10))
    prompt = prompt_of(scaffold, parts, rest)
    spliced = engine.ask(prompt, plan_for(scaffold, parts, "none"))
    assert spliced.distance(engine.ask(prompt)) > 10 * TOLERANCE


def test_prefill_of_the_oracle_equals_plain_vllm(engine: Engine, oracle: Oracle) -> None:
    scaffold, parts, rest = build(engine, (8, 20, [(0, 120)], 10))
    prompt = prompt_of(scaffold, parts, rest)
    plan = SplicePlan()
    assert engine.ask(prompt).distance(oracle.next_logprobs(plan, scaffold, parts, rest)) <= TOLERANCE


def test_more_windows_than_rows_take_several_steps(engine: Engine) -> None:
    """32 rows a step: the windows ride in order, as many as fit, and the rest of the prompt comes after them."""
    scaffold, parts, rest = build(engine, (9, 30, [(5, 40)] * 8, 10))
    prompt = prompt_of(scaffold, parts, rest)
    plan = plan_for(scaffold, parts, "full")
    windows = tuple(Window(start, min(5, plan.cover - start)) for start in range(30, plan.cover, 5))
    assert len(windows) > 2 * 32
    answer = engine.ask(prompt, msgspec.structs.replace(plan, windows=windows))
    plain = engine.ask(prompt)
    assert answer.tokens == plain.tokens and answer.distance(plain) <= TOLERANCE
    assert answer.report["computed"] == len(prompt) - plan.cover
    assert answer.report["repaired"] == sum(window.length for window in windows)


def test_requests_side_by_side_answer_as_alone(engine: Engine) -> None:
    """Shared cubes, other orders, mixed policies, plain requests between them, in one batch."""
    scaffold, parts, rest = build(engine, (10, 25, [(0, 100), (3, 70), (0, 33)], 12))
    mixed: list[tuple[list[int], SplicePlan | None, None]] = []
    for number, policy in enumerate(["none", "full", "head:16", "none", "full", "head:4"]):
        order = random.Random(number).sample(parts, len(parts))
        mixed.append((prompt_of(scaffold, order, rest), plan_for(scaffold, order, policy), None))
        mixed.append((prompt_of(scaffold, order, rest), None, None))
    together = engine.ask_all(mixed)
    for (prompt, plan, _), answer in zip(mixed, together, strict=True):
        alone = engine.ask(prompt, plan)
        assert answer.tokens == alone.tokens
        assert answer.distance(alone) <= TOLERANCE


def test_preempted_requests_are_spliced_again(engine: Engine) -> None:
    """More requests than 68 blocks hold while they grow: some are preempted, all answer as alone."""
    scaffold, parts, rest = build(engine, (11, 20, [(0, 150), (0, 120)], 10))
    prompt = prompt_of(scaffold, parts, rest)
    before = engine.preemptions()
    plan = plan_for(scaffold, parts, "none")
    together = engine.ask_all([(prompt, plan, None) for _ in range(12)], tokens=120)
    assert engine.preemptions() > before
    alone = engine.ask(prompt, plan, tokens=120)
    assert {tuple(answer.tokens) for answer in together} == {tuple(alone.tokens)}


def test_every_output_of_a_stream_carries_the_report(engine: Engine) -> None:
    """vLLM joins the outputs that a busy API server has not fetched yet, and keeps the last one's parameters."""
    scaffold, parts, rest = build(engine, (77, 30, [(3, 50), (0, 40)], 9))
    reports = engine.reports(prompt_of(scaffold, parts, rest), plan_for(scaffold, parts, "head:4"), tokens=5)
    assert len(reports) == 5
    assert all(report["spliced"] > 0 and report == reports[0] for report in reports)
