"""What the scheduler proposes that an adapter of a user should know, and the training that makes it.

Of each user one adapter is made so, NAME. The user's own wishes go first: nothing is trained without their leave, over
an adapter of their own, or after they took NAME out of use.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from memos_vllm.cube import MemCube
from memos_vllm.errors import Conflict, NotFound
from memos_vllm.governance.consent import allows
from memos_vllm.governance.identity import Caller
from memos_vllm.parameter.job import FINAL, Jobs, JobSpec, JobStatus
from memos_vllm.parameter.learned import is_proposed, made_of, sources_of
from memos_vllm.parameter.recipe import Recipe
from memos_vllm.parameter.registry import AdapterEntry, AdapterVersion
from memos_vllm.scheduler.clock import DAY, seconds_of
from memos_vllm.scheduler.consolidation import LEAST_SAVED, Look, Proposal, look
from memos_vllm.scheduler.lifecycle import ACTOR

if TYPE_CHECKING:
    from memos_vllm.server.knowledge import Knowledge
    from memos_vllm.server.prompt import PromptBuilder
    from memos_vllm.server.uses import UseBook

Mode = Literal["off", "propose", "auto"]

NAME = "consolidated"
"""What users call the adapter that is made for them."""
AGAIN = DAY
"""Seconds between two trainings of one user."""
MOST_SECONDS = 6 * 3_600.0
"""A training that is expected to take longer is left to people."""
RECIPE = Recipe()
WORK_OF_A_MEMORY = 6.0 * 64 * RECIPE.epochs * RECIPE.phrasings * (1 + RECIPE.replays / RECIPE.batch)
"""Floating-point operations for each weight of the model: six for each of 64 tokens of a phrasing or a replay."""
CPU_SPEED = 2e10
"""Floating-point operations a second that a processor is taken to do until a training has shown it."""
LOOKING_SECONDS = 2.0
_looking = threading.Lock()


@dataclass(frozen=True)
class Offer:
    """A proposal for a user. seconds: that its training is expected to take; why_not: why none begins by itself, ""
    where one does; training: the last one that the scheduler began.
    """

    proposal: Proposal
    allowed: bool
    seconds: float
    why_not: str
    training: JobStatus | None


class Consolidator:
    """Thread-safe; its methods block. model: as vLLM was given it."""

    def __init__(
        self, knowledge: Knowledge, jobs: Jobs, uses: UseBook, prompts: PromptBuilder, *, model: str, mode: Mode
    ) -> None:
        self.knowledge, self.jobs, self.model, self.mode = knowledge, jobs, model, mode
        self.registry, self.vault = knowledge.registry, knowledge.registry.vault
        self._uses, self._prompts = uses, prompts

    def offer(self, user: str, now: float) -> Offer:
        """What is proposed to a user, at `now` (Unix seconds); one look at a time. Raises MemosError."""
        proposal = self._proposal(user, now)
        proposed = [status for status in self.jobs.list(user) if status.proposed]
        return Offer(
            proposal=proposal,
            allowed=allows(self.vault, user),
            seconds=self.seconds_for(len(proposal.learn)),
            why_not=self.why_not(user, proposal, now),
            training=proposed[-1] if proposed else None,
        )

    def _proposal(self, user: str, now: float) -> Proposal:
        if not _looking.acquire(timeout=LOOKING_SECONDS):
            raise Conflict("The memories of others are being looked at: try again in a moment.")
        try:
            *_, looked = self.looks(user, now)
            return looked.proposal()
        finally:
            _looking.release()

    def looks(self, owner: str, now: float) -> Iterator[Look]:
        """Look at an owner's memories in steps of a few milliseconds. Raises MemosError."""
        version = self._answering(owner)
        return look(
            self.vault,
            owner,
            now,
            uses=self._uses.of,
            count_tokens=self._count,
            made_of=made_of(version) if version else (),
            known=sources_of(version) if version else (),
        )

    def seconds_for(self, memories: int) -> float:
        """What a training is expected to take: as the last ones here, or a guess by the size of the model."""
        each = self.jobs.seconds_each()
        if not each and self.registry.base is not None:
            weights = sum(math.prod(shape) for shape in self.registry.base.modules.values())
            each = WORK_OF_A_MEMORY * weights / CPU_SPEED
        return each * memories

    def why_not(self, owner: str, proposal: Proposal, now: float) -> str:
        """Why no training begins by itself, in a sentence; "" where one may. Raises MemosError."""
        if self.mode != "auto":
            return f"--memory-consolidate is {self.mode}"
        if not allows(self.vault, owner):
            return "not allowed: PUT /v1/me/consolidation allows it"
        if not proposal.worth:
            return f"it would save {proposal.gained:.0f} more tokens of a prompt, {LEAST_SAVED:.0f} are wanted"
        return self._own_wish(owner) or self._too_much(owner, proposal, now)

    def start(self, owner: str, proposal: Proposal) -> JobStatus:
        """Begin the training. It is stored, and serves, only if it passes its exam. Raises BadInput, Conflict."""
        spec = JobSpec(
            owner=owner,
            author=ACTOR,
            name=NAME,
            model=self.model,
            cubes=proposal.sources,
            recipe={"device": "cpu", "rank": min(RECIPE.rank, self.registry.max_rank)},
            activate=True,
            proposed=True,
        )
        return self.jobs.submit(spec)

    def withdrawn(self, owner: str) -> None:
        """An owner allows it no more: what is under way for them stops."""
        for status in self.jobs.list(owner):
            if status.proposed and status.state not in FINAL:
                self.jobs.cancel(owner, status.id)

    def _own_wish(self, owner: str) -> str:
        """What the owner has decided themselves that stands against it."""
        default = self.vault.default_adapter(owner)
        if default is not None and default.record.name != NAME:
            return f"{default.record.name!r} is the default adapter"
        entry = self._entry(owner)
        if entry is not None and not all(is_proposed(version) for version in entry.versions):
            return f"{NAME!r} is the name of another adapter: remove it"
        if entry is not None and entry.active is None:
            return f"{NAME!r} was taken out of use: activate it"
        return ""

    def _too_much(self, owner: str, proposal: Proposal, now: float) -> str:
        """What there is or was of trainings that stands against another."""
        made = [(spec, status) for spec, status in self.jobs.specs(owner) if spec.proposed]
        if any({*spec.cubes} == {*proposal.sources} for spec, _ in made):
            return "these memories were trained on already"
        if any(now - seconds_of(status.created) < AGAIN for _, status in made):
            return "there was a training in the last day"
        if (seconds := self.seconds_for(len(proposal.learn))) > MOST_SECONDS:
            return f"it would take {seconds / 3600:.0f} hours: train by POST /v1/adapters/train"
        if any(status.proposed or status.owner == owner for status in self.jobs.unfinished()):
            return "another training is waiting or running"
        return ""

    def _answering(self, owner: str) -> AdapterVersion | None:
        """The active version of NAME, whether or not it may still answer."""
        entry = self._entry(owner)
        versions = entry.versions if entry is not None else ()
        return next((one for one in versions if entry is not None and one.version == entry.active), None)

    def _entry(self, owner: str) -> AdapterEntry | None:
        try:
            return self.registry.get(Caller(owner, bound=True), NAME)
        except NotFound:
            return None

    def _count(self, cube: MemCube) -> int:
        return self._prompts.count(cube.text, cube.owner)
