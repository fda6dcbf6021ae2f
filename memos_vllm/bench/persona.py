"""A made-up person with the people around them, as memories in plain English, and questions about all of it.

Memories and questions are those that the bundled model is trained to read, so that every question is one that it
answers from a prompt. Values and names are new together: no fact is in its weights.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from memos_vllm.bench.people import (
    ATTRIBUTES,
    NAMES,
    RELATIONS,
    Attribute,
    Mix,
    agree,
    filler,
    invented_word,
    make_facts,
)

INVENTED = 0.3
"""Share of values that are in no list."""
RECALL_FACTS = 4
"""Memories in a prompt about others."""
CAPITALISED = ("home town", "dog", "car")
RELATION_QUESTIONS = ("Who is my {n}?", "What is my {n}'s name?")


@dataclass(frozen=True)
class Told:
    """One memory: `value` is the `noun` of `who` ("" for the persona); `questions`: phrasings never to train on."""

    text: str
    value: str
    questions: tuple[str, ...]
    noun: str
    who: str = ""


@dataclass(frozen=True)
class Recall:
    """A question that one of these memories answers."""

    question: str
    value: str
    memories: tuple[str, ...]


def make_persona(rng: random.Random, count: int) -> list[Told]:
    """`count` facts: the persona's own attributes, their people, and these people's attributes."""
    people = rng.sample(NAMES, min(len(RELATIONS), max(1, count // 18)))
    links = [
        Told(f"My {relation} is {name}.", name, tuple(form.format(n=relation) for form in RELATION_QUESTIONS), relation)
        for relation, name in zip(rng.sample(RELATIONS, len(people)), people, strict=True)
    ]
    others = [name for name in rng.sample(NAMES, len(NAMES)) if name not in people]
    needed = -(-(count - len(links)) // len(ATTRIBUTES))
    everyone = [None, *people, *others][:needed]
    facts = [told for attribute in ATTRIBUTES for told in _of_all(rng, everyone, attribute)]
    own = [*links, *rng.sample(facts, count - len(links))]
    return rng.sample(own, count)


def _of_all(rng: random.Random, everyone: list[str | None], attribute: Attribute) -> list[Told]:
    """The same thing of everyone, no two with one value as long as the list lasts."""
    values = rng.sample(attribute.values, len(attribute.values))
    return [_told(rng, who, attribute, values) for who in everyone]


def _told(rng: random.Random, who: str | None, attribute: Attribute, values: list[str]) -> Told:
    invented = not values or rng.random() < INVENTED
    value = invented_word(rng, rng.random() < 0.5, Mix(0.0, 0.0)) if invented else values.pop()
    if attribute.noun in CAPITALISED:
        value = value[0].upper() + value[1:]
    words = {
        "v": value,
        "s": who or "I",
        "o": who or "I",
        "p": f"{who}'s" if who else "my",
        "P": f"{who}'s" if who else "My",
        "r": "their" if who else "my",
    }
    template = rng.choice(("{P} " + attribute.noun + " is {v}", *attribute.statements))
    text = agree(template, who is None).format(**words) + "."
    questions = tuple(agree(form, who is None).format(**words) for form in attribute.questions)
    return Told(text, value, questions, attribute.noun, who or "")


def make_recall(rng: random.Random, count: int) -> list[Recall]:
    """Questions about people whom the bundled model never saw, each with memories that answer it."""
    mix, found = Mix(0.7, 0.0), []
    for _ in range(count):
        facts = make_facts(rng, RECALL_FACTS, True, mix)
        asked = rng.choice(facts)
        found.append(Recall(asked.question, asked.value, tuple(fact.statement for fact in facts)))
    return found


def unrelated(rng: random.Random, count: int) -> list[str]:
    """Texts that say nothing about anybody."""
    return [" ".join(filler(rng) for _ in range(3)) for _ in range(count)]
