"""The host-RAM tier's brain: which KV cubes lie in the workers' memory. All ranks obey it, so all hold the same cubes.

    absent ──fetch──▶ fetching ──fetched(ok)──▶ resident ──evicted, dropped──▶ absent
       └───────────────admit───────────────────────▲

It decides and counts; bytes are moved by each worker's `KVStore`, on command. One step's commands are carried out in
this order: the drops of `take_drops`, then fetches, then captures.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from enum import Enum

from memos_vllm.activation.policies import EvictionPolicy


class State(Enum):
    """Where a key's payload is, as far as RAM goes."""

    ABSENT = "absent"
    FETCHING = "fetching"
    RESIDENT = "resident"


@dataclass
class TierStats:
    """Counts since the start, and what is in RAM now; bytes are one worker's.

    misses: fetches begun; refused: fetches and admissions without room; failed: fetches that brought nothing
    """

    hits: int = 0
    misses: int = 0
    refused: int = 0
    failed: int = 0
    evictions: int = 0
    evicted_bytes: int = 0
    num_resident: int = 0
    num_fetching: int = 0
    resident_bytes: int = 0
    fetching_bytes: int = 0


@dataclass
class _Entry:
    nbytes: int
    state: State
    doomed: bool = False
    """To be dropped at the last release."""


class KVTiers:
    """RAM within `ram_bytes`, one worker's share. It belongs to the scheduler's thread; `in_use` is safe on any.

    A key is the KV cube's; `nbytes` is what one worker keeps of it (`payload.stored_nbytes`).
    """

    def __init__(self, ram_bytes: int, policy: EvictionPolicy) -> None:
        self.ram_bytes, self.policy = ram_bytes, policy
        self._entries: dict[str, _Entry] = {}
        self._leases: Counter[str] = Counter()
        self._pinned: set[str] = set()
        self._drops: list[str] = []
        self._fresh: list[str] = []
        self._used_bytes = 0
        self._fetching_bytes = 0
        self._num_fetching = 0
        self._stats = TierStats()

    def state(self, key: str) -> State:
        entry = self._entries.get(key)
        return entry.state if entry else State.ABSENT

    @property
    def resident_bytes(self) -> int:
        return self._used_bytes - self._fetching_bytes

    @property
    def num_resident(self) -> int:
        return len(self._entries) - self._num_fetching

    def fetch(self, key: str, nbytes: int) -> bool:
        """Reserve room for an absent key and have it fetching: send the workers a fetch if True.

        False: there is no room, since all else is held, pinned or on its way. Raises ValueError for another state.
        """
        if key in self._entries:
            raise ValueError(f"{key} is {self.state(key).value}, not absent")
        self._stats.misses += 1
        if not self._enter(key, _Entry(nbytes, State.FETCHING)):
            return False
        self._fetching_bytes += nbytes
        self._num_fetching += 1
        return True

    def fetched(self, key: str, ok: bool) -> None:
        """Every worker has ended the fetch; `ok` if all have the payload. Each fetch must end once, well or not.

        After a failure the key is absent, and ranks that did get it are told to drop it. Raises ValueError for a key
        that is not fetching.
        """
        entry = self._entries.get(key)
        if entry is None or entry.state is not State.FETCHING:
            raise ValueError(f"{key} is not fetching")
        entry.state = State.RESIDENT
        self._fetching_bytes -= entry.nbytes
        self._num_fetching -= 1
        if not ok:
            self._stats.failed += 1
            self._remove(key)
        else:
            self.policy.added(key, entry.nbytes)
            self._settle(key)

    def admit(self, key: str, nbytes: int) -> bool:
        """Whether a capture of this step is to be kept in RAM (`KVStore.keep`); False: in a file only (`write`).

        It is not evicted before the next `take_drops`: a step's drops come before its captures.
        """
        entry = self._entries.get(key)
        if entry is not None and entry.state is State.FETCHING:
            return False
        if entry is None:
            if not self._enter(key, _Entry(nbytes, State.RESIDENT)):
                return False
            self.policy.added(key, nbytes)
        else:
            entry.doomed = False
        self.hold(key)
        self._fresh.append(key)
        return True

    def hold(self, key: str) -> None:
        """Count one more lease. A held key is never evicted; it may be absent yet."""
        self._leases[key] += 1

    def release(self, key: str) -> None:
        """Count one lease less. Raises ValueError without one."""
        if key not in self._leases:
            raise ValueError(f"{key} is not held")
        self._leases[key] -= 1
        if not self._leases[key]:
            del self._leases[key]
            self._settle(key)

    def held(self, key: str) -> bool:
        return key in self._leases

    def in_use(self, key: str) -> bool:
        """Whether the key is held, pinned or fetching: then its files have to stay as well. Safe on any thread."""
        return key in self._leases or key in self._pinned or self.state(key) is State.FETCHING

    def pin(self, key: str, pinned: bool) -> None:
        """While pinned, a key is not evicted. It may be absent; `drop` takes it away all the same."""
        if pinned:
            self._pinned.add(key)
        else:
            self._pinned.discard(key)

    def weigh(self, key: str, weight: float) -> None:
        """Priority between cubes that are not pinned: one of weight 2 is kept as if its return cost twice as much."""
        self.policy.weigh(key, weight)

    def touch(self, key: str) -> None:
        """A request uses the resident payload: a hit."""
        if self.state(key) is State.RESIDENT:
            self._stats.hits += 1
            self.policy.used(key)

    def drop(self, key: str) -> None:
        """The cube was deleted, or its payload failed: away with it, once it is neither held nor fetching."""
        if key in self._entries:
            self._entries[key].doomed = True
            self._settle(key)

    def take_drops(self) -> list[str]:
        """Keys that the workers must drop, since the last call. Call it once for each step."""
        drops, self._drops = self._drops, []
        fresh, self._fresh = self._fresh, []
        for key in fresh:
            self.release(key)
        return drops

    def stats(self) -> TierStats:
        """The figures of now."""
        return replace(
            self._stats,
            num_resident=self.num_resident,
            num_fetching=self._num_fetching,
            resident_bytes=self.resident_bytes,
            fetching_bytes=self._fetching_bytes,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless the books balance and keep the budget."""
        assert self._used_bytes == sum(entry.nbytes for entry in self._entries.values())
        assert 0 <= self._used_bytes <= self.ram_bytes
        fetching = [entry for entry in self._entries.values() if entry.state is State.FETCHING]
        assert self._num_fetching == len(fetching)
        assert self._fetching_bytes == sum(entry.nbytes for entry in fetching)
        assert all(count > 0 for count in self._leases.values())
        assert Counter(self._fresh) <= self._leases
        ordered = list(self.policy.order())
        resident = {key for key, entry in self._entries.items() if entry.state is State.RESIDENT}
        assert len(ordered) == len(resident) and set(ordered) == resident
        assert all(self._leases[key] for key in resident if self._entries[key].doomed)

    def _enter(self, key: str, entry: _Entry) -> bool:
        if not self._make_room(entry.nbytes):
            self._stats.refused += 1
            return False
        self._entries[key] = entry
        self._used_bytes += entry.nbytes
        return True

    def _make_room(self, nbytes: int) -> bool:
        """Evict until `nbytes` fit; nothing is evicted when that cannot be reached."""
        missing = self._used_bytes + nbytes - self.ram_bytes
        if missing <= 0:
            return True
        victims = []
        for key in self.policy.order():
            if key in self._leases or key in self._pinned:
                continue
            victims.append(key)
            missing -= self._entries[key].nbytes
            if missing <= 0:
                break
        if missing > 0:
            return False
        for key in victims:
            self._stats.evictions += 1
            self._stats.evicted_bytes += self._entries[key].nbytes
            self._remove(key)
        return True

    def _settle(self, key: str) -> None:
        """Remove a doomed key that nobody holds."""
        entry = self._entries.get(key)
        if entry and entry.doomed and entry.state is State.RESIDENT and key not in self._leases:
            self._remove(key)

    def _remove(self, key: str) -> None:
        self._used_bytes -= self._entries.pop(key).nbytes
        self.policy.removed(key)
        self._drops.append(key)
