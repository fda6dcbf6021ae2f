"""The disk tier: keeps the KV files of a memory directory within a byte budget, and knows which cubes have theirs.

The folder is the truth; other processes write and delete there too. One thread scans it, deletes and refreshes times of
use; the callers' methods change the index in memory and never touch the disk, so an engine step may call them.

A time of use is a file's mtime: heat outlives the process. Victims are, in this order: K/V of other models or tensor-
parallel sizes, oldest use first, for this engine cannot read them; then cubes by policy, never one that is in use.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from memos_vllm.activation.files import KV_DIR, SUFFIX, kv_path, sweep_temporaries
from memos_vllm.activation.policies import EvictionPolicy

logger = logging.getLogger(__name__)

RESCAN_SECONDS = 60.0
RESCAN_PAUSE = 1.0
GRACE_SECONDS = 600.0
"""Age at which files that no manifest lists, or that lack another rank's, count as left by a crash."""
EXPECTED_SECONDS = 60.0
"""How long room is kept for a capture whose files do not come."""

_FILE = re.compile(r"([0-9a-f]+)\.(\d{1,4})of(\d{1,4})" + re.escape(SUFFIX))


@dataclass
class DiskStats:
    """Counts since the start, and what is on disk now (every model's files, as of the last look)."""

    num_cubes: int = 0
    num_bytes: int = 0
    expected_bytes: int = 0
    evictions: int = 0
    evicted_bytes: int = 0
    leftovers: int = 0


@dataclass
class _Group:
    """The files of one cube, one for each rank. `name` is the key for a cube that this engine can read."""

    name: str
    key: str
    folder: Path
    world: int
    own: bool
    sizes: dict[int, int] = field(default_factory=dict)
    last_use: float = 0.0

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values())

    @property
    def complete(self) -> bool:
        return len(self.sizes) == self.world

    def paths(self) -> list[Path]:
        return [self.folder / f"{self.key}.{rank}of{self.world}{SUFFIX}" for rank in sorted(self.sizes)]


def _walk(folder: Path, depth: int) -> Iterator[os.DirEntry[str]]:
    """The entries `depth` folders down; what cannot be read, or has just gone, is passed over."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if depth == 0:
                yield entry
            elif entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), depth - 1)


def scan(memory_dir: Path, identity: str, world: int) -> dict[str, _Group]:
    """Every cube that has a file in `memory_dir`, by name."""
    own_folder = identity[:16]
    groups: dict[str, _Group] = {}
    for entry in _walk(memory_dir / KV_DIR, 2):
        if not (match := _FILE.fullmatch(entry.name)):
            continue
        key, rank, of = match[1], int(match[2]), int(match[3])
        folder = Path(entry.path).parent
        own = folder.parent.name == own_folder and of == world
        name = key if own else f"{folder.parent.name}/{key}.of{of}"
        group = groups.setdefault(name, _Group(name, key, folder, of, own))
        with suppress(OSError):
            status = entry.stat()
            if rank < of:
                group.sizes[rank] = status.st_size
                group.last_use = max(group.last_use, min(status.st_mtime, time.time()))
    return {name: group for name, group in groups.items() if group.sizes}


class DiskTier:
    """`disk_bytes` for all KV files of `memory_dir`; None: no limit.

    identity, world: whose files this engine reads
    in_use: whether a key's files must stay (`KVTiers.in_use`); called on the tier's thread
    rescan: seconds between two scans; rescan_pause: the least time between two that `rescan_now` asks for
    """

    def __init__(
        self,
        memory_dir: Path,
        identity: str,
        world: int,
        disk_bytes: int | None,
        policy: EvictionPolicy,
        in_use: Callable[[str], bool] = lambda key: False,
        grace: float = GRACE_SECONDS,
        rescan: float = RESCAN_SECONDS,
        rescan_pause: float = RESCAN_PAUSE,
    ) -> None:
        """Scans the folder once, then starts the thread."""
        self.memory_dir, self.identity, self.world = memory_dir, identity, world
        self.disk_bytes, self.policy, self.in_use = disk_bytes, policy, in_use
        self.grace, self.rescan, self.rescan_pause = grace, rescan, rescan_pause
        self._change = threading.Condition()
        self._groups: dict[str, _Group] = {}
        self._num_bytes = 0
        self._present: set[str] = set()
        self._touched: set[str] = set()
        """Names that a method or an eviction changed while a scan was under way: they know better than the scan."""
        self._to_measure: set[str] = set()
        self._expected: dict[str, tuple[int, float]] = {}
        self._used: set[str] = set()
        self._scanned_at = time.monotonic()
        self._scan_at = self._scanned_at + rescan
        self._wake = False
        self._busy = False
        self._closing = False
        self._stats = DiskStats()
        self._take_scan(scan(memory_dir, identity, world))
        self._thread = threading.Thread(target=self._run, name="memos-kv-disk", daemon=True)
        self._thread.start()

    def present(self, key: str) -> bool:
        """Whether every rank's file of this engine's cube is there, as far as is known; asks no disk."""
        return key in self._present

    def added(self, key: str) -> None:
        """All ranks have written the key's files."""
        with self._change:
            self._present.add(key)
            self._touched.add(key)
            self._to_measure.add(key)
            self._notify()

    def gone(self, key: str) -> None:
        """A file of the key is missing or unusable; the next scan looks whether others are left."""
        with self._change:
            self._expected.pop(key, None)
            self._forget(key)

    def used(self, key: str) -> None:
        """A request uses the cube, from whatever tier."""
        with self._change:
            self.policy.used(key)
            self._used.add(key)

    def weigh(self, key: str, weight: float) -> None:
        """Priority between cubes, as in `KVTiers.weigh`."""
        with self._change:
            self.policy.weigh(key, weight)

    def make_room(self, key: str, nbytes: int) -> bool:
        """Have room made for a key's files, `nbytes` over all ranks, that are about to be written. Returns at once.

        False: the budget does not hold them beside the others that are on their way; they should not be written.
        """
        with self._change:
            self._expected.pop(key, None)
            if self.disk_bytes is not None and self._expected_bytes() + nbytes > self.disk_bytes:
                return False
            self._expected[key] = (nbytes, time.monotonic() + EXPECTED_SECONDS)
            self._notify()
        return True

    def rescan_now(self) -> None:
        """Have the folder scanned: a cube is missing that another process may have written."""
        with self._change:
            self._scan_at = min(self._scan_at, self._scanned_at + self.rescan_pause)
            self._notify()

    def wait_idle(self, timeout: float = 30.0) -> bool:
        """Wait until nothing is left to do; whether that came within `timeout` seconds."""
        with self._change:
            return self._change.wait_for(lambda: not self._wake and not self._busy, timeout)

    def stats(self) -> DiskStats:
        with self._change:
            expected = self._expected_bytes()
            return replace(self._stats, num_cubes=len(self._groups), num_bytes=self._num_bytes, expected_bytes=expected)

    def close(self) -> None:
        """Write the times of use that are pending and end the thread."""
        with self._change:
            self._closing = True
            self._notify()
        self._thread.join()

    def check_integrity(self) -> None:
        """Raise AssertionError unless the index balances."""
        with self._change:
            assert self._num_bytes == sum(group.nbytes for group in self._groups.values())
            own = {name for name, group in self._groups.items() if group.own}
            assert set(self.policy.order()) == own
            complete = {name for name in own if self._groups[name].complete}
            assert complete - self._to_measure == self._present - self._to_measure

    # the index; the lock is held

    def _notify(self) -> None:
        self._wake = True
        self._change.notify_all()

    def _expected_bytes(self) -> int:
        now = time.monotonic()
        self._expected = {key: entry for key, entry in self._expected.items() if entry[1] > now}
        return sum(nbytes for nbytes, _ in self._expected.values())

    def _forget(self, name: str) -> None:
        group = self._groups.pop(name, None)
        if group is not None:
            self._num_bytes -= group.nbytes
        self.policy.removed(name)
        self._present.discard(name)
        self._touched.add(name)

    def _enter(self, group: _Group) -> None:
        """Index a group that is new or changed."""
        before = self._groups.get(group.name)
        if before is not None and before.sizes == group.sizes:  # most of a scan's: steps wait for the lock meanwhile
            before.last_use = group.last_use
            return
        self._groups[group.name] = group
        self._num_bytes += group.nbytes - (before.nbytes if before else 0)
        if group.own:
            self.policy.added(group.name, group.nbytes, group.last_use)
            (self._present.add if group.complete else self._present.discard)(group.name)

    def _take_scan(self, found: dict[str, _Group]) -> None:
        for name in [name for name in self._groups if name not in found and name not in self._touched]:
            self._forget(name)
        for name, group in found.items():
            if name not in self._touched:
                self._enter(group)

    def _order(self) -> Iterator[_Group]:
        """What may be evicted, the first to go first."""
        others = sorted((group for group in self._groups.values() if not group.own), key=lambda group: group.last_use)
        yield from others
        for key in list(self.policy.order()):
            if key not in self._expected and not self.in_use(key):
                yield self._groups[key]

    def _pick(self) -> list[_Group]:
        """Take the groups out of the index that have to go for the budget."""
        if self.disk_bytes is None:
            return []
        over = self._num_bytes + self._expected_bytes() - self.disk_bytes
        victims = []
        for group in self._order() if over > 0 else ():
            victims.append(group)
            over -= group.nbytes
            if over <= 0:
                break
        for group in victims:
            self._forget(group.name)
            self._stats.evictions += 1
            self._stats.evicted_bytes += group.nbytes
        return victims

    def _pick_leftovers(self) -> list[_Group]:
        """Take the groups out of the index of which some ranks' files never came."""
        old = time.time() - self.grace
        leftovers = [
            group
            for group in self._groups.values()
            if not group.complete and group.last_use < old and group.name not in self._expected
        ]
        for group in leftovers:
            self._forget(group.name)
        return leftovers

    # the thread

    def _run(self) -> None:
        while self._wait():
            try:
                self._work()
            except Exception:  # the thread must outlive whatever `in_use` raises
                logger.exception("the KV files were not looked after")
            finally:
                with self._change:
                    self._busy = False
                    self._change.notify_all()
        self._refresh_times()

    def _wait(self) -> bool:
        """Wait for something to do; False when the tier closes."""
        with self._change:
            self._change.wait_for(lambda: self._wake, max(0.0, self._scan_at - time.monotonic()))
            self._wake, self._busy = False, True
            return not self._closing

    def _work(self) -> None:
        rescan = time.monotonic() >= self._scan_at
        if rescan:
            self._refresh_times()
            self._rescan()
        self._measure()
        with self._change:
            victims = self._pick()
        _delete(victims)
        if rescan:
            self._clear_leftovers()

    def _rescan(self) -> None:
        with self._change:
            self._touched.clear()
            self._scanned_at = time.monotonic()
            self._scan_at = self._scanned_at + self.rescan
        found = scan(self.memory_dir, self.identity, self.world)
        with self._change:
            self._take_scan(found)

    def _clear_leftovers(self) -> None:
        self._stats.leftovers += sweep_temporaries(self.memory_dir)
        with self._change:
            leftovers = self._pick_leftovers()
        _delete(leftovers)
        self._stats.leftovers += len(leftovers)

    def _measure(self) -> None:
        """Look at the files of the keys that were added."""
        with self._change:
            keys = list(self._to_measure)
        for key in keys:
            paths = [kv_path(self.memory_dir, self.identity, key, rank, self.world) for rank in range(self.world)]
            group = _Group(key, key, paths[0].parent, self.world, own=True, last_use=time.time())
            for rank, path in enumerate(paths):
                with suppress(OSError):
                    group.sizes[rank] = path.stat().st_size
            with self._change:
                self._to_measure.discard(key)
                self._expected.pop(key, None)
                if group.sizes:
                    self._enter(group)
                else:
                    self._forget(key)

    def _refresh_times(self) -> None:
        """Write the times of use to the files."""
        with self._change:
            used, self._used = self._used, set()
            groups = [self._groups[key] for key in used if key in self._groups]
        for path in (path for group in groups for path in group.paths()):
            with suppress(OSError):
                os.utime(path)


def remove_unlisted(memory_dir: Path, known: Container[str], grace: float = GRACE_SECONDS) -> int:
    """Remove the KV files of keys that the manifest does not list: captures that were killed before they entered it.

    For the manifest's owner, now and then; returns of how many cubes. Files used within `grace` seconds stay.
    """
    old = time.time() - grace
    groups = scan(memory_dir, "", 0).values()
    unlisted = [group for group in groups if group.last_use < old and group.key not in known]
    _delete(unlisted)
    return len(unlisted)


def _delete(groups: list[_Group]) -> None:
    """Delete the files; one that cannot be deleted is found again by the next scan."""
    for path in (path for group in groups for path in group.paths()):
        with suppress(OSError):
            path.unlink(missing_ok=True)
