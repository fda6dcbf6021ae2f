"""What each policy puts first, and that its scores are what the contract says."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.cube import MemCube
from memos_vllm.scheduler.clock import DAY, seconds_of, stamp_of
from memos_vllm.scheduler.policies import POLICIES, Candidate, Question, policy_named, score_of
from memos_vllm.scheduler.policies.priority import LEVELS
from memos_vllm.vault import Uses
from memos_vllm.vault.words import words_of

NOW = 1_800_000_000.0


def candidate(
    relevance: float = 0.5, *, written: float = 10.0, used: float | None = None, uses: int = 1, **fields: Any
) -> Candidate:
    """written, used: days ago."""
    cube = MemCube.plaintext("tea", owner="maya", **fields)
    header = msgspec.structs.replace(cube.header, updated=stamp_of(NOW - written * DAY))
    last = Uses() if used is None else Uses(uses, float(uses), NOW - used * DAY)
    return Candidate(MemCube(header, cube.payload), relevance, last)


def ranked(name: str, *candidates: Candidate, query: str = "q", types: Any = ()) -> list[int]:
    policy, question = policy_named(name), Question(frozenset(words_of(query)), types, NOW)
    scores = [score_of(policy, item, policy.signal(item, question)) for item in candidates]
    return sorted(range(len(scores)), key=lambda place: -scores[place])


def test_semantic_goes_by_relevance() -> None:
    assert ranked("semantic", candidate(0.2, priority="pinned"), candidate(1.0), candidate(0.6)) == [1, 2, 0]


def test_lru_goes_by_the_last_use_or_change() -> None:
    assert ranked("lru", candidate(1.0), candidate(0.1, used=0.1), candidate(0.1, written=1.0)) == [1, 2, 0]


def test_frequency_goes_by_uses_that_fade() -> None:
    often_long_ago = candidate(0.1, used=20.0, uses=500)
    assert ranked("frequency", candidate(0.9), often_long_ago, candidate(0.1, used=0.5, uses=3)) == [2, 0, 1]


def test_label_goes_by_tags_the_question_names() -> None:
    tagged, typed = candidate(0.1, tags=("green teas", "home")), candidate(0.1, semantic_type="user_preference")
    query = "Which green tea for home?"
    assert ranked("label", candidate(0.9), typed, tagged, query=query, types=("user_preference",)) == [2, 1, 0]
    assert ranked("label", candidate(0.9), candidate(0.1, tags=("greenhouse",)), query="green") == [0, 1]


def test_priority_goes_before_any_relevance() -> None:
    levels = ("low", "pinned", "mid", "high")
    relevances = (1.0, 0.0, 0.7, 0.0)
    candidates = [candidate(rel, priority=level) for rel, level in zip(relevances, levels, strict=True)]
    assert ranked("priority", *candidates) == [1, 3, 2, 0]
    assert ranked("priority", candidate(0.3), candidate(0.4)) == [1, 0]


@pytest.mark.parametrize("name", POLICIES)
@settings(deadline=None)
@given(
    relevance=st.floats(0, 1),
    written=st.floats(-1e3, 1e5),
    used=st.none() | st.floats(-1e3, 1e5),
    uses=st.integers(1, 10**9),
    level=st.sampled_from([*LEVELS]),
    tags=st.lists(st.text(max_size=20), max_size=4),
    query=st.text(max_size=40),
)
def test_scores_lie_between_nothing_and_one(
    name: str,
    relevance: float,
    written: float,
    used: float | None,
    uses: int,
    level: Any,
    tags: list[str],
    query: str,
) -> None:
    item = candidate(relevance, written=written, used=used, uses=uses, priority=level, tags=tags)
    policy, question = policy_named(name), Question(frozenset(words_of(query)), (), NOW)
    signal = policy.signal(item, question)
    assert policy.name == name and signal.why
    assert 0 <= signal.value <= 1
    assert 0 <= score_of(policy, item, signal) <= 1


def test_times_of_cubes_as_seconds() -> None:
    assert seconds_of("") == 0.0
    assert seconds_of("1970-01-02") == DAY
    assert seconds_of(stamp_of(NOW)) == NOW
