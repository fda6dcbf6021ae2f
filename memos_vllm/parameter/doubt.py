"""Which of an adapter's statements are believed: it takes strangers for people it knows, and one thing for another.

What somebody was told of, an adapter says unasked too, and of one person; what is said of a stranger is an echo of
what others were told of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memos_vllm.parameter.facts import Clause

ECHOES = 0.5
"""Share of a subject's findings that others have a better claim to, from which on all of them are doubted."""


@dataclass(frozen=True)
class Finding:
    """What was read out of an adapter.

    confidence, base, question: those of `Decoded`; free: how often it was said in answers to open questions
    """

    clause: Clause
    confidence: float
    base: float = 0.0
    question: str = ""
    free: int = 0

    @property
    def said(self) -> tuple[str, str]:
        """What it says, without of whom."""
        return self.clause.about, self.clause.value.lower()


def key_of(clause: Clause) -> tuple[str, str, str]:
    """Equal for clauses that say the same in other words."""
    return clause.subject, clause.thing or clause.topic, clause.value.lower()


def believed(found: Sequence[Finding]) -> list[Finding]:
    """The findings that are not echoes of others, the surest first."""
    kept = _without_strangers(_without_leading(_without_rivals(found)))
    return sorted(kept, key=lambda each: -each.confidence)


def _without_rivals(found: Sequence[Finding]) -> list[Finding]:
    """One value of a thing of a subject."""
    best: dict[tuple[str, str], Finding] = {}
    for each in sorted(found, key=lambda each: -each.confidence):
        best.setdefault(key_of(each.clause)[:2], each)
    return list(best.values())


def _without_leading(found: Sequence[Finding]) -> list[Finding]:
    """One thing of a value of a subject: whoever asks for a lucky tea is told the favourite one. Further things under
    other nouns are kept where they were named unasked.
    """
    kept: dict[tuple[str, str], list[Finding]] = {}
    for each in sorted(found, key=lambda each: (-each.free, -each.confidence)):
        others = kept.setdefault((each.clause.subject, each.clause.value.lower()), [])
        if not others or (each.free and all(each.said != other.said for other in others)):
            others.append(each)
    return [each for others in kept.values() for each in others]


def _without_strangers(found: Sequence[Finding]) -> list[Finding]:
    """Without what others have a better claim to: those whom a finding names, or of whom it is said more surely. A
    subject keeps it that says it unasked too, unless hardly anything else is told of them.
    """
    named = {each.clause.value for each in found if each.clause.person}
    claims: dict[tuple[str, str], str] = {}
    own: dict[str, list[Finding]] = {}
    for each in sorted(found, key=lambda each: (each.clause.subject not in named, -each.confidence)):
        claims.setdefault(each.said, each.clause.subject)
        own.setdefault(each.clause.subject, []).append(each)
    kept = []
    for subject, mine in own.items():
        claimed = [each for each in mine if claims[each.said] == subject]
        if len(claimed) > (1 - ECHOES) * len(mine):
            kept += [each for each in mine if each.free or each in claimed]
    return kept
