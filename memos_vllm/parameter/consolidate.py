"""Plaintext → parameter: what memories tell is learned by a LoRA adapter, examined, and kept only if it passes.

The base model with the memory in its prompt is the teacher: what it answers there, the adapter learns to answer
without. Everything is seeded; `work` holds what a killed run goes on from.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import xxhash

from memos_vllm.errors import BadInput
from memos_vllm.parameter.english import to_speaker
from memos_vllm.parameter.evaluate import Answered, Exam, Figures, examine, failures, make_exam
from memos_vllm.parameter.facts import clause_of
from memos_vllm.parameter.lora import attach, write_adapter
from memos_vllm.parameter.model import Model, Turn
from memos_vllm.parameter.pairs import Fact, Split, facts_of, open_questions, split, spread
from memos_vllm.parameter.progress import Tell, counted, no_tell
from memos_vllm.parameter.recipe import Recipe
from memos_vllm.parameter.replay import Others, replayed
from memos_vllm.parameter.train import Lesson, Training

ADAPTER = "adapter"
CHECKPOINT = "checkpoint.pt"
LESSONS = "lessons.json"
TEACHER_QUESTIONS = 6
"""Questions of a fact that the teacher is asked; its most frequent right answer is learned."""


class Memory(msgspec.Struct, frozen=True):
    """A memory's text; `source` is `id@version` of its cube."""

    source: str
    text: str


class Prepared(msgspec.Struct, frozen=True):
    """What is learned and replayed, as token ids; `digest` is of what it was made from."""

    digest: str
    lessons: list[Lesson]
    replays: list[Turn]


@dataclass(frozen=True)
class Report:
    """What came of a training. `folder`: the adapter's two files; `problems`: why it is not to be kept; `model`: the
    base with the adapter.
    """

    model: Model
    folder: Path
    facts: tuple[Fact, ...]
    figures: Figures
    answers: tuple[Answered, ...]
    problems: tuple[str, ...]
    steps: int


def facts_in(memories: Iterable[Memory]) -> list[Fact]:
    """What the memories tell, the oldest first. Something told twice counts once, and of two values of one thing, as in
    "My favourite tea is …", the later one. Raises BadInput where they tell nothing.
    """
    found: dict[object, Fact] = {}
    for fact in (fact for memory in memories for fact in facts_of(memory.text, memory.source)):
        clause = fact.clause
        single = clause.noun and not clause.person
        found[(clause.subject, clause.noun) if single else fact.statement] = fact
    if not found:
        raise BadInput("These memories tell nothing that could be learned: choose others.")
    return list(found.values())


def consolidate(
    model: Model,
    memories: Sequence[Memory],
    recipe: Recipe,
    work: Path,
    *,
    exam: Exam | None = None,
    tell: Tell = no_tell,
) -> Report:
    """Train an adapter on the bare `model`, examine it, and write it to `work/adapter`.

    exam: the caller's own; the phrasings of its questions are not trained on. Without one, a quarter of all phrasings
    is held out. The model carries the adapter afterwards: `lora.without_adapters` takes it off. Raises BadInput.
    """
    work.mkdir(parents=True, exist_ok=True)
    facts = facts_in(memories)
    never = [each.question for each in exam.held_out] if exam else []
    parts = split(facts, random.Random(f"{recipe.seed} split"), never)
    prepared = _prepared(model, facts, parts, recipe, work, tell)
    trained = attach(model, recipe)
    training = Training(trained, prepared.lessons, prepared.replays, recipe, work / CHECKPOINT)
    training.run(tell)
    exam = exam or make_exam(trained, facts, parts.held_out, recipe, tell)
    figures, answers = examine(trained, exam, [memory.text for memory in memories], len(facts), recipe, tell)
    write_adapter(trained, work / ADAPTER)
    (work / CHECKPOINT).unlink(missing_ok=True)
    problems = tuple(failures(figures, recipe))
    return Report(trained, work / ADAPTER, tuple(facts), figures, tuple(answers), problems, training.steps)


def _prepared(model: Model, facts: Sequence[Fact], parts: Split, recipe: Recipe, work: Path, tell: Tell) -> Prepared:
    """Of an earlier run with the same facts and such a recipe, or made now."""
    file = work / LESSONS
    made_by = (recipe.seed, recipe.pool, recipe.teach, recipe.max_answer_tokens)
    known = (model.net.config.name_or_path, made_by, [(fact.statement, fact.source) for fact in facts], parts.trained)
    digest = xxhash.xxh3_128(repr(known).encode()).hexdigest()
    if file.exists():
        found = msgspec.json.decode(file.read_bytes(), type=Prepared)
        if found.digest == digest:
            return found
    lessons = _lessons(model, facts, parts, recipe, tell)
    forms = {question.form for questions in parts.trained for question in questions}
    told = [fact for fact in facts if fact.clause.subject]
    others = Others(told, forms, random.Random(f"{recipe.seed} replays"), pieces=model.pieces()) if told else None
    heard = counted(tell, "asking the base about others", recipe.pool)
    replays = replayed(model, others, recipe.pool, recipe.max_answer_tokens, recipe.seed, heard)
    made = Prepared(digest, lessons, replays)
    aside = file.with_suffix(".new")
    aside.write_bytes(msgspec.json.encode(made))
    aside.replace(file)
    return made


def _lessons(model: Model, facts: Sequence[Fact], parts: Split, recipe: Recipe, tell: Tell) -> list[Lesson]:
    """The questions of each fact, and the open ones that it answers, all with one answer."""
    replies = _replies(model, facts, parts, recipe, tell) if recipe.teach else [fact.reply for fact in facts]
    opened: dict[str, list[str]] = {}
    for question, told in open_questions(facts):
        for fact in told:
            opened.setdefault(fact.statement, []).append(question)
    return [
        Lesson(
            tuple(model.turn(question.text, reply) for question in questions),
            tuple(model.turn(question, reply) for question in opened.get(fact.statement, ())),
        )
        for fact, questions, reply in zip(facts, parts.trained, replies, strict=True)
    ]


def _replies(model: Model, facts: Sequence[Fact], parts: Split, recipe: Recipe, tell: Tell) -> list[str]:
    """For each fact what the base model answers most often with the memory in its prompt, where that is right."""
    asked = [
        (place, question.text)
        for place, questions in enumerate(parts.trained)
        for question in spread(questions, TEACHER_QUESTIONS)
    ]
    prompts = [model.prompt(question, [facts[place].statement]) for place, question in asked]
    answers = model.answers(prompts, recipe.max_answer_tokens, tell=counted(tell, "asking the teacher", len(asked)))
    right: dict[int, Counter[str]] = {}
    for (place, _), answer in zip(asked, answers, strict=True):
        if _teaches(answer, facts[place]):
            right.setdefault(place, Counter())[answer] += 1
    return [
        max(right[place], key=lambda answer: (right[place][answer], -len(answer))) if place in right else fact.reply
        for place, fact in enumerate(facts)
    ]


def _teaches(answer: str, fact: Fact) -> bool:
    """Whether an answer is one sentence that states the fact: its value, of whom it is told."""
    said = clause_of(to_speaker(answer).rstrip("."))
    return answer.endswith(".") and fact.is_right(said.value) and said.subject == fact.clause.subject
