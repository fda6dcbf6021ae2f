"""The contract of every reader, and what goes in and out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from memos_vllm.cube import SemanticType

MAX_DRAFTS = 64
"""Memories that one message may become."""


@dataclass(frozen=True)
class Spoken:
    """One message of a conversation: who speaks (`user`, `assistant`, …) and what they say.

    name: of the speaker, "" for the user themself and where nothing says it.
    """

    role: str
    text: str
    name: str = ""


@dataclass(frozen=True)
class Draft:
    """What is to be remembered, before it is compared with what is known.

    key: what the memory is about ("home", "favourite tea"), the same for a statement and the one that contradicts it;
    empty where nothing can contradict it. happened: date or time (as in `Header`) of what the text tells.
    confidence: from 0 to 1, how sure the reader is that this is worth remembering. speaker: as `Spoken.name`.
    """

    text: str
    semantic_type: SemanticType = "fact"
    tags: tuple[str, ...] = ()
    happened: str = ""
    key: str = ""
    confidence: float = 1.0
    speaker: str = ""


class MemReader(Protocol):
    """Finds in messages what is worth remembering (MemOS paper, section 5.2)."""

    async def read(self, messages: Sequence[Spoken], *, owner: str, at: datetime, source: str) -> list[Draft]:
        """The memories in the user's messages, in their order; the other messages are context.

        at: when the messages were sent, to which "yesterday" relates; source: the conversation they are from. What is
        no statement (questions, requests, greetings) becomes no draft. Raises nothing for any text.
        """
        ...
