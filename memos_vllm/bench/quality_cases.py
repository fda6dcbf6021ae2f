"""The prompts of `bench quality`: memories of a wanted size, and a question about them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memos_vllm.bench.people import Mix
from memos_vllm.bench.stories import KINDS, Ask, Kind, Memory, Story
from memos_vllm.memory_block import memory_line

PEOPLE = Mix(listed=0.7, spelled=0.0)
"""Names and values: mostly of the lists, the others made of syllables."""
MOST_MEMORIES = 8
FILLER_TOKENS = 14
"""About as many as a sentence of filler has; only where the search begins."""
PROMPT_ROOM = 256
"""Tokens of a prompt beside its memories: template, question, answer."""


@dataclass(frozen=True)
class Case:
    """One prompt: memories of about `size` tokens each, in this order, and a question."""

    number: int
    size: int
    texts: tuple[str, ...]
    ask: Ask

    @property
    def user(self) -> str:
        return f"quality-{self.number}"


def make_cases(
    rng: random.Random, sizes: Sequence[int], each: int, positions: int, count: Callable[[str], int]
) -> list[Case]:
    """`each` prompts of every kind and memory size, with any number of memories that `positions` tokens allow."""
    cases: list[Case] = []
    for size in sizes:
        most = min(MOST_MEMORIES, (positions - PROMPT_ROOM) // size)
        for kind in KINDS:
            for _ in range(each):
                fewest = 1 if kind == "inside" else 2
                story = Story(rng, rng.randint(fewest, max(fewest, most)), held=True, mix=PEOPLE)
                ask = story.add(kind)
                texts = tuple(_text(rng, memory, size, count) for memory in story.memories)
                cases.append(Case(len(cases), size, texts, ask))
    return cases


def kinds_of(cases: Sequence[Case]) -> list[Kind]:
    """The kinds that occur, in their usual order."""
    return [kind for kind in KINDS if any(case.ask.kind == kind for case in cases)]


def _text(rng: random.Random, memory: Memory, size: int, count: Callable[[str], int]) -> str:
    """The memory with as much filler as `size` tokens allow; one that is longer without any stays as it is."""
    seed = rng.random()

    def text(fillers: int) -> str:
        return memory.text(random.Random(seed), fillers)

    low, high = 0, max(1, 2 * size // FILLER_TOKENS)
    while low < high:
        middle = (low + high + 1) // 2
        if count(memory_line(text(middle))) <= size:
            low = middle
        else:
            high = middle - 1
    return text(low)
