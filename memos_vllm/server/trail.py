"""Accesses on their way into the audit log: counted in memory, written a second later, never while a request waits."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import NamedTuple

from memos_vllm.errors import MemosError
from memos_vllm.governance.audit_policy import RECORDED, Access, AuditPolicy
from memos_vllm.vault import Vault
from memos_vllm.vault.audit import Noted

logger = logging.getLogger(__name__)

FLUSH_EVERY = 1.0
"""Seconds of accesses that a crash may lose; changes are never lost."""
LATE = 5.0
"""Seconds after which a request is noted at the latest: those of somebody who was forgotten before are not written."""
MAX_PENDING = 10_000
"""Different accesses that wait; what comes on top is counted, and the count is logged."""


AT_ONCE = 100
"""Accesses that are written in one transaction: all share its wait for the disk, and no other write waits for long."""


class _Step(NamedTuple):
    actor: str
    action: Access
    target: str
    owner: str


class AccessTrail:
    """The accesses of one API server that its policy records; equal ones within a second are one entry. Thread-safe."""

    def __init__(self, vault: Vault, policy: AuditPolicy = "changes") -> None:
        self._vault = vault
        self._recorded = RECORDED[policy]
        self._pending: Counter[_Step] = Counter()
        self._lost = 0
        self._since = time.time()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Write in the background of the running event loop from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="memos-trail")

    def note(self, actor: str, action: Access, *, target: str = "", owner: str = "") -> None:
        """An access to a cube (`target`) of another owner, or one that was refused."""
        if action not in self._recorded or not actor or actor == owner:
            return
        step = _Step(actor, action, target, owner)
        with self._lock:
            if step in self._pending or len(self._pending) < MAX_PENDING:
                self._pending[step] += 1
            else:
                self._lost += 1

    def flush(self) -> None:
        """Write what waits. Raises MemosError; what was not written then waits on."""
        with self._writing:
            with self._lock:
                taken, self._pending = self._pending, Counter()
                lost, self._lost = self._lost, 0
            if lost:
                logger.error("%d accesses are missing in the audit log: more than %d at once", lost, MAX_PENDING)
            began = time.time()
            try:
                while steps := [*islice(taken, AT_ONCE)]:
                    entries = [Noted(*step, detail={"times": taken[step]}) for step in steps]
                    self._vault.record_all(entries, since=self._since - LATE)
                    for step in steps:
                        del taken[step]
            except BaseException:
                with self._lock:
                    self._pending.update(taken)
                raise
            self._since = began

    @contextmanager
    def forgetting(self, user: str) -> Iterator[None]:
        """While a user is forgotten nothing is written, and afterwards nothing that names them waits any more."""
        with self._writing:
            yield
            with self._lock:
                kept = {step: count for step, count in self._pending.items() if user not in (step.actor, step.owner)}
                self._pending = Counter(kept)

    async def _run(self) -> None:
        try:
            while True:
                await asyncio.sleep(FLUSH_EVERY)
                await self._round()
        finally:  # an orderly stop
            with suppress(MemosError):
                self.flush()

    async def _round(self) -> None:
        try:
            await asyncio.to_thread(self.flush)
        except MemosError as error:
            logger.warning("accesses are not in the audit log for now: %s", error)
        except Exception:  # the loop must outlive any one round
            logger.exception("accesses are not in the audit log for now")
