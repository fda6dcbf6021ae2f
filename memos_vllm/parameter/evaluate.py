"""What an adapter knows and what it costs: held-out phrasings without memory, memories of others, unrelated text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

import msgspec

from memos_vllm.parameter.model import Model
from memos_vllm.parameter.pairs import Fact, Question
from memos_vllm.parameter.progress import Tell, counted
from memos_vllm.parameter.recipe import Recipe
from memos_vllm.parameter.replay import UNRELATED, Asked, Others

QUESTIONS_OF_A_FACT = 2
READ = 0.8
"""Share of the questions in a phrasing that the base model has to answer from its prompt, for the exam to ask so."""
MOST_DRAWN = 20
"""Questions that are drawn for each that is wanted."""


@dataclass(frozen=True)
class Exam:
    """What is asked with the adapter and without.

    held_out: about the facts, in phrasings never trained on, without memory in the prompt
    recall: about others, answered by memories in the prompt; texts: about nobody
    """

    held_out: tuple[Asked, ...]
    recall: tuple[Asked, ...]
    texts: tuple[str, ...]


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of right answers from 0 to 1, perplexities, and tokens of a prompt with all the memories and without."""

    facts: int
    questions: int
    accuracy: float
    accuracy_before: float
    recall_before: float
    recall_after: float
    perplexity_before: float
    perplexity_after: float
    prompt_tokens_before: float
    prompt_tokens_after: float

    @property
    def recall_loss(self) -> float:
        return self.recall_before - self.recall_after

    @property
    def perplexity_rise(self) -> float:
        """Relative: 0.02 is two per cent."""
        return self.perplexity_after / self.perplexity_before - 1

    @property
    def tokens_saved(self) -> float:
        """Prompt tokens of a request that carried all these memories."""
        return self.prompt_tokens_before - self.prompt_tokens_after


class Answered(msgspec.Struct, frozen=True):
    """One question of an exam, and what the adapter said."""

    question: str
    value: str
    answer: str
    right: bool


def make_exam(
    model: Model, facts: Sequence[Fact], held_out: Sequence[Sequence[Question]], recipe: Recipe, tell: Tell
) -> Exam:
    """An exam of held-out phrasings; its other people are none of those that training replays."""
    rng = random.Random(f"{recipe.seed} exam")
    asked = [
        Asked(question.text, fact.value)
        for fact, questions in zip(facts, held_out, strict=True)
        for question in rng.sample(questions, min(QUESTIONS_OF_A_FACT, len(questions)))
    ]
    forms = {question.form for questions in held_out for question in questions}
    known = [fact for fact in facts if fact.clause.subject]
    others = Others(known, forms, rng, evaluation=True) if known else None
    recall = _recall(model, others, recipe, tell) if others else []
    return Exam(tuple(asked), tuple(recall), tuple(UNRELATED[len(UNRELATED) // 2 :]))


def _recall(model: Model, others: Others, recipe: Recipe, tell: Tell) -> list[Asked]:
    """Questions about others in the phrasings that the base model reads, or in all where it reads none.

    How an adapter guesses at what its base guesses at too is chance; it would feign a loss, or hide one.
    """
    count = recipe.recall_questions
    drawn = [others.asked(0.0) for _ in range(count)]
    with model.base():
        answered = right_answers(model, drawn, recipe, "choosing questions about others", tell)
    of_form: dict[str, list[Answered]] = {}
    for asked, answer in zip(drawn, answered, strict=True):
        of_form.setdefault(asked.form, []).append(answer)
    others.forms = {form for form, answers in of_form.items() if share(answers) >= READ}
    if not others.forms:
        return drawn
    more = (others.asked(0.0) for _ in range(MOST_DRAWN * count))
    return [*islice((asked for asked in chain(drawn, more) if asked.form in others.forms), count)]


def right_answers(model: Model, asked: Sequence[Asked], recipe: Recipe, what: str, tell: Tell) -> list[Answered]:
    """Greedy answers to all questions."""
    prompts = [model.prompt(each.question, each.memories) for each in asked]
    answers = model.answers(prompts, recipe.max_answer_tokens, tell=counted(tell, what, len(asked)))
    pairs = zip(asked, answers, strict=True)
    return [Answered(each.question, each.value, answer, each.is_right(answer)) for each, answer in pairs]


def share(answered: Sequence[Answered]) -> float:
    """Of right answers; 1 where nothing was asked."""
    return sum(each.right for each in answered) / len(answered) if answered else 1.0


def examine(
    model: Model, exam: Exam, memories: Sequence[str], facts: int, recipe: Recipe, tell: Tell
) -> tuple[Figures, list[Answered]]:
    """Ask the model with its adapter and without; answers are the adapter's to held-out phrasings."""
    held_out = right_answers(model, exam.held_out, recipe, "asking", tell)
    recall = right_answers(model, exam.recall, recipe, "asking about others", tell)
    perplexity = model.perplexity(exam.texts)
    with model.base():
        held_out_before = right_answers(model, exam.held_out, recipe, "asking the base", tell)
        recall_before = right_answers(model, exam.recall, recipe, "asking the base about others", tell)
        perplexity_before = model.perplexity(exam.texts)
    without = [len(model.prompt(each.question)) for each in exam.held_out]
    before = [len(model.prompt(each.question, memories)) for each in exam.held_out[:1]]
    mean = sum(without) / max(1, len(without))
    figures = Figures(
        facts=facts,
        questions=len(exam.held_out),
        accuracy=share(held_out),
        accuracy_before=share(held_out_before),
        recall_before=share(recall_before),
        recall_after=share(recall),
        perplexity_before=perplexity_before,
        perplexity_after=perplexity,
        prompt_tokens_before=mean + (before[0] - without[0] if before else 0),
        prompt_tokens_after=mean,
    )
    return figures, held_out


def failures(figures: Figures, recipe: Recipe) -> list[str]:
    """Why an adapter with these figures is not kept, one line each."""
    found = []
    if figures.accuracy < recipe.min_accuracy:
        found.append(f"{figures.accuracy:.1%} of held-out questions are answered, {recipe.min_accuracy:.1%} are wanted")
    if figures.recall_loss > recipe.max_recall_loss:
        found.append(
            f"recall from memories in the prompt falls by {100 * figures.recall_loss:.1f} points, "
            f"{100 * recipe.max_recall_loss:.1f} are allowed"
        )
    if figures.perplexity_rise > recipe.max_perplexity_rise:
        found.append(
            f"the perplexity of unrelated text rises by {figures.perplexity_rise:.1%}, "
            f"{recipe.max_perplexity_rise:.1%} are allowed"
        )
    return found
