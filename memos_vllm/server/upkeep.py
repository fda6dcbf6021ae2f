"""Demotion: rows of the manifest whose files are gone, K/V of memories that nobody has used for long and K/V of other
texts that are old become text again; files that no row lists, left by a killed capture, are removed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from memos_vllm.activation.disk import remove_unlisted
from memos_vllm.errors import MemosError
from memos_vllm.server import metrics

if TYPE_CHECKING:
    from memos_vllm.vault import KVRecord, Vault

logger = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two rounds."""
MAX_IDLE = 30 * 86_400.0
"""Seconds without a use (for texts that are no memories: since their capture) after which K/V are removed. The disk's
budget removes them earlier where room is short.
"""


class Upkeep:
    """`forget` is told the keys of K/V that were removed, `learn` is called in each round."""

    def __init__(self, vault: Vault, forget: Callable[[Sequence[str]], None], learn: Callable[[], None]) -> None:
        self.vault, self.forget, self.learn = vault, forget, learn
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Work in the background of the running event loop from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="memos-upkeep")

    def round(self, now: float | None = None) -> None:
        """One round, at `now` (seconds, Unix time). Raises MemosError."""
        moment = time.time() if now is None else now
        gone = self.vault.prune_kv()
        metrics.demotions().labels("gone").inc(len(gone))
        idle = [record.key for record in self._idle(moment) if self.vault.drop_kv(record.key) is not None]
        metrics.demotions().labels("idle").inc(len(idle))
        self.forget(idle)
        remove_unlisted(self.vault.path, self.vault.known_keys())
        self.learn()

    def _idle(self, now: float) -> list[KVRecord]:
        old = [record for record in self.vault.iter_kv() if _old(record, now)]
        uses = self.vault.uses_of({record.cube_id for record in old if record.cube_id})
        return [record for record in old if not record.cube_id or now - uses[record.cube_id].at > MAX_IDLE]

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            try:
                await asyncio.to_thread(self.round)
            except (MemosError, OSError) as error:
                logger.warning("K/V of memories are not cleaned up: %s", error)
            except Exception:  # the loop must outlive any one round
                logger.exception("K/V of memories are not cleaned up")


def _old(record: KVRecord, now: float) -> bool:
    """Old enough to be looked at; scaffolds are few and serve everybody."""
    age = now - datetime.fromisoformat(record.created).timestamp()
    return record.kind != "scaffold" and bool(record.owner) and not record.pinned and age > MAX_IDLE
