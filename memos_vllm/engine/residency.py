"""Keeps the KV cubes that requests need in RAM: fetches them ahead of time, holds them, lets them go.

The tiers decide here, in the scheduler; the workers obey the commands that come with each step, in order. So every rank
holds the same cubes, and no step waits for a disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from vllm.logger import init_logger

from memos_vllm.activation.disk import DiskTier
from memos_vllm.activation.plan import Segment
from memos_vllm.activation.tiers import KVTiers, State
from memos_vllm.engine.messages import Fetch, StepNews, Tally, add_tallies
from memos_vllm.engine.metrics import MemosStats
from memos_vllm.engine.requests import Tracked

logger = init_logger("vllm.memos.residency")

MISSING = "kv-missing"
RAM_FULL = "kv-ram-full"
LOAD_FAILED = "load-failed"
WAIT = "wait"
GAUGE_SECONDS = 1.0
"""How often the tiers are asked how full they are, beside the steps that change it."""


class Residency:
    """nbytes: one rank's bytes of a cube of so many tokens; world: ranks that each read and write a part of a cube."""

    def __init__(self, tiers: KVTiers, disk: DiskTier, nbytes: Callable[[int], int], world: int) -> None:
        self.tiers, self.disk, self.nbytes, self.world = tiers, disk, nbytes, world
        self.stats = MemosStats()
        self.evictions = {"ram": 0, "disk": 0}
        self.changed, self.gauges_at = True, 0.0
        self.fetches: list[Fetch] = []
        self.fetching: dict[str, Tally] = {}
        self.writing: dict[str, Tally] = {}
        self.num_held = 0
        self.pinned: set[str] = set()

    def acquire(self, tracked: Tracked, segment: Segment) -> str | None:
        """Hold a cube for a request, fetching it where it is not in RAM. Returns why it cannot be had, else None."""
        key, length = segment.key, segment.length
        if key in tracked.held:
            return None
        source = "ram"
        if self.tiers.state(key) is State.ABSENT:
            source = "disk"
            if not self.disk.present(key):
                self.disk.rescan_now()  # another engine may have written it
                self._count(tracked, key, "hits", "miss")
                return MISSING
            if not self.tiers.fetch(key, self.nbytes(length)):
                return RAM_FULL
            self.changed = True
            self.fetches.append(Fetch(key, tracked.tokens(segment), length))
            self.fetching[key] = Tally()
        elif self.tiers.state(key) is State.FETCHING:
            source = "disk"
        self._count(tracked, key, "hits", source)
        self.tiers.hold(key)
        self.tiers.touch(key)
        self.disk.used(key)
        self._weigh(key, tracked.plan.weights.get(key, 1.0))
        tracked.held[key] = source
        self.num_held += 1
        return None

    def _weigh(self, key: str, weight: float) -> None:
        self.tiers.weigh(key, weight)
        self.disk.weigh(key, weight)

    def _count(self, tracked: Tracked, key: str, name: str, label: str) -> None:
        """Count once for each request and cube, however often it is asked for."""
        if (name, key) not in tracked.counted:
            tracked.counted.add((name, key))
            self.stats.add(name, label)

    def prefetch(self, tracked: Tracked) -> None:
        """Begin to fetch what a request that has just arrived will need, as far as there is room now."""
        for segment in (*tracked.plan.segments, *tracked.plan.compare):
            self.acquire(tracked, segment)

    def insist(self, tracked: Tracked, segment: Segment, everyone: Iterable[Tracked]) -> str | None:
        """`acquire` for a request whose turn it is: those that came later give up what they hold for it.

        Returns WAIT when only requests that came before, or cubes that are on their way, keep it from its cube.
        """
        problem = self.acquire(tracked, segment)
        if problem != RAM_FULL:
            return problem
        others = sorted((other for other in everyone if other.held), key=Tracked.turn, reverse=True)
        for other in others:
            if other.turn() <= tracked.turn():
                break
            self.release(other)
            if self.acquire(tracked, segment) is None:
                return None
        if self.fetching or any(other.turn() < tracked.turn() for other in others):
            return WAIT
        self._count(tracked, segment.key, "failures", "ram-full")
        return RAM_FULL

    def pending(self, tracked: Tracked) -> bool:
        """Whether a cube that the request holds is still on its way."""
        return any(self.tiers.state(key) is State.FETCHING for key in tracked.held)

    def admit(self, key: str, length: int) -> tuple[bool, bool]:
        """Make room for a cube that this step captures. Returns whether it is to be kept in RAM, and in a file."""
        self.changed = True
        nbytes = self.nbytes(length)
        on_disk = self.disk.make_room(key, nbytes * self.world)
        if on_disk:
            self.writing[key] = Tally()
        return self.tiers.admit(key, nbytes), on_disk

    def release(self, tracked: Tracked) -> None:
        for key in list(tracked.held):
            self._let_go(tracked, key)

    def _let_go(self, tracked: Tracked, key: str) -> None:
        del tracked.held[key]
        self.num_held -= 1
        self.tiers.release(key)

    def drop(self, keys: Iterable[str]) -> None:
        """Forget cubes that were deleted."""
        for key in keys:
            self.changed = True
            self.tiers.drop(key)
            self.disk.gone(key)

    def pin(self, keys: set[str]) -> None:
        """Have these cubes pinned, and no others."""
        for key in keys - self.pinned:
            self.tiers.pin(key, True)
        for key in self.pinned - keys:
            self.tiers.pin(key, False)
        self.pinned = keys

    def take_fetches(self) -> list[Fetch]:
        fetches, self.fetches = self.fetches, []
        return fetches

    def news(self, news: StepNews, holders: Iterable[Tracked]) -> None:
        """Take in what the workers have read and written; what every rank has done counts."""
        self.changed = True
        for key, tally in self._complete(self.fetching, news.fetched):
            self.tiers.fetched(key, not tally.error)
            if tally.error:
                self._give_up(key, tally.error, holders)
        for key in news.lost:
            self.tiers.drop(key)
            self._not_written(key)
        for key, tally in self._complete(self.writing, news.written):
            if tally.error:
                self.stats.add("failures", "write")
                logger.error("KV cube %s was not written: %s", key, tally.error)
                self._not_written(key)
            else:
                self.disk.added(key)

    def _not_written(self, key: str) -> None:
        """The files of a capture do not come: the room for them is free again."""
        self.writing.pop(key, None)
        self.disk.gone(key)

    def _complete(self, waiting: dict[str, Tally], told: dict[str, Tally]) -> list[tuple[str, Tally]]:
        known = {key: tally for key, tally in told.items() if key in waiting}
        waiting |= add_tallies({key: waiting[key] for key in known}, known)
        return [(key, waiting.pop(key)) for key in known if waiting[key].ranks >= self.world]

    def _give_up(self, key: str, error: str, holders: Iterable[Tracked]) -> None:
        """A file that cannot be used: those who wait for it are prefilled plainly from there on."""
        self.stats.add("failures", "fetch")
        logger.warning("KV cube %s is recomputed: %s", key, error)
        self.disk.gone(key)
        for tracked in holders:
            if key in tracked.held:
                self._let_go(tracked, key)
                tracked.report["fallback"] = LOAD_FAILED

    def take_stats(self) -> MemosStats | None:
        """What was counted since the last call, and how full the tiers are; None where nothing is to be told."""
        gauges = self.changed or time.monotonic() >= self.gauges_at
        if not gauges and self.stats.is_empty():
            return None
        stats, self.stats = self.stats, MemosStats()
        if not gauges:
            return stats
        self.changed, self.gauges_at = False, time.monotonic() + GAUGE_SECONDS
        figures = self.tiers.stats()
        stats.set("ram_bytes", figures.resident_bytes * self.world)
        stats.set("resident_cubes", figures.num_resident)
        on_disk = self.disk.stats()
        stats.set("disk_bytes", on_disk.num_bytes)
        for tier, evictions in (("ram", figures.evictions), ("disk", on_disk.evictions)):
            if evictions > self.evictions[tier]:
                stats.add("evictions", tier, evictions - self.evictions[tier])
                self.evictions[tier] = evictions
        return stats
