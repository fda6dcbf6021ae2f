"""What the hooks and the routes of one API server share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from memos_vllm.cube import MemCube, Plaintext
from memos_vllm.errors import BadInput, MemosError, NotFound
from memos_vllm.governance.acl import may_read
from memos_vllm.governance.identity import KeyRing
from memos_vllm.retrieval.base import Operator
from memos_vllm.scheduler.plan import MemScheduler
from memos_vllm.server import metrics
from memos_vllm.server.injection import ActivationState, Asked, Spans, SplicePrompt, Splicer
from memos_vllm.server.pieces import Piece, PieceCutter
from memos_vllm.server.prompt import Message, PromptBuilder
from memos_vllm.server.uses import UseBook
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
    uses: UseBook
    cutter: PieceCutter
    splicer: Splicer | None = None
    scaffold: str | None = None

    def choose(self, user: str, query: str) -> list[MemCube]:
        """The memories for a prompt, in prompt order. Raises MemosError."""
        with metrics.search_seconds().time():
            return self.scheduler.choose(user, query, lambda cube: len(self.tokens(cube)))

    def tokens(self, cube: MemCube) -> tuple[int, ...]:
        """A cube's tokens in a prompt. Raises NotPlaintext."""
        return self.prompts.memory_ids(cube.text, cube.owner)

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

    def cut(self, asked: Asked, messages: Sequence[Message], rest: str) -> list[Piece]:
        """The tokens of a prompt's text after the memories, cut at what its caller sends often."""
        if self.splicer is None or not self.splicer.takes_pieces or asked.unspliceable:
            return [Piece(tuple(self.prompts.rest_ids(rest)))]
        return self.cutter.cut(asked.caller, messages, rest)

    def splice(
        self,
        asked: Asked,
        cubes: Sequence[MemCube],
        scaffold_ids: Sequence[int],
        memory_ids: Sequence[Sequence[int]],
        rest: Sequence[Piece],
    ) -> SplicePrompt:
        """How the engine is to treat a prompt: plain text where splicing is off, not possible or in trouble.

        `memory_ids[i]` are the tokens of `cubes[i]`.
        """
        if self.splicer is None or not cubes or asked.repair == "off":
            return SplicePrompt()
        if asked.unspliceable:
            return SplicePrompt(fallback=asked.unspliceable)
        try:
            relevance = self._relevance(cubes, asked.query) if self.splicer.needs_relevance(asked.repair) else None
            return self.splicer.prepare(asked, cubes, scaffold_ids, memory_ids, rest, relevance)
        except (MemosError, OSError) as error:
            logger.warning("a prompt runs without spliced K/V: %s", error)
            return SplicePrompt(fallback="splice-error")

    def _relevance(self, cubes: Sequence[MemCube], query: str) -> list[Spans]:
        """The token spans of each cube's sentences that fit the query."""
        scored = ((cube, self.operator.sentence_scores(query, cube.text)) for cube in cubes)
        return [self.prompts.token_spans(cube.text, scores, cube.owner) for cube, scores in scored]

    def written(self, cubes: Sequence[MemCube]) -> None:
        """Have new text captured in the background, behind the scaffold of a chat without extras.

        Text over the token budget is not: search never puts it into a prompt.
        """
        if self.splicer is None or self.scaffold is None:
            return
        fitting = [cube for cube in cubes if len(self.tokens(cube)) <= self.scheduler.token_budget]
        memory_ids = [self.tokens(cube) for cube in fitting]
        self.splicer.capture(fitting, self.prompts.scaffold_ids(self.scaffold), memory_ids)

    def update(self, cube_id: str, change: Callable[[], MemCube]) -> MemCube:
        """Make a new version of a cube with `change`, and let go of what was K/V of the old one. Raises MemosError."""
        before = {record.key for record in self.vault.kv_of(cube_id)}
        cube = change()
        self._forget(before - {record.key for record in self.vault.kv_of(cube_id)}, "superseded")
        self.written([cube])
        return cube

    def delete(self, cube_id: str, actor: str) -> None:
        """Delete a cube with all its K/V. Raises MemosError."""
        self._forget(self.vault.delete(cube_id, actor=actor), "deleted")

    def delete_owner(self, owner: str) -> int:
        """Delete all cubes of an owner, with all K/V made for them; returns how many cubes. Raises MemosError."""
        count, keys = self.vault.delete_owner(owner, actor=owner)
        self._forget(keys, "deleted", owner)
        self.prompts.forget(owner)
        self.cutter.forget(owner)
        return count

    def pin(self, cube_id: str, pinned: bool) -> MemCube:
        """Pin a cube: its K/V are made at once and are not evicted. Or let it go. Raises MemosError."""
        if not pinned:
            cube = self.vault.get(cube_id)
            return self.vault.prioritise(cube_id, "mid") if cube.header.priority == "pinned" else cube
        cube = self.vault.prioritise(cube_id, "pinned")
        self.written([cube])
        return cube

    def activation(self, cubes: Sequence[MemCube]) -> list[ActivationState | None]:
        """In which form each cube enters the prompts of a usual chat; None where memories are text always."""
        texts = [cube for cube in cubes if isinstance(cube.payload, Plaintext)]
        if self.splicer is None or self.scaffold is None or not texts:
            return [None] * len(cubes)
        memory_ids = [self.tokens(cube) for cube in texts]
        states = self.splicer.describe(texts, self.prompts.scaffold_ids(self.scaffold), memory_ids)
        by_id = {cube.id: state for cube, state in zip(texts, states, strict=True)}
        return [by_id.get(cube.id) for cube in cubes]

    def _forget(self, kv_keys: Collection[str], cause: str, owner: str = "") -> None:
        metrics.demotions().labels(cause).inc(len(kv_keys))
        if self.splicer is not None:
            self.splicer.forget([*kv_keys], owner)
