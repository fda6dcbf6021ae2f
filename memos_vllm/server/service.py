"""What the hooks and the routes of one API server share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from memos_vllm.cube import MemCube, Plaintext, State, is_id
from memos_vllm.errors import BadInput, MemosError, NotFound
from memos_vllm.governance.acl import Purpose, may_read
from memos_vllm.governance.directory import Directory
from memos_vllm.governance.identity import Caller
from memos_vllm.governance.quota import RateLimiter
from memos_vllm.governance.ring import KeyRing
from memos_vllm.parameter.job import Jobs
from memos_vllm.parameter.registry import AdapterRegistry
from memos_vllm.reader import call_of
from memos_vllm.retrieval.base import Hit
from memos_vllm.scheduler.form import Shape, plain_form
from memos_vllm.scheduler.lifecycle import drop_kv_of
from memos_vllm.scheduler.order import Turns
from memos_vllm.scheduler.plan import Call, MemoryPlan, MemScheduler
from memos_vllm.scheduler.recall import recall
from memos_vllm.server import metrics
from memos_vllm.server.consolidator import Consolidator
from memos_vllm.server.governed import GovernedOperator
from memos_vllm.server.injection import ActivationState, Asked, Mode, Spans, SplicePrompt, Splicer, current_memory
from memos_vllm.server.pieces import Piece, PieceCutter
from memos_vllm.server.prompt import Message, PromptBuilder
from memos_vllm.server.sight import Sight
from memos_vllm.server.trail import AccessTrail
from memos_vllm.server.turns import turn_keys
from memos_vllm.server.uses import UseBook
from memos_vllm.server.writing import MemoryWriter, TurnWriter
from memos_vllm.vault import ForgetReport, Restored, Vault
from memos_vllm.vault.editing import Allowed
from memos_vllm.vault.pipeline import DeleteStep, Permit, Step, ids_in
from memos_vllm.vault.states import HOT

if TYPE_CHECKING:
    from memos_vllm.server.adapter_door import AdapterDoor
    from memos_vllm.server.adapters import AdapterDesk

logger = logging.getLogger(__name__)


@dataclass
class MemoryService(Sight):
    """Vault, identity, search, prompts and (where splicing is on) the splicer. Its methods block: call them in threads.

    `secret` keys cache salts and splice plans; the engine and every API server of one start share it. `mode`: what a
    chat does with memory where its request does not say. `desk` and `door`: where adapters are served; `jobs`: where
    they are made, for `model`, as vLLM was given it; `consolidator`: what one should know.
    """

    vault: Vault
    directory: Directory
    limiter: RateLimiter
    ring: KeyRing
    operator: GovernedOperator
    scheduler: MemScheduler
    prompts: PromptBuilder
    secret: bytes
    uses: UseBook
    cutter: PieceCutter
    adapters: AdapterRegistry
    jobs: Jobs
    model: str
    consolidator: Consolidator
    splicer: Splicer | None = None
    scaffold: str | None = None
    mode: Mode = "read"
    desk: AdapterDesk | None = None
    door: AdapterDoor | None = None
    trail: AccessTrail = field(init=False)
    turns: Turns = field(default_factory=Turns)
    writer: MemoryWriter = field(init=False)
    turn_writer: TurnWriter = field(init=False)

    def caller(self, user: str) -> Caller:
        """The request's caller, where that is this user; else the user with their groups, as nobody's request."""
        memory = current_memory.get()
        if memory is not None and memory.caller is not None and memory.caller.user == user:
            return memory.caller
        return Caller(user, bound=False, groups=self.directory.groups_of(user))

    def principals(self, user: str) -> tuple[str, ...]:
        """The user and their groups, as rights may be granted to them."""
        return self.caller(user).principals

    def search(self, user: str, query: str, *, top_k: int, **options: Any) -> list[Hit]:
        """The memories that fit a query best, among all that the user may read. Raises MemosError."""
        principals = self.principals(user)
        hits = self.operator.search(principals, query, top_k=top_k, **options)
        licensed = self.uses.licensed([hit.cube for hit in hits])
        shown = [hit for hit, lasts in zip(hits, licensed, strict=True) if lasts or hit.cube.owner in principals]
        for hit in shown:
            self.trail.note(user, "search", target=hit.cube.id, owner=hit.cube.owner)
        return shown

    def add(self, cubes: Sequence[MemCube], *, actor: str) -> list[MemCube]:
        """Store new memories, all or none, and have them captured. Raises MemosError."""
        stored = self.vault.add(cubes, actor=actor)
        self.written(stored)
        return stored

    def choose(self, user: str, query: str, *, messages: Sequence[Message] = (), **options: Any) -> list[MemCube]:
        """The memories for a prompt, in prompt order. messages: the conversation's; `query` is its last question.

        options: see `MemScheduler.plan`; what is `known` is left out and counts as used. Raises MemosError.
        """
        with metrics.search_seconds().time():
            before = self._before(user, messages)
            call = call_of(query, user, datetime.now(UTC), self.principals(user)[1:])
            plan = self.scheduler.plan(call, self._count, before=before, **options)
        metrics.planned().labels(plan.policy).inc()
        self.consolidator.knowledge.left_out(plan.learned)
        for cube in plan.cubes:
            self.trail.note(user, "prompt", target=cube.id, owner=cube.owner)
        stayed = {cube.id for cube in plan.cubes} & {cube.id for cube in before}
        metrics.turn_memories().labels("kept").inc(len(stayed))
        metrics.turn_memories().labels("left").inc(len(before) - len(stayed))
        return plan.cubes

    def plan(self, call: Call, *, messages: Sequence[Message] = (), policy: str | None = None) -> MemoryPlan:
        """What `choose` would choose, in which form, and why; asking changes nothing. Raises MemosError."""
        before = self._before(call.caller, messages)
        known = self.consolidator.knowledge.of_default(self.caller(call.caller))
        return self.scheduler.plan(call, self._count, policy=policy, before=before, forms=self.forms, known=known)

    def note_turn(self, user: str, messages: Sequence[Message], cube_ids: Sequence[str]) -> None:
        """A conversation's prompt was given these memories, in this order: its next turn goes on with them."""
        if keys := turn_keys(user, messages):
            self.turns.note(keys[-1], user, cube_ids)

    def forms(self, cubes: Sequence[MemCube]) -> list[Shape]:
        """In which form each cube would enter a usual chat's prompt, and why. Raises MemosError."""
        states = self.activation(cubes)
        return [state.shape() if state else plain_form(cube) for cube, state in zip(cubes, states, strict=True)]

    def counted(self, cubes: Sequence[MemCube]) -> list[MemCube]:
        """The cubes with their uses in their headers, as they are shown. Raises VaultUnavailable."""
        return self.uses.shown(cubes)

    def recall(self, user: str, query: str) -> Iterator[Hit]:
        """Those of the user's own archived memories that fit a query; none comes back by it. Raises MemosError."""
        context = self.caller(user).context("api")
        return recall(self.vault, user, query, admits=lambda cube: may_read(cube, user, context))

    def transition(self, cube_id: str, state: State, *, actor: str, allowed: Allowed | None = None) -> MemCube:
        """Give a cube another state: K/V of one that enters no prompts any more go, one that does again is captured.

        Raises NotFound; Conflict where that state cannot follow.
        """
        cube = self.vault.transition(cube_id, state, actor=actor, allowed=allowed)
        if state in HOT:
            self.uses.note([cube.id])  # it would fade again at the next sweep
            self.written([cube])
        elif state != "frozen":
            self._forget(drop_kv_of(self.vault, [cube]), "asleep")
        return cube

    def _before(self, user: str, messages: Sequence[Message]) -> list[MemCube]:
        """What the conversation's turn before was given, as far as it may still enter the user's prompts."""
        found = []
        for cube_id in self.turns.before(turn_keys(user, messages)):
            try:
                found.append(self.readable(user, cube_id, "prompt"))
            except NotFound:
                continue
        return [cube for cube in found if cube.owner in self.principals(user)]

    def _count(self, cube: MemCube) -> int:
        return len(self.tokens(cube))

    def tokens(self, cube: MemCube) -> tuple[int, ...]:
        """A cube's tokens in a prompt. Raises NotPlaintext."""
        return self.prompts.memory_ids(cube.text, cube.owner)

    def readable(self, user: str, memory_id: str, purpose: Purpose = "api") -> MemCube:
        """The memory, if the user may read it. Raises NotFound alike for a missing and for a private one."""
        missing = NotFound(f"There is no memory {memory_id[:64]!r} that you may read.")
        try:
            cube = self.vault.get(memory_id)
        except (NotFound, BadInput):
            raise missing from None
        caller = self.caller(user)
        if not may_read(cube, caller.principals, caller.context(purpose)):
            raise missing
        if (cube.owner not in caller.principals or purpose == "prompt") and not all(self.uses.licensed([cube])):
            raise missing
        self.trail.note(user, "prompt" if purpose == "prompt" else "read", target=cube.id, owner=cube.owner)
        return cube

    def named(self, user: str, memory_ids: Sequence[str]) -> tuple[MemCube, ...]:
        """The memories that a request wants in its prompt. Raises NotFound; an expired one is as good as gone.

        The user's own archived ones may be named: they are brought back by the use.
        """
        return tuple(self._nameable(user, memory_id) for memory_id in dict.fromkeys(memory_ids))

    def _nameable(self, user: str, memory_id: str) -> MemCube:
        cube = self.readable(user, memory_id)
        returns = cube.owner == user and cube.header.state == "archived" and not cube.expired()
        return cube if returns else self.readable(user, memory_id, "prompt")

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
        texts = [cube for cube in cubes if isinstance(cube.payload, Plaintext)]
        fitting = [cube for cube in texts if len(self.tokens(cube)) <= self.scheduler.token_budget]
        memory_ids = [self.tokens(cube) for cube in fitting]
        self.splicer.capture(fitting, self.prompts.scaffold_ids(self.scaffold), memory_ids)

    def update(self, cube_id: str, change: Callable[[], MemCube]) -> MemCube:
        """Make a new version of a cube with `change`, and let go of what was K/V of the old one. Raises MemosError."""
        before = {record.key for record in self.vault.kv_of(cube_id)}
        cube = change()
        self._forget(before - {record.key for record in self.vault.kv_of(cube_id)}, "superseded")
        self.written([cube])
        return cube

    def delete(self, cube_id: str, actor: str, *, snapshots: bool = False, allowed: Allowed | None = None) -> None:
        """Delete a cube with all its K/V. snapshots: and its copies in snapshots. Raises MemosError."""
        self._forget(self.vault.delete(cube_id, actor=actor, snapshots=snapshots, allowed=allowed), "deleted")

    def delete_owner(self, owner: str, *, snapshots: bool = False) -> int:
        """Delete all memories of an owner, with all K/V made for them; returns how many. Raises MemosError.

        snapshots: and their copies in snapshots.
        """
        self._drop_waiting(owner)
        with self.operator.forgetting(owner):
            count, keys = self.vault.delete_owner(owner, actor=owner, snapshots=snapshots, adapters=False)
        self._forget(keys, "deleted")
        self._drop_waiting(owner)
        return count

    def revision(self, user: str) -> int:
        """See `Vault.revision`. Raises VaultUnavailable."""
        return self.vault.revision(user)

    def pipeline(
        self,
        steps: Sequence[Step],
        actor: str,
        permit: Permit | None = None,
        *,
        seen: int | None = None,
        since: float | None = None,
    ) -> list[MemCube]:
        """Apply steps in their order, all or none; K/V of what changed go. One cube a step. Raises MemosError.

        permit: asked inside the transaction with each cube that a step touches; it raises what forbids the step.
        seen: the actor's revision that the steps were decided on; Conflict where it is another now.
        since: when the actor began (Unix seconds): Forgotten where all their memories were deleted since.
        """
        named = {cube_id for step in steps for cube_id in ids_in(step) if is_id(cube_id)}
        before = {record.key for cube_id in named for record in self.vault.kv_of(cube_id)}
        cubes = self.vault.pipeline(steps, actor=actor, permit=permit, seen=seen, since=since)
        self._forget({key for key in before if self.vault.get_kv(key) is None}, "superseded")
        gone = {cube.id for cube, step in zip(cubes, steps, strict=True) if isinstance(step, DeleteStep)}
        self.written([cube for cube in cubes if cube.id not in gone and cube.header.state in HOT])
        return cubes

    def restore(self, owner: str, name: str, actor: str) -> Restored:
        """Bring an owner's cubes, as far as the actor's key is cleared for them, back to a snapshot; K/V of other texts
        go. Raises MemosError.
        """
        restored = self.vault.restore_snapshot(owner, name, actor=actor, covers=self.covers(actor))
        self._forget(restored.kv_keys, "superseded")
        self.written([*restored.changed, *restored.revived])
        return restored

    def forget_user(self, user: str) -> tuple[ForgetReport, dict[str, int]]:
        """Delete everything about a user, and count what still tells of them: nothing. Raises MemosError."""
        self.jobs.forget(user)
        self._drop_waiting(user)
        with self.trail.forgetting(user), self.operator.forgetting(user):
            report = self.vault.forget(user, actor=user)
        self._forget(report.kv_keys, "deleted")
        self._drop_waiting(user)
        self.jobs.forget(user)
        return report, self.vault.traces_of(user)

    def _drop_waiting(self, user: str) -> None:
        """What this server holds of a user in memory, and has under way for them, goes; the vault refuses the rest."""
        self.turn_writer.forget(user)
        self.prompts.forget(user)
        self.turns.forget(user)
        self.cutter.forget(user)
        self._forget((), "deleted", user)

    def pin(self, cube_id: str, pinned: bool, actor: str, *, allowed: Allowed | None = None) -> MemCube:
        """Pin a cube: its K/V are made at once and are not evicted. Or let it go. Raises MemosError."""
        if not pinned:
            cube = self.vault.get(cube_id)
            if cube.header.priority != "pinned":
                return cube
            return self.vault.prioritise(cube_id, "mid", actor=actor, allowed=allowed)
        cube = self.vault.prioritise(cube_id, "pinned", actor=actor, allowed=allowed)
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
