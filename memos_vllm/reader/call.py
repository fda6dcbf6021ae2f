"""What a prompt asks of memory, read from the question by rules (MemOS paper, section 5.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from memos_vllm.cube import SemanticType
from memos_vllm.reader.kinds import Kind, is_english, kind_of, lead
from memos_vllm.reader.sentences import sentences
from memos_vllm.reader.times import window_of
from memos_vllm.retrieval.base import TimeWindow

Intent = Literal["ask", "do", "tell", "talk"]
"""What a message wants: an answer, some work, to be heard, or nothing but company."""
Scope = Literal["own", "any"]
"""Whose memories are meant: the caller's, or also those of their groups."""

MAX_QUERY = 4096
"""Characters at a query's end that are read."""

_INTENTS: dict[Kind, Intent] = {
    "question": "ask", "request": "do", "statement": "tell", "instruction": "tell", "talk": "talk",
}  # fmt: skip
_TASTE = re.compile(
    r"\b(?:favou?rite|like|likes|love|enjoy|prefer|preferred|preferences?|hate|dislike|taste|recommend|suggest|gift|"
    r"should i|shall i|fond of|fan of)\b",
    re.IGNORECASE,
)
_EVENT = re.compile(
    r"\b(?:when (?:did|was|were|is|am|will)|what happened|happened|did|last time|remember when|how long ago|went|met|"
    r"visited|trip|appointments?|meetings?|plans?)\b",
    re.IGNORECASE,
)
_FACT = re.compile(r"\b(?:my|our|who am i|where do i|do i have|am i)\b", re.IGNORECASE)
_THEN = re.compile(
    r"\b(?:did|was|were|had|happened|said|say|told|tell me about|mention(?:ed)?|talk(?:ed)?|discuss(?:ed)?|went|met|"
    r"bought|have i|do i have|am i doing|plans?|planned|planning|appointments?|schedule[d]?|meetings?|events?|"
    r"remember)\b",
    re.IGNORECASE,
)
_SHARED = re.compile(
    r"\b(?:shared? with me|our team(?:['’]s)?|the team(?:['’]s)?|(?:my )?colleagues?(?:['’]s?)?|everyone(?:['’]s)?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class MemoryCall:
    """What memories a prompt needs.

    types: kinds of memories that the question seems to want, best first; empty for all. window: the time that it is
    about, where it asks what happened then; None for any. groups: the principals of the caller's groups.
    """

    caller: str
    query: str
    scope: Scope = "own"
    types: tuple[SemanticType, ...] = ()
    intent: Intent = "ask"
    window: TimeWindow | None = None
    groups: tuple[str, ...] = ()

    @property
    def owners(self) -> tuple[str, ...]:
        """Whose memories may enter the prompt.

        Not what single others share with the caller: whoever may grant a right could put text into prompts then. Who is
        in a group is said by those who look after the server.
        """
        return (self.caller, *(self.groups if self.scope == "any" else ()))


def call_of(query: str, caller: str, at: datetime, groups: Sequence[str] = ()) -> MemoryCall:
    """The MemoryCall of a user's message sent at `at`. English is read; of other languages the intent alone."""
    text = query[-MAX_QUERY:]
    intent = _intent(text)
    if not is_english(text):
        return MemoryCall(caller, query, intent=intent, groups=(*groups,))
    return MemoryCall(
        caller,
        query,
        scope="any" if _SHARED.search(text) else "own",
        types=_types(text) if intent in ("ask", "do") else (),
        intent=intent,
        window=window_of(text, at) if intent in ("ask", "do") and _THEN.search(text) else None,
        groups=(*groups,),
    )


def _intent(text: str) -> Intent:
    """The strongest of what its sentences want: to ask, to have done, to tell."""
    found = {
        _INTENTS[kind_of(text[span.start + lead(text[span.start : span.end]) : span.end])] for span in sentences(text)
    }
    return next((intent for intent in ("ask", "do", "tell") if intent in found), "talk")


def _types(text: str) -> tuple[SemanticType, ...]:
    signs: tuple[tuple[SemanticType, re.Pattern[str]], ...] = (
        ("user_preference", _TASTE), ("episode", _EVENT), ("fact", _FACT),
    )  # fmt: skip
    return tuple(kind for kind, pattern in signs if pattern.search(text))
