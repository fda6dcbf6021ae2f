"""MemoryCall: what a question wants of memory."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given, settings

from memos_vllm.reader import MemoryCall, call_of
from memos_vllm.retrieval import TimeWindow
from tests.unit.test_reader_rules import ANY_MESSAGE

AT = datetime(2026, 3, 12, 15, 30)


@pytest.mark.parametrize(
    ("query", "intent", "types"),
    [
        ("Which tea do I like best?", "ask", ("user_preference",)),
        ("What should I cook tonight?", "ask", ("user_preference",)),
        ("Where do I live?", "ask", ("fact",)),
        ("When did I go to the gym?", "ask", ("episode",)),
        ("What is the capital of France?", "ask", ()),
        ("Write me a poem about autumn.", "do", ()),
        ("I live in Lisbon.", "tell", ()),
        ("Please always answer in French.", "tell", ()),
        ("I live in Lisbon. What should I see?", "ask", ("user_preference",)),
        ("Hello!", "talk", ()),
        ("", "talk", ()),
        ("Wo wohnt meine Schwester?", "ask", ()),
        ("Meine Schwester wohnt in Rom.", "tell", ()),
    ],
)
def test_intent_and_types(query: str, intent: str, types: tuple[str, ...]) -> None:
    call = call_of(query, "maya", AT)
    assert (call.caller, call.query, call.intent, call.types) == ("maya", query, intent, types)


@pytest.mark.parametrize(
    ("query", "window"),
    [
        ("What did I do last week?", TimeWindow("2026-03-02", "2026-03-09")),
        ("What are my plans for tomorrow?", TimeWindow("2026-03-13", "2026-03-14")),
        ("What have I told you since May 2023?", TimeWindow("2023-05-01", "")),
        ("Which tea should I drink today?", None),
        ("I was ill last week.", None),
        ("Where do I live?", None),
    ],
)
def test_a_time_counts_where_the_question_asks_what_happened_then(query: str, window: TimeWindow | None) -> None:
    assert call_of(query, "maya", AT).window == window


def test_the_scope_is_the_callers_own_unless_others_are_named() -> None:
    assert call_of("What is my favourite tea?", "maya", AT).scope == "own"
    assert call_of("What did our team decide yesterday?", "maya", AT).scope == "any"


def test_groups_are_meant_where_the_question_names_them() -> None:
    staff = ["group:staff"]
    assert call_of("What did our team decide yesterday?", "maya", AT, staff).owners == ("maya", "group:staff")
    for query in ("What is my favourite tea?", "Quel est mon thé préféré ?"):
        assert call_of(query, "maya", AT, staff).owners == ("maya",)


@settings(deadline=None)
@given(ANY_MESSAGE)
def test_any_query_makes_a_call(query: str) -> None:
    call = call_of(query, "maya", AT)
    assert isinstance(call, MemoryCall) and call.query == query
