"""Counts the uses of cubes: in memory while a prompt waits, in the vault a few seconds later."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from memos_vllm.cube import Licence, MemCube
from memos_vllm.errors import MemosError
from memos_vllm.scheduler.clock import stamp_of

if TYPE_CHECKING:
    from memos_vllm.vault import Uses, Vault

logger = logging.getLogger(__name__)

FLUSH_EVERY = 5.0
"""Seconds of uses that a crash may lose."""
MAX_PENDING = 10_000
"""Cubes whose uses wait; those of others are not counted until the next flush."""


class UseBook:
    """The uses of one API server's prompts. Thread-safe.

    written: told the cubes whose uses have just been written; it may raise MemosError.
    """

    def __init__(self, vault: Vault, written: Callable[[Collection[str]], object] = lambda ids: None) -> None:
        self.vault, self.written = vault, written
        self._pending: Counter[str] = Counter()
        self._untold: set[str] = set()
        self._lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Write in the background of the running event loop from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="memos-uses")

    def note(self, cube_ids: Iterable[str]) -> None:
        """Cubes have entered a prompt."""
        with self._lock:
            for cube_id in cube_ids:
                if cube_id in self._pending or len(self._pending) < MAX_PENDING:
                    self._pending[cube_id] += 1

    def note_prompt(self, cubes: Iterable[MemCube]) -> None:
        """Cubes have entered a prompt, which `admitted` has counted already for some."""
        self.note(cube.id for cube in cubes if not _is_metered(cube))

    def admitted(self, cubes: Iterable[MemCube]) -> list[MemCube]:
        """Those of the cubes that may enter one more prompt under their licence.

        Where a licence counts, the prompt is counted here and on disk when this returns, in whichever server.
        Raises MemosError.
        """
        return [cube for cube in cubes if cube.header.licence is None or self._admits(cube, cube.header.licence)]

    def _admits(self, cube: MemCube, licence: Licence) -> bool:
        if licence.ended(0):
            return False
        return licence.max_accesses is None or self.vault.take_use(cube.id, licence.max_accesses, time.time())

    def licensed(self, cubes: Sequence[MemCube]) -> list[bool]:
        """Whether each cube's licence, if it has one, goes on. Raises VaultUnavailable."""
        terms = {cube.id: cube.header.licence for cube in cubes if cube.header.licence is not None}
        counts = self.counts(terms) if terms else {}
        ended = {cube_id for cube_id, licence in terms.items() if licence.ended(counts[cube_id])}
        return [cube.id not in ended for cube in cubes]

    def of(self, cube_ids: Iterable[str]) -> dict[str, Uses]:
        """Uses by id, those that still wait included. Raises VaultUnavailable."""
        now, stored = time.time(), self.vault.uses_of(cube_ids)
        with self._lock:
            waiting = {cube_id: self._pending[cube_id] for cube_id in stored if cube_id in self._pending}
        return stored | {cube_id: stored[cube_id].more(count, now) for cube_id, count in waiting.items()}

    def heats(self, cube_ids: Iterable[str]) -> dict[str, float]:
        """Decayed uses by id. Raises VaultUnavailable."""
        now = time.time()
        return {cube_id: held.heat_at(now) for cube_id, held in self.of(cube_ids).items()}

    def counts(self, cube_ids: Iterable[str]) -> dict[str, int]:
        """All uses by id. Raises VaultUnavailable."""
        return {cube_id: held.count for cube_id, held in self.of(cube_ids).items()}

    def shown(self, cubes: Sequence[MemCube]) -> list[MemCube]:
        """The cubes with their uses, which are stored beside them, in their headers. Raises VaultUnavailable."""
        uses = self.of([cube.id for cube in cubes])
        return [_with_uses(cube, uses[cube.id]) for cube in cubes]

    def flush(self) -> None:
        """Write what waits. Raises MemosError; then it waits on."""
        with self._lock:
            taken, self._pending = self._pending, Counter()
        try:
            if taken:
                self.vault.add_uses(taken, time.time())
        except BaseException:
            with self._lock:
                self._pending.update(taken)
            raise
        self._untold |= taken.keys()
        if self._untold:
            self.written(self._untold)
            self._untold = set()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY)
            try:
                await asyncio.to_thread(self.flush)
            except MemosError as error:
                logger.warning("uses of memories are not taken in for now: %s", error)
            except Exception:  # the loop must outlive any one round
                logger.exception("uses of memories are not taken in for now")


def _is_metered(cube: MemCube) -> bool:
    licence = cube.header.licence
    return licence is not None and licence.max_accesses is not None


def _with_uses(cube: MemCube, uses: Uses) -> MemCube:
    last = stamp_of(uses.at) if uses.count else ""
    return MemCube(msgspec.structs.replace(cube.header, accesses=uses.count, last_access=last), cube.payload)
