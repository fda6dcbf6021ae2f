"""Text of an exact number of tokens, under whatever tokenizer a server has."""

from __future__ import annotations

import random
from collections.abc import Callable

VOCABULARY = """the a of to and in on was with for by at as it he we our that this from not after before because when
train van bridge committee shop weather library neighbour river meeting letter garden market station holidays morning
evening week month lunch storm rain reason plan paper notice talk clock plain grey small old late quiet arrived closed
moved changed looked caused forgotten mentioned surprised waited opened returned carried found tea colour food fruit
town job dog hobby instrument language season car allergy sport number hint people"""
WORDS = VOCABULARY.split()
MAX_STEPS = 2000


def text_of(tokens: int, count: Callable[[str], int], rng: random.Random) -> str:
    """Random words, separated by spaces, of which `count(text)` is exactly `tokens`.

    Words are added while there are too few tokens and taken away while there are too many, ever fewer at a time; near
    the goal chance finds the word that fits. Raises ValueError when none does.
    """
    words: list[str] = []
    for _ in range(MAX_STEPS):
        text = " ".join(words)
        missing = tokens - count(text)
        if missing == 0:
            return text
        if missing > 0:
            words += rng.choices(WORDS, k=max(1, missing // 2))
        else:
            del words[-max(1, -missing // 4) :]
    raise ValueError(f"found no text of {tokens} tokens")


def shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole numbers that differ by one at most."""
    return [total // parts + (part < total % parts) for part in range(parts)]
