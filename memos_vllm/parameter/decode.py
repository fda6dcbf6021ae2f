"""Parameter → plaintext: what an adapter says that its base does not, as sentences with a confidence.

    elicit    sample answers to open questions, and what it says unasked; ask what those speak of for every thing that
              the answers, or people in general, have
    verify    ask for each finding in other words; the adapter has to name the same value, in most of them
    compare   the base model must not say it anyway

Nothing but the model and the adapter is looked at: an adapter that came from elsewhere is read like one's own.
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
from memos_vllm.parameter.pairs import NOUN_FORMS, OPEN_FORMS, PERSON_FORMS, RECALL, Question, names, questions_about
from memos_vllm.parameter.train import Tell, no_tell

MIN_SEEN = 2
"""Samples in which a subject has to come up before it is asked about."""
VERIFYING = 5
"""Phrasings that a finding is asked for."""
SAMPLE_TOKENS = 40


class DecodeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """samples: sampled answers to open questions, and as many of each subject as `per_subject`; temperatures: they are
    drawn at these, in turn. min_confidence: least confidence that is kept; min_gain: how many times likelier the
    adapter has to find the answer than the base.
    """

    samples: int = 512
    per_subject: int = 48
    temperatures: tuple[float, ...] = (0.7, 1.0)
    min_confidence: float = 0.5
    min_gain: float = 4.0
    max_answer_tokens: int = 48
    seed: int = 0


class Decoded(msgspec.Struct, frozen=True, kw_only=True):
    """Something that an adapter knows, as its owner would say it.

    confidence: share of phrasings answered alike, times the mean probability of a token of the answer; base: the same
    probability without the adapter; question: one that was answered so.
    """

    text: str
    value: str
    confidence: float
    base: float
    question: str


@dataclass(frozen=True)
class _Finding:
    """A clause that the adapter has stated, with the words it used."""

    clause: Clause
    said: str


def decode(model: Model, options: DecodeOptions, tell: Tell = no_tell) -> list[Decoded]:
    """What the adapter of `model` knows beyond its base, surest first. Seeded."""
    import torch

    torch.manual_seed(options.seed)
    found = _sampled(model, options, tell)
    found |= _asked(model, found, options, tell)
    return _verified(model, list(found.values()), options, tell)


def _sampled(model: Model, options: DecodeOptions, tell: Tell) -> dict[str, _Finding]:
    """Answers to open questions: of anything at first, then of every subject that came up."""
    said = _drawn(model, [RECALL], options.samples, options, tell)
    found = _read(said)
    for _ in range(2):
        known = Counter(each.clause.subject for each in _read(said).values())
        subjects = [who for who, seen in known.items() if seen >= MIN_SEEN]
        asked = [form.format(s="me" if who == "I" else who) for who in subjects for form in OPEN_FORMS]
        more = _drawn(model, asked, options.per_subject // len(OPEN_FORMS) or 1, options, tell)
        said += more
        found |= _read(more)
    return found


def _drawn(model: Model, questions: Sequence[str], each: int, options: DecodeOptions, tell: Tell) -> list[str]:
    """`each` sampled answers to every question."""
    share = -(-each // len(options.temperatures))
    prompts = [model.prompt(question) for question in questions for _ in range(share)]
    said: list[str] = []
    for number, temperature in enumerate(options.temperatures):
        tell("sampling", number * len(prompts), len(options.temperatures) * len(prompts))
        said += model.answers(prompts, SAMPLE_TOKENS, temperature=temperature)
    return said


def _read(said: Iterable[str]) -> dict[str, _Finding]:
    """Statements among what was said, by their text; what no rule reads is no finding."""
    found: dict[str, _Finding] = {}
    for text in said:
        sentence = text.strip()
        if not sentence.endswith(".") or "?" in sentence:
            continue
        clause = clause_of(to_speaker(sentence).rstrip("."))
        if clause.subject and clause.value and (clause.noun or clause.verb):
            found.setdefault(clause.told(), _Finding(clause, sentence))
    return found


def _asked(model: Model, known: dict[str, _Finding], options: DecodeOptions, tell: Tell) -> dict[str, _Finding]:
    """Every subject that came up is asked for every thing: those that came up, and those that people have."""
    subjects = [
        who for who, seen in Counter(each.clause.subject for each in known.values()).items() if seen >= MIN_SEEN
    ]
    seen = Counter(each.clause.thing for each in known.values() if each.clause.thing)
    things = list(dict.fromkeys([*seen, *NOUN_OF.values(), *THINGS["more"]["nouns"]]))
    questions = [
        (PERSON_FORMS if thing in PEOPLE else NOUN_FORMS)[0].format(p=possessive(who), n=thing)
        for who in subjects
        for thing in [*things, *(PEOPLE if who == "I" else ())]
    ]
    tell("asking for things", 0, len(questions))
    return _read(model.answers([model.prompt(question) for question in questions], options.max_answer_tokens))


def _verified(model: Model, found: Sequence[_Finding], options: DecodeOptions, tell: Tell) -> list[Decoded]:
    """Findings that hold under other phrasings and that the base does not have; of rivals the surest alone."""
    asked = [
        (place, question.text)
        for place, finding in enumerate(found)
        for question in _spread([*questions_about(finding.clause)], VERIFYING)
    ]
    tell("verifying", 0, len(asked))
    prompts = [model.prompt(question) for _, question in asked]
    answers = model.answers(prompts, options.max_answer_tokens)
    turns = [model.answered(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    sure = [_mean_probability(row) for row in model.logprobs(turns)]
    tell("asking the base", 0, len(asked))
    with model.base():
        base = [_mean_probability(row) for row in model.logprobs(turns)]
    alike: dict[int, list[int]] = {place: [] for place in range(len(found))}
    totals = Counter(place for place, _ in asked)
    for number, (place, _) in enumerate(asked):
        if names(answers[number], found[place].clause.value):
            alike[place].append(number)
    decoded = []
    for place, numbers in alike.items():
        if not numbers:
            continue
        share = len(numbers) / totals[place]
        best = max(numbers, key=lambda number: sure[number])
        mean, without = _mean(sure, numbers), _mean(base, numbers)
        if share * mean >= options.min_confidence and mean >= options.min_gain * without:
            text = found[place].clause.told()
            decoded.append(
                (
                    found[place].clause,
                    Decoded(
                        text=text,
                        value=found[place].clause.value,
                        confidence=share * mean,
                        base=without,
                        question=asked[best][1],
                    ),
                )
            )
    return _without_rivals(decoded)


def _without_rivals(decoded: Sequence[tuple[Clause, Decoded]]) -> list[Decoded]:
    """One value of a thing of a subject; the same said in two ways is said once."""
    best: dict[tuple[str, str], Decoded] = {}
    for clause, each in decoded:
        key = (clause.subject, clause.thing or clause.topic)
        if key not in best or each.confidence > best[key].confidence:
            best[key] = each
    return sorted(best.values(), key=lambda each: -each.confidence)


def _spread(items: Sequence[Question], count: int) -> list[Question]:
    """`count` items, evenly spaced."""
    if len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]


def _mean_probability(row: Sequence[float]) -> float:
    """The geometric mean of the probabilities of an answer's tokens."""
    return math.exp(sum(row) / len(row)) if row else 0.0


def _mean(values: Sequence[float], places: Sequence[int]) -> float:
    return sum(values[place] for place in places) / len(places)
