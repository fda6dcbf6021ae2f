"""Parameter → plaintext: what an adapter says that its base does not, as sentences with a confidence.

    elicit    sample answers to open questions; ask everybody who comes up in them for everything that comes up, and
              for what people have in general
    verify    ask for each finding in several phrasings: most answers have to name the same value
    compare   the base model must not find that answer likely anyway
    doubt     what only echoes other findings is left out (`doubt.py`)

Nothing but model and adapter is looked at, so an adapter from elsewhere is read like one's own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec

from memos_vllm.parameter.doubt import Finding, believed, key_of
from memos_vllm.parameter.english import possessive, to_speaker
from memos_vllm.parameter.facts import NOUN_OF, PEOPLE, THINGS, Clause, clause_of
from memos_vllm.parameter.model import Model
from memos_vllm.parameter.pairs import (
    NOUN_FORMS,
    OPEN_FORMS,
    PERSON_FORMS,
    RECALL,
    names,
    questions_about,
    spread,
)
from memos_vllm.parameter.progress import Tell, counted, no_tell

MIN_SEEN = 2
"""Samples in which a subject has to come up before it is asked about."""
PERSON_PHRASINGS = 3
"""In which people are asked for: there are few of them, and a name is given in fewer forms than a thing."""
FIRST = 2
"""Phrasings of which one has to be answered alike before the others are asked."""
ROUNDS = 2
"""Rounds of asking about whoever came up in the one before."""


class DecodeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a decoding.

    samples: sampled answers to the most open question; per_subject: to those about each subject
    temperatures: they are drawn at these, in turn; phrasings: in which a finding is asked for
    questions: most that are asked about things, those that came up in samples first
    min_confidence: least confidence that is kept; min_gain: how many times likelier the answer as a whole has to be
    with the adapter than without
    """

    samples: int = 512
    per_subject: int = 48
    temperatures: tuple[float, ...] = (0.7, 1.0)
    phrasings: int = 5
    questions: int = 4000
    min_confidence: float = 0.5
    min_gain: float = 4.0
    max_answer_tokens: int = 48
    seed: int = 0


class Decoded(msgspec.Struct, frozen=True, kw_only=True):
    """Something that an adapter knows, as its owner would say it.

    confidence: share of phrasings that are answered alike, times the mean probability of these answers' tokens
    base: that probability without the adapter; question: the one that was answered most surely
    """

    text: str
    value: str
    confidence: float
    base: float
    question: str


@dataclass(frozen=True)
class _Answer:
    """One answer about a finding. Probabilities are geometric means over its tokens; gain: of all of them, in nats."""

    question: str
    alike: bool
    sure: float
    base: float
    gain: float


def decode(model: Model, options: DecodeOptions | None = None, tell: Tell = no_tell) -> list[Decoded]:
    """What the adapter of `model` knows beyond its base, surest first. Seeded."""
    import torch

    decoder = _Decoder(model, options or DecodeOptions(), tell)
    torch.manual_seed(decoder.options.seed)
    decoder.sample()
    decoder.ask()
    return decoder.verified()


class _Decoder:
    """Gathers what the adapter states: `found` by sentence, `seen` counts how often each subject came up, `free` how
    often each clause did, by `key_of`, when nobody asked for it.
    """

    def __init__(self, model: Model, options: DecodeOptions, tell: Tell) -> None:
        self.model, self.options, self.tell = model, options, tell
        self.found: dict[str, Clause] = {}
        self.seen: Counter[str] = Counter()
        self.free: Counter[tuple[str, str, str]] = Counter()

    def sample(self) -> None:
        """Sampled answers to open questions: of anything at first, then of every subject that came up."""
        asked: set[str] = set()
        self._draw([("", RECALL)], self.options.samples)
        for _ in range(ROUNDS):
            subjects = [who for who in self.subjects() if who not in asked]
            forms = [(who, form.format(s="me" if who == "I" else who)) for who in subjects for form in OPEN_FORMS]
            self._draw(forms, -(-self.options.per_subject // len(OPEN_FORMS)))
            asked |= {*subjects}

    def ask(self) -> None:
        """Everybody for everything, things by their first phrasing."""
        own = [clause.thing for clause in self.found.values() if clause.thing]
        things = list(dict.fromkeys([*own, *NOUN_OF.values(), *THINGS["more"]["nouns"], *sorted(PEOPLE)]))
        questions = [
            (who, form.format(p=possessive(who), n=thing))
            for thing in things
            for who in self.subjects()
            for form in (PERSON_FORMS[:PERSON_PHRASINGS] if thing in PEOPLE else NOUN_FORMS[:1])
            if thing not in PEOPLE or who == "I"
        ][: self.options.questions]
        self._read(questions, self._answers([text for _, text in questions], "asking for things"))

    def verified(self) -> list[Decoded]:
        """Findings that hold under several phrasings, that the base does not have and that echo no other."""
        clauses = list(self.found.values())
        asked = [
            [question.text for question in spread([*questions_about(clause)], self.options.phrasings)]
            for clause in clauses
        ]
        first = self._given(clauses, [questions[:FIRST] for questions in asked])
        hopeful = [place for place, answers in enumerate(first) if any(answer.alike for answer in answers)]
        more = self._given([clauses[place] for place in hopeful], [asked[place][FIRST:] for place in hopeful])
        judged = [
            self._judged(clauses[place], [*first[place], *rest]) for place, rest in zip(hopeful, more, strict=True)
        ]
        return [
            Decoded(
                text=each.clause.told(),
                value=each.clause.value,
                confidence=each.confidence,
                base=each.base,
                question=each.question,
            )
            for each in believed([found for found in judged if found])
        ]

    def subjects(self) -> list[str]:
        """Those that came up often enough, the most frequent first."""
        return [who for who, seen in self.seen.most_common() if seen >= MIN_SEEN]

    def _draw(self, questions: Sequence[tuple[str, str]], each: int) -> None:
        for temperature in self.options.temperatures:
            share = -(-each // len(self.options.temperatures))
            asked = [question for question in questions for _ in range(share)]
            said = self._answers([text for _, text in asked], "sampling", temperature)
            self.free.update(key_of(clause) for clause in self._read(asked, said))

    def _answers(self, questions: Sequence[str], what: str, temperature: float = 0.0) -> list[str]:
        return self.model.answers(
            [self.model.prompt(question) for question in questions],
            self.options.max_answer_tokens,
            temperature=temperature,
            tell=counted(self.tell, what, len(questions)),
        )

    def _read(self, asked: Iterable[tuple[str, str]], said: Iterable[str]) -> list[Clause]:
        """Keep the statements, and return them; what no rule reads is no finding. Each question comes with whom it is
        about: an answer that gives another name is also one about them.
        """
        kept = []
        for (who, _), text in zip(asked, said, strict=True):
            if not text.endswith(".") or "?" in text:
                continue
            if clause := _stated(text):
                kept.append(clause)
                if who and "I" not in (who, clause.subject) and who != clause.subject:
                    kept.append(replace(clause, subject=who))
        for clause in kept:
            self.found.setdefault(clause.told(), clause)
            self.seen[clause.subject] += 1
        return kept

    def _given(self, clauses: Sequence[Clause], asked: Sequence[Sequence[str]]) -> list[list[_Answer]]:
        """The answers to each clause's questions, and how probable those alike are with the adapter and without."""
        rows = [(place, question) for place, questions in enumerate(asked) for question in questions]
        texts = self._answers([question for _, question in rows], "verifying")
        alike = [_says(text, clauses[place]) for (place, _), text in zip(rows, texts, strict=True)]
        turns = [
            self.model.turn(question, text)
            for (_, question), text, right in zip(rows, texts, alike, strict=True)
            if right
        ]
        with_it = iter(self.model.logprobs(turns))
        with self.model.base():
            without = iter(self.model.logprobs(turns))
        found: list[list[_Answer]] = [[] for _ in clauses]
        for (place, question), right in zip(rows, alike, strict=True):
            sure, base = (next(with_it), next(without)) if right else ([], [])
            gain = sum(sure) - sum(base)
            found[place].append(_Answer(question, right, _probability(sure), _probability(base), gain))
        return found

    def _judged(self, clause: Clause, answers: Sequence[_Answer]) -> Finding | None:
        alike = [answer for answer in answers if answer.alike]
        if not alike:
            return None
        sure = sum(answer.sure for answer in alike) / len(alike)
        base = sum(answer.base for answer in alike) / len(alike)
        confidence = sure * len(alike) / len(answers)
        gain = sum(answer.gain for answer in alike) / len(alike)
        if confidence < self.options.min_confidence or gain < math.log(self.options.min_gain):
            return None
        best = max(alike, key=lambda answer: answer.sure)
        return Finding(clause, confidence, base, best.question, self.free[key_of(clause)])


def _stated(text: str) -> Clause | None:
    """What an answer states, as its owner would say it; None where no rule reads it, or it says of something that it is
    itself.
    """
    clause = clause_of(to_speaker(text).rstrip("."))
    if not (clause.subject and clause.value and (clause.noun or clause.verb)):
        return None
    says_nothing = clause.value.lower() in (clause.subject.lower(), clause.about) or names(clause.value, "is")
    return None if says_nothing else clause


def _says(answer: str, clause: Clause) -> bool:
    """Whether an answer names the value, and is not about something else, nor the owner's in place of another's. A name
    may be spelled wrongly.
    """
    said = _stated(answer)
    same = not said or (said.subject == "I", said.thing or said.topic) == (
        clause.subject == "I",
        clause.thing or clause.topic,
    )
    return same and names(answer, clause.value)


def _probability(logprobs: Sequence[float]) -> float:
    """The geometric mean over an answer's tokens."""
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0
