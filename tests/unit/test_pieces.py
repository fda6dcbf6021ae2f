"""Long texts that are sent again: counted for each caller, cut out of the prompt once they are known."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from memos_vllm.server.pieces import KNOWN_AFTER, MIN_TOKENS, PieceCutter, long_texts, split_at
from memos_vllm.server.prompt import PromptBuilder
from tests.server.conftest import model_path

tokenizer = AutoTokenizer.from_pretrained(model_path())
builder = PromptBuilder(tokenizer)

LONG = "The harbour master keeps a list of the ships that are due this week. " * 40
OTHER = "Two of them bring timber, one brings salt, the last is a ferry. " * 40
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": LONG},
    {"role": "user", "content": [{"type": "text", "text": OTHER}, "Hi"]},
]
REST = f"</memories>\n{LONG.strip()}<|end|><|user|>{OTHER.strip()}Hi<|end|>"


def cutter() -> PieceCutter:
    return PieceCutter(builder, b"secret")


def test_a_text_is_cut_out_once_it_was_seen_often() -> None:
    pieces = cutter()
    for _ in range(KNOWN_AFTER - 1):
        (whole,) = pieces.cut("maya", MESSAGES, REST)
        assert whole.sights == 0 and list(whole.ids) == builder.rest_ids(REST)
    cut = pieces.cut("maya", MESSAGES, REST)
    assert [piece.sights for piece in cut] == [0, KNOWN_AFTER, 0, KNOWN_AFTER, 0]
    assert list(cut[1].ids) == builder.rest_ids(LONG.strip()) and len(cut[1].ids) >= MIN_TOKENS
    assert "".join(tokenizer.decode(piece.ids) for piece in cut) == REST
    assert [piece.ids for piece in pieces.cut("maya", MESSAGES, REST)] == [piece.ids for piece in cut]


def test_sights_are_of_one_caller_and_can_be_forgotten() -> None:
    pieces = cutter()
    for _ in range(KNOWN_AFTER):
        pieces.cut("maya", MESSAGES, REST)
    assert len(pieces.cut("tom", MESSAGES, REST)) == 1
    assert len(pieces.cut("maya", MESSAGES, REST)) == 5
    pieces.forget("maya")
    assert len(pieces.cut("maya", MESSAGES, REST)) == 1


def test_short_texts_are_never_cut() -> None:
    pieces, messages = cutter(), [{"role": "system", "content": "word " * (MIN_TOKENS // 2)}]
    for _ in range(2 * KNOWN_AFTER):
        assert len(pieces.cut("maya", messages, str(messages[0]["content"]))) == 1


def test_a_text_that_the_template_changed_is_left_alone() -> None:
    pieces = cutter()
    for _ in range(2 * KNOWN_AFTER):
        (whole,) = pieces.cut("maya", MESSAGES, REST.upper())
        assert list(whole.ids) == builder.rest_ids(REST.upper())


def test_each_text_counts_once_a_prompt() -> None:
    assert long_texts([*MESSAGES, *MESSAGES, {"role": "tool", "content": None}]) == [LONG.strip(), OTHER.strip()]


@given(st.text("ab ", max_size=30), st.lists(st.text("ab ", min_size=1, max_size=5), max_size=4))
def test_what_is_cut_joins_again(rest: str, known: list[str]) -> None:
    parts = split_at(rest, known)
    assert "".join(parts) == rest and all(parts)
