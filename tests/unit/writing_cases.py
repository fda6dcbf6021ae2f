"""A vault with its search in the place of a server, and messages that are remembered in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from memos_vllm.cube import Grant, MemCube
from memos_vllm.reader import RuleReader, Spoken
from memos_vllm.retrieval import MemOperator
from memos_vllm.server.writing import MemoryForm, MemoryWriter, Written, form_at
from memos_vllm.vault import Vault
from memos_vllm.vault.pipeline import Step


@dataclass
class Held:
    """A vault with its search, as a MemoryService has them. disturb: runs before each write."""

    vault: Vault
    operator: MemOperator
    disturb: Callable[[], None] = lambda: None

    def revision(self, user: str) -> int:
        return self.vault.revision(user)

    def pipeline(
        self, steps: Sequence[Step], actor: str, *, seen: int | None = None, since: float | None = None
    ) -> list[MemCube]:
        self.disturb()
        return self.vault.pipeline(steps, actor=actor, seen=seen, since=since)


def say(held: Held, *texts: str, user: str = "maya", at: str = "", source: str = "") -> list[Written]:
    form = form_at(MemoryForm(source=source), at)
    return MemoryWriter(held, RuleReader()).remember(user, [Spoken("user", text) for text in texts], form)


def told(held: Held, user: str = "maya") -> list[str]:
    return [cube.text for cube in held.vault.list(user)]


def hold(held: Held, text: str = "I live in Lisbon.", **fields: Any) -> MemCube:
    made = MemCube.plaintext(text, owner="maya")
    access = tuple(map(Grant, fields.pop("access", ())))
    header = msgspec.structs.replace(made.header, access=access, **fields)
    return held.vault.add([MemCube(header, made.payload)], actor="maya")[0]
