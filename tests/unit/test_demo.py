"""What the demo takes for right, and how it says what the headers say."""

from __future__ import annotations

import pytest

from memos_vllm.demo import ASKED, FACTS, PEOPLE, facts_of, in_words, wrong_answer, wrong_headers

HEADERS = {
    "x-memos-cubes": "a,b,c",
    "x-memos-prompt-tokens": "150",
    "x-memos-cached-tokens": "0",
    "x-memos-spliced-tokens": "90",
    "x-memos-repaired-tokens": "32",
    "x-memos-computed-tokens": "28",
    "x-memos-kv-source": "ram",
}


def test_two_people_differ_in_everything() -> None:
    maya, tom = (facts_of(person) for person in PEOPLE)
    assert len(maya) == len(tom) == 12
    assert not set(maya.values()) & set(tom.values())
    assert set(ASKED) <= set(FACTS)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("Your favourite tea is oolong.", None),
        ("Your favourite tea is Oolong.", None),
        ("Your favourite tea is sencha.", "somebody else's"),
        ("Oolong or sencha.", "somebody else's"),
        ("I do not know.", "does not say 'oolong'"),
        ("", "does not say 'oolong'"),
    ],
)
def test_answers_are_checked(answer: str, says: str | None) -> None:
    found = wrong_answer(answer, "favourite tea", "maya")
    assert found is None if says is None else found is not None and says in found


def test_headers_are_checked() -> None:
    assert wrong_headers(HEADERS) is None
    assert wrong_headers(HEADERS | {"x-memos-fallback": "kv-missing"}) is not None
    assert wrong_headers(HEADERS | {"x-memos-spliced-tokens": "0"}) == "no memory was spliced"
    assert wrong_headers({}) == "no memory was spliced"


def test_headers_in_words() -> None:
    said = in_words(HEADERS)
    assert "3 memories used" in said
    assert "of 150 tokens of the prompt 90 were spliced from RAM, 32 were computed anew" in said
    assert "28 were computed as ever" in said
    assert "prefix cache" not in said
    assert "16 came from vLLM's prefix cache" in in_words(HEADERS | {"x-memos-cached-tokens": "16"})
