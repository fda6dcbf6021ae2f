"""Consolidation in the background: once an hour, for those who allow it, the one training that saves most begins.

No request waits for it. It looks at memories in steps of a few milliseconds with long rests between them, on one API
server at a time; the training itself is a process of its own at the lowest priority.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from memos_vllm.errors import MemosError, NotFound
from memos_vllm.governance.consent import willing
from memos_vllm.parameter.job import FINAL
from memos_vllm.scheduler.consolidation import Look, Proposal
from memos_vllm.server import metrics
from memos_vllm.server.claims import claimed
from memos_vllm.server.consolidator import Consolidator

logger = logging.getLogger(__name__)

TICK = 60.0
"""Seconds between two looks at the clock and at what was begun."""
EVERY = 3_600.0
"""Seconds between two looks at memories, of all API servers of a memory directory together."""
REST = 9.0
"""Seconds of rest for each second of work: a tenth of one core at most."""
CLAIM, LOOKED = "consolidation", "looked"


class Consolidating:
    """Runs a Consolidator."""

    def __init__(self, consolidator: Consolidator) -> None:
        self.consolidator = consolidator
        self._begun: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Work in the background of the running event loop from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="memos-consolidation")

    async def round(self, now: float) -> bool:
        """One round, at `now` (Unix seconds); False where it is not time for one. Raises MemosError, OSError."""
        with claimed(self.consolidator.vault.path, CLAIM) as mine:
            if not mine or not await asyncio.to_thread(self._due, now):
                return False
            best: tuple[float, str, Proposal] | None = None
            for owner in await asyncio.to_thread(willing, self.consolidator.vault):
                proposal = await self._proposal(owner, now)
                if proposal is not None and (best is None or proposal.saved_a_day > best[0]):
                    best = proposal.saved_a_day, owner, proposal
            if best is not None:
                await asyncio.to_thread(self._begin, *best[1:])
            return True

    def note_ends(self) -> None:
        """Tell the metrics what became of the trainings that this server began."""
        for job_id, owner in [*self._begun.items()]:
            try:
                state = self.consolidator.jobs.status(owner, job_id).state
            except NotFound:
                state = "cancelled"
            if state in FINAL:
                metrics.consolidations().labels(state).inc()
                del self._begun[job_id]

    async def _proposal(self, owner: str, now: float) -> Proposal | None:
        """What is proposed to an owner, if a training may begin for it."""
        steps, looked = self.consolidator.looks(owner, now), Look(now)
        while True:
            began = time.perf_counter()
            step = await asyncio.to_thread(next, steps, None)
            if step is None:
                break
            looked = step
            await asyncio.sleep(REST * (time.perf_counter() - began))
        proposal = looked.proposal()
        why_not = await asyncio.to_thread(self.consolidator.why_not, owner, proposal, now)
        metrics.consolidation_looks().labels("nothing" if why_not else "worth").inc()
        return None if why_not else proposal

    def _begin(self, owner: str, proposal: Proposal) -> None:
        status = self.consolidator.start(owner, proposal)
        self._begun[status.id] = owner
        metrics.consolidations().labels("started").inc()
        logger.info("an adapter is made of %d memories that are used often", len(proposal.learn))

    def _due(self, now: float) -> bool:
        """Whether the last look of any server is long enough ago; then this is one."""
        folder = self.consolidator.jobs.folder
        folder.mkdir(mode=0o700, exist_ok=True)
        marker: Path = folder / LOOKED
        if marker.exists() and 0 <= now - marker.stat().st_mtime < EVERY:
            return False
        marker.touch(mode=0o600)
        os.utime(marker, (now, now))
        return True

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                await asyncio.to_thread(self.note_ends)
                await self.round(time.time())
            except (MemosError, OSError) as error:
                logger.warning("no adapters are made of memories for now: %s", error)
            except Exception:  # the loop must outlive any one round
                logger.exception("no adapters are made of memories for now")
