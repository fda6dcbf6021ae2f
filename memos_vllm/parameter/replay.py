"""What an adapter must not change: prompts that are replayed in training, with the base model's own answers.

They are made of the memories themselves, told of other people and with other values, so that no prompt says what is
learned, and the base model's answers are what stays right: read the memories of the prompt, also where they
contradict what was learned, and know nothing of people and things that were not told.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memos_vllm.parameter.english import upper
from memos_vllm.parameter.facts import NAMES, Clause
from memos_vllm.parameter.model import Model, Turn
from memos_vllm.parameter.pairs import Fact, Question, names, questions_about

UNRELATED = Path(__file__).with_name("unrelated.txt").read_text(encoding="utf-8").splitlines()
MOST_MEMORIES = 6
TEXT_SHARE = 4
"""One replayed prompt in so many is plain text."""
SELF_TEXT_TOKENS = 48
MOST_ROUNDS = 4
"""How often prompts with memories are drawn anew, in search of ones that the base model answers rightly."""
OWN_PEOPLE = 0.6
"""How often a replayed memory is about people whom the adapter learns of, or the speaker."""


@dataclass(frozen=True)
class Asked:
    """A question with memories in its prompt; `value` is what a right answer names, `form` that of its phrasing."""

    question: str
    value: str
    memories: tuple[str, ...] = ()
    form: str = ""

    def is_right(self, answer: str) -> bool:
        return names(answer, self.value)


class Others:
    """Draws memories like those of `facts`, of other people. `evaluation`: of people whom training does not draw.

    pieces: of words, from which such are made up that nobody knows
    """

    def __init__(
        self,
        facts: Sequence[Fact],
        forms: set[str],
        rng: random.Random,
        *,
        pieces: Sequence[str] = (),
        evaluation: bool = False,
    ) -> None:
        self.pieces = pieces
        self.clauses = [fact.clause for fact in facts if fact.clause.subject]
        self.subjects = list(dict.fromkeys(clause.subject for clause in self.clauses))
        self.forms, self.rng = forms, rng
        half = [name for name in NAMES if name not in self.subjects]
        self.names = half[::2] if evaluation else half[1::2]
        self.values: dict[str, list[str]] = {}
        for clause in self.clauses:
            self.values.setdefault(clause.topic, []).append(clause.value)
        self.told = {(clause.subject, clause.about) for clause in self.clauses}

    def asked(self, own_people: float) -> Asked:
        """A question about one of up to MOST_MEMORIES memories; `own_people`: how often it is about known people, half
        of the time about the speaker.
        """
        rng = self.rng
        told: list[Clause] = []
        while not told or (len(told) < MOST_MEMORIES and rng.random() < 0.75):
            clause = rng.choice(self.clauses)
            told.append(_retold(clause, self.who(own_people), self.value(clause)))
        chosen = rng.choice(told)
        kept = [each for each in told if each is chosen or not _same(each, chosen)]
        question = self.question(chosen)
        return Asked(question.text, chosen.value, tuple(each.told() for each in kept), question.form)

    def unknown(self) -> str:
        """A question that nothing told answers: about somebody else, or about another thing of somebody known."""
        rng = self.rng
        for _ in range(20):
            clause, who = rng.choice(self.clauses), rng.choice(self.subjects)
            if (who, clause.about) not in self.told and rng.random() < 0.7:
                return self.question(_retold(clause, who, clause.value)).text
        return self.question(_retold(rng.choice(self.clauses), self.name(), "it")).text

    def who(self, own_people: float) -> str:
        drawn = self.rng.random()
        if drawn < own_people:
            return "I" if drawn < own_people / 2 else self.rng.choice(self.subjects)
        return self.name()

    def name(self) -> str:
        return self.rng.choice(self.names) if self.rng.random() < 0.5 else upper(self.word())

    def value(self, clause: Clause) -> str:
        """A value of the same kind of thing, or a word that nobody knows: reading, not guessing, is replayed."""
        others = [value for value in self.values[clause.topic] if value != clause.value]
        if others and self.rng.random() < 0.6:
            return self.rng.choice(others)
        word = self.word()
        return upper(word) if clause.value[:1].isupper() else word

    def word(self) -> str:
        """An invented word of two or three syllables, or of up to three pieces."""
        rng = self.rng
        if self.pieces and rng.random() < 0.5:
            return "".join(rng.choice(self.pieces) for _ in range(rng.choice((1, 2, 2, 3))))
        return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3))))

    def question(self, clause: Clause) -> Question:
        """In one of the forms, where there is one for it."""
        allowed = [each for each in questions_about(clause) if each.form in self.forms]
        return self.rng.choice(allowed or list(questions_about(clause)))


def _retold(clause: Clause, who: str, value: str) -> Clause:
    return replace(clause, subject=who, value=value)


def _same(one: Clause, other: Clause) -> bool:
    return one.subject == other.subject and one.about == other.about


def replayed(
    model: Model, others: Others | None, count: int, most: int, seed: int, tell: Callable[[int], None] | None = None
) -> list[Turn]:
    """`count` prompts with the base model's answers: half with memories, a quarter mostly without, a quarter text."""
    texts = [model.text_turn(text) for text in _texts(model, -(-count // TEXT_SHARE), seed)]
    if others is None:
        return texts
    read = _read(model, others, count // 2, most)
    prompts = []
    for number in range(count - len(read) - len(texts)):
        memories = others.asked(0.0).memories if number % 4 == 0 else ()
        prompts.append(model.prompt(others.unknown(), memories))
    with model.base():
        answers = model.answers(prompts, most, tell=tell)
    return [*texts, *read, *(model.answered(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True))]


def _read(model: Model, others: Others, count: int, most: int) -> list[Turn]:
    """Up to `count` prompts with memories that the base model reads rightly: what it misses needs no keeping."""
    found: list[Turn] = []
    for _ in range(MOST_ROUNDS):
        asked = [others.asked(OWN_PEOPLE) for _ in range(count)]
        prompts = [model.prompt(each.question, each.memories) for each in asked]
        with model.base():
            answers = model.answers(prompts, most)
        for each, prompt, answer in zip(asked, prompts, answers, strict=True):
            if each.is_right(answer) and len(found) < count:
                found.append(model.answered(prompt, answer))
        if len(found) >= count:
            break
    return found


def _texts(model: Model, count: int, seed: int) -> list[str]:
    """Half from the file's first half, half of what the base model itself writes."""
    import torch

    torch.manual_seed(seed)
    known = UNRELATED[: len(UNRELATED) // 2]
    start = model.tokenizer.bos_token_id
    written: list[str] = []
    if start is not None:
        with model.base():
            written = model.answers([(start,)] * (count // 2), SELF_TEXT_TOKENS, temperature=1.0)
    kept = [text for text in written if len(text.split()) > 2]
    return [*kept, *(known[place % len(known)] for place in range(count - len(kept)))]
