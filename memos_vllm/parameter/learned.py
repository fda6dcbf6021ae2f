"""Which memories an adapter answers for, so that a prompt can do without their text.

An adapter that passed its exam may still not know every memory that it was made of. It answers for one where the rules
read every sentence of it, where no other memory tells something else of the same thing, and where each held-out
question about it was answered right, without memory in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memos_vllm.parameter.facts import clauses_of
from memos_vllm.parameter.pairs import facts_of

if TYPE_CHECKING:
    from memos_vllm.parameter.consolidate import Memory, Report
    from memos_vllm.parameter.entries import AdapterVersion

LEARNED = "learned"
"""The key of an adapter's metadata that tells it: a digit for each memory, 1 for those that it answers for."""
PROPOSED = "proposed"
"""The key that marks adapters which the scheduler had made."""


def learned_in(report: Report, memories: Sequence[Memory]) -> str:
    """What LEARNED holds for an adapter that was made of these memories."""
    known = {fact.statement for fact in report.facts}
    asked = {(each.question, each.value) for each in report.answers}
    wrong = {(each.question, each.value) for each in report.answers if not each.right}

    def answers_for(memory: Memory) -> bool:
        facts = facts_of(memory.text, memory.source)
        questions = [{(question.text, fact.value) for question in fact.questions} for fact in facts]
        return (
            bool(facts)
            and len(facts) == len(clauses_of(memory.text))
            and all(fact.statement in known and (fact.clause.noun or fact.clause.verb) for fact in facts)
            and all(each & asked and not each & wrong for each in questions)
        )

    return "".join("1" if answers_for(memory) else "0" for memory in memories)


def made_of(version: AdapterVersion) -> tuple[str, ...]:
    """The memories, as `id@version`, that a version was made of; its parents also name the version before it."""
    return tuple(source for source in version.parents if source.partition("@")[0] != version.cube_id)


def sources_of(version: AdapterVersion) -> frozenset[str]:
    """The memories, as `id@version`, that a version answers for."""
    marks = str(version.metadata.get(LEARNED, ""))
    return frozenset(source for source, mark in zip(made_of(version), marks, strict=False) if mark == "1")


def is_proposed(version: AdapterVersion) -> bool:
    """Whether the scheduler had it made."""
    return bool(version.metadata.get(PROPOSED, False))
