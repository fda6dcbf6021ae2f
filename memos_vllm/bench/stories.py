"""Recall tasks over several memories: what is asked may need one memory or two of them.

    inside    one memory tells it
    two-hop   "Maya's sister is Ines." in one memory, "Ines's favourite tea is oolong." in another
    pronoun   "Maya lives in Porto." ends one memory, "Their favourite tea is oolong." begins the next
    update    "Maya's favourite tea is oolong." in one memory, "Maya's favourite tea is now sencha." in a later one

Every task comes with a rival of the same kind about the same thing of someone else, so that a value cannot be found
without the person. The bundled model is trained on these tasks with other people and values than `held=True` gives.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from memos_vllm.bench.people import (
    ATTRIBUTES,
    NAMES,
    RELATIONS,
    Attribute,
    Fact,
    Mix,
    filler,
    held_out,
    invented_word,
    make_fact,
)

Kind = Literal["inside", "two-hop", "pronoun", "update"]
KINDS: tuple[Kind, ...] = ("inside", "two-hop", "pronoun", "update")
NEEDS_TWO: tuple[Kind, ...] = ("two-hop", "pronoun", "update")
FILLER_AT_SEAM = 0.3
"""How often a sentence stands between a person and the pronoun, on either side of the seam."""


@dataclass(frozen=True)
class Ask:
    """A question; an answer is right that names `value`, and not `wrong` (what an update has overtaken)."""

    kind: Kind
    question: str
    answer: str
    value: str
    wrong: str = ""

    def is_right(self, answer: str) -> bool:
        return self.value in answer and not (self.wrong and self.wrong in answer)


@dataclass
class Memory:
    """Sentences of one memory: `head` and `tail` keep their order and place, `body` stands between, among filler."""

    head: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)

    def text(self, rng: random.Random, fillers: int) -> str:
        """The memory with `fillers` sentences of filler in its body."""
        body = rng.sample(self.body, len(self.body))
        for _ in range(fillers):
            body.insert(rng.randrange(len(body) + 1), filler(rng))
        return " ".join([*self.head, *body, *self.tail])


class Story:
    """Memories in order, and what may be asked about them. `add` puts one task and its rival in."""

    def __init__(self, rng: random.Random, memories: int, held: bool, mix: Mix) -> None:
        self.rng, self.held, self.mix = rng, held, mix
        self.memories = [Memory() for _ in range(memories)]
        self.asks: list[Ask] = []
        self._people: set[str] = set()
        self._seams = rng.sample(range(memories - 1), memories - 1)
        self._attributes = rng.sample(ATTRIBUTES, len(ATTRIBUTES))

    def add(self, kind: Kind, rivals: int = 1) -> Ask:
        """Tell what a task needs and `rivals` more of its kind. Raises ValueError when it needs more memories."""
        if (kind in NEEDS_TWO and len(self.memories) < 2) or (kind == "pronoun" and not self._seams):
            raise ValueError(f"no room for a task of kind {kind}")
        attribute = self._attributes.pop()
        values: set[str] = set()
        first = self._tell(kind, attribute, values)
        for _ in range(rivals):
            self._tell(kind if kind != "pronoun" or self._seams else "inside", attribute, values)
        return first

    def _tell(self, kind: Kind, attribute: Attribute, values: set[str]) -> Ask:
        tell = {"inside": self._inside, "two-hop": self._two_hop, "pronoun": self._pronoun, "update": self._update}
        ask = tell[kind](attribute, values)
        self.asks.append(ask)
        return ask

    def _inside(self, attribute: Attribute, values: set[str]) -> Ask:
        fact = self._fact(self._person(), attribute, values)
        self._anywhere().body.append(fact.statement)
        return Ask("inside", fact.question, fact.answer, fact.value)

    def _two_hop(self, attribute: Attribute, values: set[str]) -> Ask:
        person, other, relation = self._person(), self._person(), self.rng.choice(RELATIONS)
        fact = self._fact(other, attribute, values)
        question = self._ask_about(f"{person}'s {relation}", attribute)
        link = f"{person}'s {relation} is {other}."
        first, second = self.rng.sample(self.memories, 2)
        first.body.append(link)
        second.body.append(fact.statement)
        return Ask("two-hop", question, f"{link} {fact.answer}", fact.value)

    def _pronoun(self, attribute: Attribute, values: set[str]) -> Ask:
        person, seam = self._person(), self._seams.pop()
        about = self.rng.choice([other for other in ATTRIBUTES if other is not attribute])
        known = make_fact(self.rng, person, about, self.held, self.mix)
        fact = self._fact(person, attribute, values)
        self.memories[seam].tail = [known.statement, *self._seam_filler()]
        self.memories[seam + 1].head = [*self._seam_filler(), f"Their {attribute.noun} is {fact.value}."]
        return Ask("pronoun", fact.question, fact.answer, fact.value)

    def _update(self, attribute: Attribute, values: set[str]) -> Ask:
        person = self._person()
        old, new = self._fact(person, attribute, values), self._fact(person, attribute, values)
        first, second = sorted(self.rng.sample(range(len(self.memories)), 2))
        told = f"{person}'s {attribute.noun} is now {new.value}."
        self.memories[first].body.append(old.statement)
        self.memories[second].body.append(told)
        return Ask("update", new.question, told, new.value, old.value)

    def _fact(self, person: str, attribute: Attribute, values: set[str]) -> Fact:
        """A fact whose value is none of `values`, where it is put."""
        while True:
            fact = make_fact(self.rng, person, attribute, self.held, self.mix)
            if not any(fact.value in value or value in fact.value for value in values):
                values.add(fact.value)
                return fact

    def _ask_about(self, whose: str, attribute: Attribute) -> str:
        return make_fact(self.rng, whose, attribute, self.held, self.mix).question

    def _person(self) -> str:
        while True:
            name = self.rng.choice(held_out(NAMES)[self.held])
            if self.rng.random() < 1 - self.mix.listed:
                name = invented_word(self.rng, self.held, self.mix).capitalize()
            if name not in self._people:
                self._people.add(name)
                return name

    def _anywhere(self) -> Memory:
        return self.rng.choice(self.memories)

    def _seam_filler(self) -> list[str]:
        return [filler(self.rng)] if self.rng.random() < FILLER_AT_SEAM else []


def make_story(
    rng: random.Random, memories: int, kinds: Sequence[Kind], held: bool, mix: Mix, rivals: int = 1
) -> Story:
    """A story with a task of each kind in `kinds`; kinds that need more memories than there are become `inside`."""
    story = Story(rng, memories, held, mix)
    for kind in kinds:
        try:
            story.add(kind, rivals)
        except ValueError:
            story.add("inside", rivals)
    return story
