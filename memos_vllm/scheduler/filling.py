"""A prompt's room, filled with memories one by one; what does not get in is kept with the reason."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from memos_vllm.cube import MemCube, Parameter, Plaintext
from memos_vllm.scheduler.form import Form

CountTokens = Callable[[MemCube], int]
"""Tokens that a cube takes in the prompt."""


@dataclass(frozen=True)
class Ranked:
    """A candidate with the policy's score, from 0 to 1, what it is made of, and why in words."""

    cube: MemCube
    score: float
    parts: Mapping[str, float]
    why: str


@dataclass(frozen=True)
class Choice:
    """A memory of the prompt. score: the policy's, from 0 to 1; parts: what it is made of; tokens: 0 where an adapter
    answers for it, or where it is one.
    """

    cube: MemCube
    score: float
    parts: Mapping[str, float]
    tokens: int
    form: Form
    why: str


@dataclass(frozen=True)
class LeftOut:
    """A memory that was considered and does not enter the prompt."""

    cube_id: str
    score: float
    parts: Mapping[str, float]
    why: str


class Filling:
    """budget: tokens; taken: entries with their tokens and the reason; count: those among them that are text.

    known: texts, as `id@version`, that the adapter which answers has learned: they take no room of the prompt.
    """

    def __init__(self, budget: int, count_tokens: CountTokens, known: Collection[str] = ()) -> None:
        self.room = budget
        self.count = 0
        self.taken: list[tuple[Ranked, int, str]] = []
        self.left: list[LeftOut] = []
        self._count_tokens, self._known = count_tokens, known
        self._adapter = False

    def add(self, entry: Ranked, why: str) -> bool:
        """Whether the entry got in as text, for the reason `why`."""
        if isinstance(entry.cube.payload, Parameter):
            self._add_adapter(entry, why)
            return False
        if not isinstance(entry.cube.payload, Plaintext) or entry.cube.header.namespace == "pipeline":
            self.leave(entry, "cached for a pipeline" if isinstance(entry.cube.payload, Plaintext) else "holds no text")
            return False
        tokens = 0 if self.knows(entry.cube) else self._count_tokens(entry.cube)
        if tokens > self.room:
            self.leave(entry, f"takes {tokens} tokens, of which {self.room} are left")
            return False
        self.room -= tokens
        self.count += 1
        self.taken.append((entry, tokens, why))
        return True

    def knows(self, cube: MemCube) -> bool:
        """Whether the adapter which answers has learned this version of a memory."""
        return f"{cube.id}@{cube.version}" in self._known

    def leave(self, entry: Ranked, why: str) -> None:
        self.left.append(LeftOut(entry.cube.id, entry.score, entry.parts, why))

    def _add_adapter(self, entry: Ranked, why: str) -> None:
        """vLLM runs a request with one adapter."""
        if self._adapter:
            self.leave(entry, "another adapter is before it, and a request has one")
        else:
            self._adapter = True
            self.taken.append((entry, 0, why))
