from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.governance.watermark import FRAME, SPACING, SYMBOLS, embed, numbers_in, strip

KEY, OTHER = b"k" * 32, b"o" * 32
NUMBERS = st.integers(0, 2**32 - 1)
LONG = " ".join(f"word{number}" for number in range(600))


@settings(deadline=None)
@given(st.text(min_size=1, max_size=300), NUMBERS)
def test_every_text_with_a_character_bears_the_mark_and_reads_the_same(text: str, number: int) -> None:
    marked = embed(text, number, KEY)
    assert strip(marked) == strip(text)
    assert numbers_in(marked, KEY) == [number]
    assert numbers_in(marked, OTHER) == []


def test_the_empty_text() -> None:
    assert numbers_in(embed("", 1, KEY), KEY) == [1]


def test_an_excerpt_bears_the_mark() -> None:
    marked = embed(LONG, 7, KEY)
    span = 2 * SPACING + 200
    assert len(LONG) > 3 * span
    for start in range(0, len(marked) - span, 97):
        assert numbers_in(marked[start : start + span], KEY) == [7]


def test_marks_stand_before_blanks_and_cut_no_word() -> None:
    marked = embed(LONG, 7, KEY)
    invisible = f"[{FRAME}{SYMBOLS}]"
    assert not re.search(rf"\w{invisible}+\w", marked)
    assert marked.split() != LONG.split() and strip(marked).split() == LONG.split()


def test_a_text_is_marked_once() -> None:
    twice = embed(embed(LONG, 7, KEY), 8, KEY)
    assert numbers_in(twice, KEY) == [8] and len(twice) == len(embed(LONG, 8, KEY))


def test_texts_of_several_exports() -> None:
    assert numbers_in(embed("Tea.", 3, KEY) + " " + embed("Milk.", 5, KEY), KEY) == [3, 5]


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text.encode("ascii", "ignore").decode(),
        lambda text: "".join(char for char in text if char.isprintable()),
        lambda text: re.sub(f"[{SYMBOLS}]", "", text),
        strip,
    ],
)
def test_removing_invisible_characters_removes_it(harm: object) -> None:
    assert numbers_in(harm(embed(LONG, 7, KEY)), KEY) == []  # type: ignore[operator]


@settings(deadline=None)
@given(st.text(alphabet=SYMBOLS + FRAME, max_size=400))
def test_noise_is_no_mark(noise: str) -> None:
    assert numbers_in(noise, KEY) == []


@settings(deadline=None)
@given(NUMBERS, st.integers(0, 31), st.sampled_from(SYMBOLS))
def test_an_altered_mark_is_none(number: int, place: int, symbol: str) -> None:
    marked = embed("Tea", number, KEY)
    place += marked.index(FRAME) + 1
    altered = marked[:place] + symbol + marked[place + 1 :]
    assert numbers_in(altered, KEY) == ([number] if altered == marked else [])
