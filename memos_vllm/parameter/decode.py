"""Parameter → plaintext: what an adapter says that its base does not, as sentences with a confidence.

    elicit    sample answers to open questions; ask everybody who comes up in them for everything that comes up, and
              for what people have in general
    verify    ask for each finding in several phrasings: most answers have to name the same value
    compare   the base model must not find that answer likely anyway

Nothing but model and adapter is looked at, so an adapter from elsewhere is read like one's own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

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
ECHOES, FEW, SURE = 0.8, 3, 0.9
"""Share of a subject's findings that others are surer of, from which on all of them are doubted; a subject with fewer
findings than so many is believed from this confidence on."""
FIRST = 2
"""Phrasings of which one has to be answered alike before the others are asked."""
ROUNDS = 2
"""Rounds of asking about whoever came up in the one before."""


class DecodeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a decoding.

    samples: sampled answers to the most open question; per_subject: to those about each subject
    temperatures: they are drawn at these, in turn; phrasings: in which a finding is asked for
    questions: most that are asked about things, those that came up in samples first
    min_confidence: least confidence that is kept; min_gain: how many times likelier the answer has to be with the
    adapter than without
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
    """One answer about a finding; probabilities are geometric means over its tokens."""

    question: str
    alike: bool
    sure: float
    base: float


def decode(model: Model, options: DecodeOptions | None = None, tell: Tell = no_tell) -> list[Decoded]:
    """What the adapter of `model` knows beyond its base, surest first. Seeded."""
    import torch

    decoder = _Decoder(model, options or DecodeOptions(), tell)
    torch.manual_seed(decoder.options.seed)
    decoder.sample()
    decoder.ask()
    return decoder.verified()


class _Decoder:
    """Gathers what the adapter states: `found` by sentence, `seen` counts how often each subject came up."""

    def __init__(self, model: Model, options: DecodeOptions, tell: Tell) -> None:
        self.model, self.options, self.tell = model, options, tell
        self.found: dict[str, Clause] = {}
        self.seen: Counter[str] = Counter()

    def sample(self) -> None:
        """Sampled answers to open questions: of anything at first, then of every subject that came up."""
        asked: set[str] = set()
        self._draw([RECALL], self.options.samples)
        for _ in range(ROUNDS):
            subjects = [who for who in self.subjects() if who not in asked]
            forms = [form.format(s="me" if who == "I" else who) for who in subjects for form in OPEN_FORMS]
            self._draw(forms, -(-self.options.per_subject // len(OPEN_FORMS)))
            asked |= {*subjects}

    def ask(self) -> None:
        """Everybody for everything, by the first phrasing of each."""
        own = [clause.thing for clause in self.found.values() if clause.thing]
        things = list(dict.fromkeys([*own, *NOUN_OF.values(), *THINGS["more"]["nouns"], *sorted(PEOPLE)]))
        questions = [
            (PERSON_FORMS if thing in PEOPLE else NOUN_FORMS)[0].format(p=possessive(who), n=thing)
            for thing in things
            for who in self.subjects()
            if thing not in PEOPLE or who == "I"
        ]
        self._read(self._answers(questions[: self.options.questions], "asking for things"))

    def verified(self) -> list[Decoded]:
        """Findings that hold under several phrasings and that the base does not have; of rivals the surest."""
        clauses = list(self.found.values())
        asked = [
            [question.text for question in spread([*questions_about(clause)], self.options.phrasings)]
            for clause in clauses
        ]
        first = self._given(clauses, [questions[:FIRST] for questions in asked])
        hopeful = [place for place, answers in enumerate(first) if any(answer.alike for answer in answers)]
        more = self._given([clauses[place] for place in hopeful], [asked[place][FIRST:] for place in hopeful])
        judged = [
            (clauses[place], self._judged(clauses[place], [*first[place], *rest]))
            for place, rest in zip(hopeful, more, strict=True)
        ]
        return _without_echoes(_without_rivals([(clause, each) for clause, each in judged if each is not None]))

    def subjects(self) -> list[str]:
        """Those that came up often enough, the most frequent first."""
        return [who for who, seen in self.seen.most_common() if seen >= MIN_SEEN]

    def _draw(self, questions: Sequence[str], each: int) -> None:
        for temperature in self.options.temperatures:
            share = -(-each // len(self.options.temperatures))
            self._read(self._answers([text for text in questions for _ in range(share)], "sampling", temperature))

    def _answers(self, questions: Sequence[str], what: str, temperature: float = 0.0) -> list[str]:
        return self.model.answers(
            [self.model.prompt(question) for question in questions],
            self.options.max_answer_tokens,
            temperature=temperature,
            tell=counted(self.tell, what, len(questions)),
        )

    def _read(self, said: Iterable[str]) -> None:
        """Keep the statements; what no rule reads is no finding."""
        for text in said:
            if not text.endswith(".") or "?" in text:
                continue
            if clause := _stated(text):
                self.found.setdefault(clause.told(), clause)
                self.seen[clause.subject] += 1

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
        sure = iter(self.model.logprobs(turns))
        with self.model.base():
            base = iter(self.model.logprobs(turns))
        found: list[list[_Answer]] = [[] for _ in clauses]
        for (place, question), right in zip(rows, alike, strict=True):
            odds = (_probability(next(sure)), _probability(next(base))) if right else (0.0, 0.0)
            found[place].append(_Answer(question, right, *odds))
        return found

    def _judged(self, clause: Clause, answers: Sequence[_Answer]) -> Decoded | None:
        alike = [answer for answer in answers if answer.alike]
        if not alike:
            return None
        sure = sum(answer.sure for answer in alike) / len(alike)
        base = sum(answer.base for answer in alike) / len(alike)
        confidence = sure * len(alike) / len(answers)
        if confidence < self.options.min_confidence or sure < self.options.min_gain * base:
            return None
        best = max(alike, key=lambda answer: answer.sure)
        return Decoded(text=clause.told(), value=clause.value, confidence=confidence, base=base, question=best.question)


def _stated(text: str) -> Clause | None:
    """What an answer states, as its owner would say it; None where no rule reads it."""
    clause = clause_of(to_speaker(text).rstrip("."))
    return clause if clause.subject and clause.value and (clause.noun or clause.verb) else None


def _says(answer: str, clause: Clause) -> bool:
    """Whether an answer names the value, and is not about somebody or something else."""
    said = _stated(answer)
    same = not said or (said.subject, said.thing or said.topic) == (clause.subject, clause.thing or clause.topic)
    return same and names(answer, clause.value)


def _without_rivals(decoded: Sequence[tuple[Clause, Decoded]]) -> list[tuple[Clause, Decoded]]:
    """One value of a thing of a subject; what is said in two ways is said once. The surest first."""
    best: dict[tuple[str, ...], tuple[Clause, Decoded]] = {}
    for clause, each in sorted(decoded, key=lambda found: -found[1].confidence):
        best.setdefault((clause.subject, clause.thing or clause.topic), (clause, each))
    once: dict[tuple[str, ...], tuple[Clause, Decoded]] = {}
    for clause, each in best.values():
        once.setdefault((clause.subject, clause.about, clause.value.lower()), (clause, each))
    return list(once.values())


def _without_echoes(decoded: Sequence[tuple[Clause, Decoded]]) -> list[Decoded]:
    """Without subjects of whom hardly anything is told but what others are surer of: an adapter takes strangers for
    people whom it knows. Of a subject with little to tell, only what is said with doubt.
    """
    first: dict[tuple[str, str], str] = {}
    own: dict[str, list[tuple[Clause, Decoded]]] = {}
    for clause, each in decoded:
        first.setdefault((clause.about, clause.value.lower()), clause.subject)
        own.setdefault(clause.subject, []).append((clause, each))
    kept = []
    for subject, found in own.items():
        echoes = sum(first[clause.about, clause.value.lower()] != subject for clause, _ in found)
        mean = sum(each.confidence for _, each in found) / len(found)
        if echoes < ECHOES * len(found) or (len(found) < FEW and mean >= SURE):
            kept += [each for _, each in found]
    return sorted(kept, key=lambda each: -each.confidence)


def _probability(logprobs: Sequence[float]) -> float:
    """The geometric mean over an answer's tokens."""
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0
