"""Synthetic people and facts about them, in English. Every fifth name and value is held out of the bundled model's
training: about those it can answer only by reading the prompt.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Attribute:
    """One thing to know about a person. `{p}` is the possessor ("Maya's", "My"), `{s}` the subject ("Maya", "I"),
    `{v}` the value; a verb in `[third|first]` brackets agrees with the subject.
    """

    noun: str
    values: tuple[str, ...]
    statements: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()


FACTS = tomllib.loads(Path(__file__).with_name("facts.toml").read_text())
NAMES, SYLLABLES = FACTS["names"].split(), FACTS["syllables"].split()
RELATIONS: list[str] = FACTS["relations"]
FILLER: list[list[str]] = FACTS["filler"]
ATTRIBUTES = tuple(
    Attribute(entry["noun"], tuple(entry["values"]), tuple(entry["statements"]), tuple(entry["questions"]))
    for entry in FACTS["attribute"]
)


@dataclass(frozen=True)
class Mix:
    """Share of values that are taken from the lists (the others are invented), and of invented words that are spelled
    letter by letter.
    """

    listed: float
    spelled: float


EASY, HARD = Mix(listed=0.6, spelled=0.0), Mix(listed=0.35, spelled=0.5)
"""Before and after half of the answers are right."""


def held_out(items: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split into (train, held-out): every fifth item is held out."""
    return [x for i, x in enumerate(items) if i % 5 != 4], [x for i, x in enumerate(items) if i % 5 == 4]


def invented_word(rng: random.Random, held: bool, mix: Mix) -> str:
    """A made-up word of syllables or of letters (which the tokenizer cuts into small pieces, as it does unknown
    words); the ends of held-out words never occur in training.
    """
    while True:
        parts = [rng.choice(SYLLABLES) for _ in range(rng.choice((2, 3)))]
        if mix.spelled and rng.random() < mix.spelled:
            parts = [rng.choice(LETTERS) for _ in range(rng.randint(4, 9))]
        if (sum(map(ord, "".join(parts[-2:]))) % 5 == 4) == held:
            return "".join(parts)


@dataclass
class Fact:
    statement: str
    question: str
    answer: str
    value: str


def agree(template: str, first: bool) -> str:
    """Choose the verb form in every `[third|first]` bracket."""
    while "[" in template:
        start, end = template.index("["), template.index("]")
        third_form, first_form = template[start + 1 : end].split("|")
        template = template[:start] + (first_form if first else third_form) + template[end + 1 :]
    return template


def make_fact(rng: random.Random, who: str | None, attribute: Attribute, held: bool, mix: Mix) -> Fact:
    """A fact about `who` (None: the speaker), phrased at random."""
    values = held_out(attribute.values)[held]
    value = rng.choice(values) if rng.random() < mix.listed else invented_word(rng, held, mix)
    if attribute.noun in ("home town", "dog", "car"):
        value = value[0].upper() + value[1:]
    first = who is None
    words = {
        "v": value,
        "s": who or "I",
        "o": who or "I",
        "p": f"{who}'s" if who else "my",
        "r": "their" if who else "my",
    }
    plain = ("{P} " + attribute.noun + " is {v}",)
    template = rng.choice(plain * max(1, len(attribute.statements)) + attribute.statements)
    statement = agree(template, first).format(P="My" if first else words["p"], **words) + "."
    asked = rng.choice(("What is {p} " + attribute.noun + "?", *attribute.questions))
    question = agree(asked, first).format(**words)
    answer = f"{'Your' if first else words['p']} {attribute.noun} is {value}."
    return Fact(statement, question, answer, value)


def make_facts(rng: random.Random, count: int, held: bool, mix: Mix) -> list[Fact]:
    """`count` facts, no two about the same thing of the same person."""
    names = held_out(NAMES)[held]
    few = rng.sample(names, min(len(names), max(1, count // 4)))
    people: list[str | None] = [
        None,
        *few,
        *(invented_word(rng, held, mix).capitalize() for _ in range(max(1, count // 4))),
    ]
    pairs = [(who, attribute) for who in people for attribute in ATTRIBUTES]
    return [make_fact(rng, who, attribute, held, mix) for who, attribute in rng.sample(pairs, min(count, len(pairs)))]


def filler(rng: random.Random) -> str:
    return " ".join(rng.choice(part) for part in FILLER)
