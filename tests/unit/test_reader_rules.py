"""RuleReader: what it keeps of a message, and that it makes nothing up."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.reader import Draft, RuleReader, Spoken
from memos_vllm.reader.base import MAX_DRAFTS
from memos_vllm.reader.rules import units

AT = datetime(2026, 3, 12, 15, 30, tzinfo=UTC)


def read(*texts: str, role: str = "user") -> list[Draft]:
    messages = [Spoken(role, text) for text in texts]
    return asyncio.run(RuleReader().read(messages, owner="maya", at=AT, source="session-1"))


def told(text: str) -> list[str]:
    return [draft.text for draft in read(text)]


@pytest.mark.parametrize(
    ("text", "semantic_type", "key"),
    [
        ("My favourite tea is oolong.", "user_preference", "favourit tea"),
        ("I hate cilantro.", "user_preference", "taste cilantro"),
        ("Please always answer in French.", "user_preference", "answer"),
        ("I'm vegetarian.", "user_preference", "diet"),
        ("I live in Lisbon.", "fact", "home"),
        ("My sister works at Acme.", "fact", "employer sister"),
        ("My dog's name is Rex.", "fact", "dog name"),
        ("I have a cat.", "fact", "do have cat"),
        ("I used to live in Rome.", "episode", ""),
        ("I went to the gym.", "episode", ""),
        ("I fly to Paris next week.", "episode", ""),
        ("The deploy server is at 10.0.0.5.", "domain_knowledge", ""),
        ("Ich wohne in Lissabon und trinke gerne Tee.", "episode", ""),
        ("我住在里斯本，喜欢喝茶。", "episode", ""),
    ],
)
def test_a_statement_has_a_kind_and_what_it_is_about(text: str, semantic_type: str, key: str) -> None:
    (draft,) = read(text)
    assert (draft.text.rstrip("."), draft.semantic_type, draft.key) == (draft.text.rstrip("."), semantic_type, key)
    assert text.endswith(draft.text)


@pytest.mark.parametrize(
    "text",
    [
        *("What is my favourite tea?", "Where do I live", "¿Qué hora es?", "今は何時ですか？"),
        *("Write me a poem about autumn.", "Can you help me, please", "Imagine I am a pirate.", "Explain this to me."),
        *("Hi!", "Thanks a lot!", "ok", "Never mind.", "", "   ", "\n\n", "!!!", "🙂"),
        *("```\nI live in Rome.\n```", "> I live in Rome."),
    ],
)
def test_what_tells_nothing_is_not_kept(text: str) -> None:
    assert read(text) == []


def test_only_the_users_messages_are_read() -> None:
    assert read("I live in Lisbon.", role="assistant") == read("I live in Lisbon.", role="system") == []


def test_a_message_is_cut_into_statements() -> None:
    text = "Hi! I live in Lisbon and my favourite tea is oolong. What should I cook tonight? Dr. Smith is my dentist."
    assert told(text) == ["I live in Lisbon", "my favourite tea is oolong.", "Dr. Smith is my dentist."]


def test_a_sentence_that_leans_on_the_one_before_stays_with_it() -> None:
    assert told("I have a cat. It is called Tilda. I live in Lisbon.") == [
        "I have a cat. It is called Tilda.",
        "I live in Lisbon.",
    ]


def test_a_list_stays_with_its_announcement() -> None:
    assert told("I like:\n- tea\n- coffee\nWhat about you?") == ["I like:\n- tea\n- coffee"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("My favourite tea is oolong, what do you think?", "My favourite tea is oolong"),
        ("Since I'm vegetarian, what should I cook?", "I'm vegetarian"),
        ("Oh, by the way, I live in Lisbon.", "I live in Lisbon."),
        ("Remember that my flight is at 9 on Friday.", "my flight is at 9 on Friday."),
        ("Summarise this for me: The leaves are red. They fall. I live in Lisbon.", "I live in Lisbon."),
        ("I used to live in Rome but now I live in Porto.", "I used to live in Rome|I live in Porto."),
    ],
)
def test_what_is_told_is_found_among_other_things(text: str, kept: str) -> None:
    assert told(text) == kept.split("|")


def test_an_episode_has_the_date_that_it_tells_of() -> None:
    (draft,) = read("I went to the gym yesterday.")
    assert (draft.semantic_type, draft.happened) == ("episode", "2026-03-11")
    assert read("I live in Lisbon.")[0].happened == "2026-03-12"


def test_a_long_text_is_material() -> None:
    text = "The leaves are red and they fall. " * 200 + "I live in Lisbon."
    assert told(text) == ["I live in Lisbon."]
    assert len(told("I have a cat. We own a dog. " * 200)) <= MAX_DRAFTS


_PHRASES = st.sampled_from(
    [
        *("I live in Lisbon", "my favourite tea is oolong", "I don't like", "Actually", "please always", "It is"),
        *(
            "what",
            ". ",
            "? ",
            "! ",
            ", ",
            "\n",
            "\n- ",
            ": ",
            "; ",
            " and I ",
            "```",
            "> ",
            "’s ",
            "yesterday",
            "(",
            "…",
        ),
        *("。", "call me", "I moved from", "to Porto", "I prefer", "over", "my", "I", "\u2028", "\ud83d\ude42", "\x00"),
    ]
)
ANY_MESSAGE = st.lists(_PHRASES, max_size=25).map(" ".join) | st.lists(_PHRASES, max_size=25).map("".join) | st.text()


def whole(text: str) -> str:
    """The text with question marks for half characters."""
    return text.encode(errors="replace").decode()


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool", ""]), ANY_MESSAGE), max_size=4))
def test_nothing_is_made_up_of_any_messages(rows: list[tuple[str, str]]) -> None:
    messages = [Spoken(role, text) for role, text in rows]
    for draft in RuleReader().drafts(messages, AT):
        assert draft.text.strip() == draft.text != ""
        assert any(draft.text in whole(message.text) for message in messages if message.role == "user")
        assert 0 < draft.confidence <= 1
        assert draft.happened


@settings(max_examples=200, deadline=None)
@given(ANY_MESSAGE)
def test_memories_of_a_message_do_not_overlap(text: str) -> None:
    spans = [unit.span for unit in units(text)]
    assert all(one.start < one.end <= len(text) for one in spans)
    assert all(before.end <= after.start for before, after in pairwise(spans))
