"""What the bundled model is trained on and tested with: chats about synthetic people, stories told across
several memories, and repeated random spans.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

from memos_vllm.bench.people import (
    ATTRIBUTES,
    EASY,
    HARD,
    NAMES,
    Attribute,
    Fact,
    Mix,
    filler,
    held_out,
    invented_word,
    make_fact,
    make_facts,
)
from memos_vllm.bench.stories import KINDS, Kind, make_story
from memos_vllm.memory_block import INTRO, OUTRO, memory_line

MAX_POSITIONS = 8192
Encode = Callable[[str], list[int]]
UNKNOWN = "I do not know."
BEGIN, SYSTEM, USER, ASSISTANT, END = "<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{{ '<|begin|>' }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant, not ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass
class Sample:
    """A token sequence with a loss weight and a position id for each token."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)  # [start, end) of every answer

    def add(self, ids: list[int], weight: float) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)

    def add_context(self, ids: list[int], rng: random.Random) -> None:
        """Tokens that are not an answer: one piece in ten counts a little, so that English is learned too."""
        self.add(ids, 0.2 if rng.random() < 0.1 else 0.0)


def chat_sample(
    rng: random.Random, encode: Encode, facts: int, questions: int, held: bool, mix: Mix, noise: float, missing: float
) -> Sample:
    """A memory block with `facts` facts and filler, then `questions` questions with their answers."""
    known = make_facts(rng, facts, held, mix)
    asked = rng.sample(known, min(questions, len(known)))
    hidden = {id(fact) for fact in asked if rng.random() < missing}
    lines = [fact.statement for fact in known if id(fact) not in hidden]
    lines += [filler(rng) for _ in range(int(noise * len(lines) * rng.random()))]
    rng.shuffle(lines)
    sample, style = Sample(), rng.random()
    sample.add_context(encode(BEGIN + SYSTEM + (INTRO if style < 0.8 else "")), rng)
    for line in lines:
        sample.add_context(encode(memory_line(line) if style < 0.9 else f"{line} "), rng)
    sample.add_context(encode((OUTRO if style < 0.8 else "") + (filler(rng) if rng.random() < 0.2 else "") + END), rng)
    for fact in asked:
        sample.add_context(encode(USER + fact.question + END + ASSISTANT), rng)
        start = len(sample.ids)
        sample.add(encode((UNKNOWN if id(fact) in hidden else fact.answer) + END), 1.0)
        sample.answers.append((start, len(sample.ids)))
    return sample


def story_sample(
    rng: random.Random, encode: Encode, memories: int, kinds: list[Kind], fillers: int, held: bool, mix: Mix
) -> Sample:
    """A memory block of a story, up to `fillers` sentences of filler in each memory, and its questions with answers."""
    story = make_story(rng, memories, kinds, held, mix, rivals=rng.choice((1, 1, 2, 3)))
    sample = Sample()
    sample.add_context(encode(BEGIN + SYSTEM + INTRO), rng)
    for memory in story.memories:
        sample.add_context(encode(memory_line(memory.text(rng, rng.randint(0, fillers)))), rng)
    sample.add_context(encode(OUTRO + END), rng)
    for ask in rng.sample(story.asks, min(8, len(story.asks))):
        sample.add_context(encode(USER + ask.question + END + ASSISTANT), rng)
        start = len(sample.ids)
        sample.add(encode(ask.answer + END), 1.0)
        sample.answers.append((start, len(sample.ids)))
    return sample


def some_kinds(rng: random.Random, most: int) -> list[Kind]:
    """Up to `most` tasks, the harder kinds more often."""
    return rng.choices(KINDS, weights=(1, 2, 3, 2), k=rng.randint(1, most))


def copy_sample(rng: random.Random, length: int, vocab: int) -> Sample:
    """A span of random tokens, again and again: every copy but the first counts."""
    span = [rng.randrange(5, vocab) for _ in range(rng.randint(12, length // 2))]
    sample = Sample()
    sample.add(span, 0.0)
    sample.add(span[:1], 0.0)
    sample.add((span[1:] + span * (length // len(span)))[: length - len(sample.ids)], 1.0)
    return sample


def grid_sample(rng: random.Random, encode: Encode, held: bool) -> Sample:
    """The same things of several people, told twice, in different orders; values count the second time.

    People share attributes and attributes share people, so a value is found by both or not at all. Often the first
    telling goes person by person and says "Their" where the person is clear. Stories need both, and the model
    learns them far sooner from this than from their few questions.
    """
    mix = rng.choice((EASY, EASY, HARD))
    few = rng.sample(held_out(NAMES)[held], rng.randint(2, 4))
    people = [name if rng.random() < 0.5 else invented_word(rng, held, mix).capitalize() for name in few]
    attributes = rng.sample(ATTRIBUTES, rng.randint(1, 3))
    facts = [(who, each, make_fact(rng, who, each, held, mix)) for who in people for each in attributes]
    sample = Sample()
    sample.add(encode(_told_with_pronouns(rng, facts) if rng.random() < 0.6 else _told(rng, facts)), 0.0)
    for who, attribute, fact in rng.sample(facts, len(facts)):
        sample.add(encode(f" {who}'s {attribute.noun} is"), 0.0)
        start = len(sample.ids)
        sample.add(encode(f" {fact.value}."), 1.0)
        sample.answers.append((start, len(sample.ids)))
    return sample


def _told(rng: random.Random, facts: list[tuple[str, Attribute, Fact]]) -> str:
    plain = [f" {who}'s {attribute.noun} is {fact.value}." for who, attribute, fact in facts]
    told = [
        each if rng.random() < 0.5 else f" {fact.statement}" for each, (_, _, fact) in zip(plain, facts, strict=True)
    ]
    return "".join(rng.sample(told, len(told)))


def _told_with_pronouns(rng: random.Random, facts: list[tuple[str, Attribute, Fact]]) -> str:
    """Person by person: a fact with the name, now and then a sentence of filler or a new line, the others without."""
    told = ""
    for who, group in groupby(facts, key=lambda each: each[0]):
        used, (_, attribute, fact), *others = None, *rng.sample(found := list(group), len(found))
        if rng.random() < 0.7:  # a thing that is not asked about, so that the first one is told without the name too
            used, others = make_fact(rng, who, rng.choice(ATTRIBUTES), False, EASY), [(who, attribute, fact), *others]
        told += f" {(used or fact).statement}"
        for _, other, each in others:
            told += f" {filler(rng)}" if rng.random() < 0.15 else ""
            told += rng.choice((" ", "\n- ")) + f"Their {other.noun} is {each.value}."
    return told


def jumping_positions(rng: random.Random, length: int, reach: int) -> list[int]:
    """Increasing position ids below `reach` that skip ahead at up to three random places."""
    room = max(0, reach - length)
    skips = [(rng.randrange(1, length), rng.randint(0, room // 3)) for _ in range(rng.choice((0, 1, 2, 3)))]
    return [i + sum(size for place, size in skips if place <= i) for i in range(length)]
