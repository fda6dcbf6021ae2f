"""The lifecycle in the background: memories expire, fade and wake up while requests go first.

No request waits for it. It works in steps of a few milliseconds with long rests between them, on one API server at a
time, and each of its transactions changes a few cubes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from memos_vllm.errors import MemosError
from memos_vllm.server import metrics
from memos_vllm.server.claims import claimed

if TYPE_CHECKING:
    from memos_vllm.scheduler.lifecycle import Lifecycle, Step

logger = logging.getLogger(__name__)

EXPIRE_EVERY = 30.0
"""Seconds between two looks at what has expired. Searches leave that out at once; this makes it the cubes' state."""
FADE_EVERY = 3_600.0
"""Seconds between two looks at all memories for those that have faded, which takes days."""
REST = 9.0
"""Seconds of rest for each second of work: a tenth of one core at most."""
CLAIM = "lifecycle"


class Ageing:
    """Runs a Lifecycle. forget: told the keys of K/V that went with memories; set it before the start."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self.lifecycle = lifecycle
        self.forget: Callable[[Sequence[str]], None] = lambda keys: None
        self._faded_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Work in the background of the running event loop from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="memos-lifecycle")

    def used(self, cube_ids: Collection[str]) -> None:
        """Cubes have entered prompts. Raises MemosError."""
        metrics.transitions().labels("activated").inc(self.lifecycle.activate(cube_ids))

    async def round(self, now: float) -> bool:
        """One round, at `now` (Unix seconds); False where another API server is at it. Raises MemosError, OSError."""
        with claimed(self.lifecycle.vault.path, CLAIM) as mine:
            if mine:
                await asyncio.to_thread(self.lifecycle.vault.sweep_forgotten)
                await self._work(self.lifecycle.expire(now))
                if now - self._faded_at >= FADE_EVERY:
                    await self._work(self.lifecycle.fade(now))
                    self._faded_at = now
            return mine

    async def _work(self, steps: Iterator[Step]) -> None:
        while True:
            began = time.perf_counter()
            step = await asyncio.to_thread(next, steps, None)
            spent = time.perf_counter() - began
            metrics.sweep_seconds().observe(spent)
            if step is None:
                return
            metrics.swept().inc(step.seen)
            metrics.transitions().labels("expired").inc(step.expired)
            metrics.transitions().labels("archived").inc(step.archived)
            metrics.demotions().labels("asleep").inc(len(step.kv_keys))
            self.forget(step.kv_keys)
            await asyncio.sleep(REST * spent)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_EVERY)
            try:
                await self.round(time.time())
            except (MemosError, OSError) as error:
                logger.warning("memories do not age for now: %s", error)
            except Exception:  # the loop must outlive any one round
                logger.exception("memories do not age for now")
