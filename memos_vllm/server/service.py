"""What the hooks and the routes of one API server share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from memos_vllm.cube import MemCube
from memos_vllm.errors import BadInput, MemosError, NotFound
from memos_vllm.governance.acl import may_read
from memos_vllm.governance.identity import KeyRing
from memos_vllm.retrieval.base import Operator
from memos_vllm.scheduler.plan import MemScheduler
from memos_vllm.server.injection import SplicePrompt, Splicer
from memos_vllm.server.prompt import PromptBuilder
from memos_vllm.vault import Vault

logger = logging.getLogger(__name__)


@dataclass
class MemoryService:
    """Vault, identity, search, prompts and (where splicing is on) the splicer. Its methods block: call them in threads.

    `secret` keys cache salts and splice plans; the engine and every API server of one start share it.
    """

    vault: Vault
    ring: KeyRing
    operator: Operator
    scheduler: MemScheduler
    prompts: PromptBuilder
    secret: bytes
    splicer: Splicer | None = None
    scaffold: str | None = None

    def choose(self, user: str, query: str) -> list[MemCube]:
        """The memories for a prompt, in prompt order. Raises MemosError."""
        return self.scheduler.choose(user, query, self.prompts.count)

    def readable(self, user: str, memory_id: str) -> MemCube:
        """The memory, if the user may read it. Raises NotFound alike for a missing and for a private one."""
        missing = NotFound(f"There is no memory {memory_id[:64]!r} that you may read.")
        try:
            cube = self.vault.get(memory_id)
        except (NotFound, BadInput):
            raise missing from None
        if not may_read(cube, user):
            raise missing
        return cube

    def named(self, user: str, memory_ids: Sequence[str]) -> tuple[MemCube, ...]:
        """The memories that a request wants in its prompt. Raises NotFound; an expired one is as good as gone."""
        cubes = tuple(self.readable(user, memory_id) for memory_id in dict.fromkeys(memory_ids))
        for cube in cubes:
            if cube.expired():
                raise NotFound(f"Memory {cube.id!r} has expired.")
        return cubes

    def splice(
        self,
        user: str,
        cubes: Sequence[MemCube],
        scaffold_ids: Sequence[int],
        memory_ids: Sequence[Sequence[int]],
        rest_ids: Sequence[int],
        unspliceable: str | None = None,
        repair: str | None = None,
    ) -> SplicePrompt:
        """How the engine is to treat a prompt: plain text where splicing is off, `unspliceable` or in trouble."""
        if self.splicer is None or not cubes or repair == "off":
            return SplicePrompt()
        if unspliceable:
            return SplicePrompt(fallback=unspliceable)
        try:
            return self.splicer.prepare(user, cubes, scaffold_ids, memory_ids, rest_ids, repair)
        except (MemosError, OSError) as error:
            logger.warning("a prompt runs without spliced K/V: %s", error)
            return SplicePrompt(fallback="splice-error")

    def written(self, user: str, cubes: Sequence[MemCube]) -> None:
        """Have new text captured in the background, behind the scaffold of a chat without extras.

        Text over the token budget is not: search never puts it into a prompt.
        """
        if self.splicer is None or self.scaffold is None:
            return
        fitting = [cube for cube in cubes if self.prompts.count(cube.text) <= self.scheduler.token_budget]
        memory_ids = [self.prompts.memory_ids(cube.text) for cube in fitting]
        self.splicer.capture(user, fitting, self.prompts.scaffold_ids(self.scaffold), memory_ids)
