"""Time expressions, resolved against Thursday, the 12th of March 2026."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.reader.times import happened, moments, window_of
from memos_vllm.retrieval import TimeWindow

AT = datetime(2026, 3, 12, 15, 30)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("I went to the gym yesterday.", "2026-03-11"),
        ("We met the day before yesterday.", "2026-03-10"),
        ("We met last week.", "2026-03-02"),
        ("We met last month.", "2026-02-01"),
        ("I moved a couple of days ago.", "2026-03-10"),
        ("I moved three years ago.", "2023-01-01"),
        ("I moved in May.", "2025-05-01"),
        ("I moved last March.", "2025-03-01"),
        ("I moved on May 7.", "2025-05-07"),
        ("I moved on the 7th of May, 2023.", "2023-05-07"),
        ("I was born on 2001-02-03.", "2001-02-03"),
        ("I was there on Friday.", "2026-03-06"),
        ("We meet on Friday.", "2026-03-13"),
        ("I will move on May 7.", "2026-05-07"),
        ("I move in two weeks.", "2026-03-23"),
        ("I am away next weekend.", "2026-03-14"),
        ("It was fun last weekend.", "2026-03-07"),
        ("I live here since 2020.", "2020-01-01"),
        ("I see her tomorrow.", "2026-03-13"),
    ],
)
def test_an_expression_is_resolved_against_the_date_of_the_message(text: str, first: str) -> None:
    assert happened(text, AT) == first


@pytest.mark.parametrize(
    "text",
    ["I may march on.", "The sun is a star.", "It is the 31st of June.", "2026-02-30", "10,00 2", "I said 19,60 5."],
)
def test_what_is_no_date_is_the_date_of_the_message(text: str) -> None:
    assert happened(text, AT) == "2026-03-12"


@pytest.mark.parametrize(
    ("question", "window"),
    [
        ("What did I do yesterday?", TimeWindow("2026-03-11", "2026-03-12")),
        ("What did I do last week?", TimeWindow("2026-03-02", "2026-03-09")),
        ("What happened since May 2023?", TimeWindow("2023-05-01", "")),
        ("What happened after 2020?", TimeWindow("2021-01-01", "")),
        ("What happened before June 2024?", TimeWindow("", "2024-06-01")),
        ("What happened between May 2023 and July 2023?", TimeWindow("2023-05-01", "2023-08-01")),
        ("What is my name?", None),
    ],
)
def test_a_question_names_its_time(question: str, window: TimeWindow | None) -> None:
    assert window_of(question, AT) == window


_WORDS = "last next this in on the 31st of June May 7 Friday week weekend year 2023 999 years ago from now 2026-13-40"


@pytest.mark.parametrize("at", [datetime.min, datetime(1, 1, 5), datetime.max])
@pytest.mark.parametrize("text", ["I moved last May", "last weekend", "next weekend", "in 12 years", "999 years ago"])
def test_the_ends_of_time_are_no_error(text: str, at: datetime) -> None:
    assert datetime.fromisoformat(happened(text, at))


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(_WORDS.split()), max_size=8).map(" ".join) | st.text(max_size=60),
    st.datetimes(datetime(1, 1, 1)),
)
def test_any_text_at_any_time_is_read(text: str, at: datetime) -> None:
    for moment in moments(text, at):
        assert 0 <= moment.start < moment.end <= len(text)
        assert moment.first < moment.after <= moment.first + timedelta(days=366)
    window_of(text, at)
    assert datetime.fromisoformat(happened(text, at))
