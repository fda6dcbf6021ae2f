"""Sentence scores: the sentences of a text that a query is about."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memos_vllm.retrieval.sentences import sentence_scores

TEXT = "I live in Lisbon. My favourite tea is oolong!\nTea bores my brother; he drinks coffee.\n\nThe dog is Biscuit"


def found(query: str, text: str = TEXT) -> dict[str, float]:
    return {text[start:end]: score for start, end, score in sentence_scores(query, text)}


def test_the_sentence_asked_for_scores_best() -> None:
    scores = found("Which teas are my favourite?")
    assert max(scores, key=lambda sentence: scores[sentence]) == "My favourite tea is oolong!"
    assert set(scores) == {"My favourite tea is oolong!", "Tea bores my brother; he drinks coffee."}


def test_the_last_sentence_needs_no_full_stop() -> None:
    assert set(found("biscuit")) == {"The dog is Biscuit"}


def test_nothing_asked_nothing_found() -> None:
    assert found("") == found("the of a") == found("zebra") == {} == found("tea", " \n ")


def test_scripts_without_spaces() -> None:
    assert set(found("乌龙茶", "我住在里斯本。我喜欢乌龙茶。")) == {"我喜欢乌龙茶。"}


@given(st.text(max_size=200), st.text(max_size=40))
def test_spans_are_in_order_apart_and_inside(text: str, query: str) -> None:
    end = 0
    for start, stop, score in sentence_scores(query, text):
        assert end <= start < stop <= len(text) and score > 0
        end = stop
