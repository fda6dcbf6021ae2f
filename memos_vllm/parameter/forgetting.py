"""Forgetting: an adapter is trained anew from what stays, and asked for what went.

Weights that were never told something cannot tell it: nothing is taken out of an adapter, it is made without. What
remains to be shown is that nothing else told it, and that the rest is still known.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from memos_vllm.errors import BadInput
from memos_vllm.parameter.consolidate import Memory, Report, consolidate, facts_in
from memos_vllm.parameter.evaluate import Answered, Exam, right_answers, share
from memos_vllm.parameter.lora import with_adapter, without_adapters
from memos_vllm.parameter.model import Model
from memos_vllm.parameter.pairs import Fact
from memos_vllm.parameter.progress import Tell, no_tell
from memos_vllm.parameter.recipe import Recipe
from memos_vllm.parameter.replay import Asked

MAX_FORGOTTEN = 0.1


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of right answers about what was forgotten: before, after, and of the base model, which was never told."""

    forgotten: int
    questions: int
    accuracy_before: float | None
    accuracy_after: float
    accuracy_base: float
    kept_accuracy: float


@dataclass(frozen=True)
class Forgotten:
    """The adapter without the memories, and the proof; `problems`: why it must not replace the old one."""

    report: Report
    proof: Proof
    answers: tuple[Answered, ...]
    problems: tuple[str, ...]


def retrain(
    model: Model,
    memories: Sequence[Memory],
    forgotten: Collection[str],
    recipe: Recipe,
    work: Path,
    *,
    exam: Exam | None = None,
    asked: Sequence[Asked] = (),
    old: Path | None = None,
    tell: Tell = no_tell,
) -> Forgotten:
    """Train on the bare `model` an adapter from all memories but those whose `source` is in `forgotten`.

    exam: of what stays; asked: about what goes, every phrasing that the rules know where none is given. old: the
    adapter that knew it, to be asked as well. Raises BadInput where nothing stays or nothing goes.
    """
    kept = [memory for memory in memories if memory.source not in forgotten]
    gone = facts_in([memory for memory in memories if memory.source in forgotten])
    asked = asked or [Asked(question.text, fact.value) for fact in gone for question in fact.questions]
    if again := _told_again(gone, kept):
        raise BadInput(
            f"Other memories tell it too: {again[0].source} says {again[0].statement!r}; forget these as well."
        )
    before = None
    if old is not None:
        carrying = with_adapter(model, old)
        before = share(right_answers(carrying, asked, recipe, "asking the old adapter", tell))
        model = without_adapters(carrying)
    report = consolidate(model, kept, recipe, work, exam=exam, tell=tell)
    answers = right_answers(report.model, asked, recipe, "asking for what is forgotten", tell)
    with report.model.base():
        base = share(right_answers(report.model, asked, recipe, "asking the base for it", tell))
    proof = Proof(
        forgotten=len(gone),
        questions=len(asked),
        accuracy_before=before,
        accuracy_after=share(answers),
        accuracy_base=base,
        kept_accuracy=report.figures.accuracy,
    )
    return Forgotten(report, proof, tuple(answers), (*report.problems, *_failures(proof)))


def _failures(proof: Proof) -> list[str]:
    found = []
    if proof.accuracy_after > MAX_FORGOTTEN:
        found.append(f"{proof.accuracy_after:.1%} of what was forgotten is still answered")
    return found


def _told_again(gone: Sequence[Fact], kept: Sequence[Memory]) -> list[Fact]:
    """Facts of the memories that stay which tell the same."""
    statements = {fact.statement for fact in gone}
    return [fact for fact in facts_in(kept) if fact.statement in statements]
