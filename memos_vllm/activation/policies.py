"""Eviction policies: which KV cube leaves a full tier first.

`lru` goes by the last use alone. `cost` weighs what a cube's return would cost against the room it takes. ARC is left
out: the caching libraries that have it evict by themselves and count entries, while here a tier decides, entries differ
in size by orders of magnitude, and a cube in use has to be skipped.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from memos_vllm.errors import BadInput

HALF_LIFE = 600.0
"""Seconds after which a use counts half."""
DISK_HALF_LIFE = 86_400.0
"""The same for files, which outlive the process."""


class EvictionPolicy(Protocol):
    """The order in which a tier's entries go. It belongs to one tier, which tells it everything and decides itself."""

    def added(self, key: str, nbytes: int, last_use: float | None = None) -> None:
        """A new entry of `nbytes` > 0 bytes, used now or at `last_use` (seconds since the epoch)."""

    def used(self, key: str) -> None:
        """A use of an entry; an unknown key is ignored."""

    def weigh(self, key: str, weight: float) -> None:
        """An entry is `weight` > 0 times as dear as others, until it is told otherwise; it may be unknown yet."""

    def removed(self, key: str) -> None:
        """The entry is gone; an unknown key is ignored."""

    def order(self) -> Iterator[str]:
        """All entries, the first to go first. The entries must not change before the iteration ends."""


@dataclass(frozen=True)
class Rebuild:
    """What it costs to bring an entry back: a fixed part and one by its size."""

    seconds: float
    bytes_per_second: float

    def __call__(self, nbytes: int) -> float:
        return self.seconds + nbytes / self.bytes_per_second


FROM_DISK = Rebuild(2e-3, 1e9)
"""A read from a disk. For RAM; small cubes are worth more for each byte."""
FROM_PREFILL = Rebuild(20e-3, 2e8)
"""A capture: an engine step, and its prefill. For disks, until the engine's speed has been measured."""


class LRUPolicy:
    """The least recently used goes first; weights are ignored."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._uses: OrderedDict[str, float] = OrderedDict()
        self._sorted = True

    def added(self, key: str, nbytes: int, last_use: float | None = None) -> None:
        self._uses.pop(key, None)
        self._uses[key] = self._clock() if last_use is None else last_use
        self._sorted = self._sorted and last_use is None

    def used(self, key: str) -> None:
        if key in self._uses:
            self._uses[key] = self._clock()
            self._uses.move_to_end(key)

    def weigh(self, key: str, weight: float) -> None:
        return

    def removed(self, key: str) -> None:
        self._uses.pop(key, None)

    def order(self) -> Iterator[str]:
        if not self._sorted:  # entries of a scan came with times of their own
            self._uses = OrderedDict(sorted(self._uses.items(), key=lambda item: item[1]))
            self._sorted = True
        return iter(self._uses)


@dataclass
class _Value:
    """An entry's worth: `score` = log2(heat · weight · rebuild / nbytes) at `at`, in half-lives since the epoch."""

    per_byte: float
    heat: float
    at: float
    weight: float = 1.0

    @property
    def score(self) -> float:
        return self.at + math.log2(self.heat * self.weight * self.per_byte)


class CostPolicy:
    """Least worth first: heat × weight × rebuild seconds / bytes, where each use's heat halves every `half_life` s.

    Cost and size enter as in GreedyDual-Size-Frequency (Cherkasova, HPL-98-69R1, 1998); its aging by the value of what
    was evicted last is replaced by the decay of LRFU (Lee et al., IEEE ToC 50(12), 2001), so that a cube that was used
    often and long ago does go. All values decay alike: the order changes only with a use, and a heap holds it.
    """

    def __init__(
        self, rebuild: Rebuild = FROM_DISK, half_life: float = HALF_LIFE, clock: Callable[[], float] = time.time
    ) -> None:
        self.rebuild, self.half_life = rebuild, half_life
        self._clock = clock
        self._values: dict[str, _Value] = {}
        self._weights: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def added(self, key: str, nbytes: int, last_use: float | None = None) -> None:
        at = (self._clock() if last_use is None else last_use) / self.half_life
        self._values[key] = _Value(self.rebuild(nbytes) / nbytes, 1.0, at, self._weights.get(key, 1.0))
        self._push(key)

    def used(self, key: str) -> None:
        value = self._values.get(key)
        if value is not None:
            now = max(self._clock() / self.half_life, value.at)
            value.heat = 1.0 + value.heat * 2.0 ** (value.at - now)
            value.at = now
            self._push(key)

    def weigh(self, key: str, weight: float) -> None:
        if weight == 1.0:
            self._weights.pop(key, None)
        else:
            self._weights[key] = weight
        value = self._values.get(key)
        if value is not None and value.weight != weight:
            value.weight = weight
            self._push(key)

    def removed(self, key: str) -> None:
        self._values.pop(key, None)

    def order(self) -> Iterator[str]:
        """Best first through the heap, which stays as it is: a tier wants a few victims, not all entries sorted."""
        while self._heap and not self._current(*self._heap[0]):
            heapq.heappop(self._heap)
        seen: set[str] = set()
        front = [(*entry, 0) for entry in self._heap[:1]]
        while front:
            score, key, place = heapq.heappop(front)
            for child in (2 * place + 1, 2 * place + 2):
                if child < len(self._heap):
                    heapq.heappush(front, (*self._heap[child], child))
            if key not in seen and self._current(score, key):
                seen.add(key)
                yield key

    def _current(self, score: float, key: str) -> bool:
        value = self._values.get(key)
        return value is not None and value.score == score

    def _push(self, key: str) -> None:
        """Older places of the key in the heap go stale; they are swept once they are the greater part of it."""
        heapq.heappush(self._heap, (self._values[key].score, key))
        if len(self._heap) > 2 * len(self._values) + 64:
            self._heap = [(value.score, each) for each, value in self._values.items()]
            heapq.heapify(self._heap)


def parse_eviction(name: str, rebuild: Rebuild = FROM_DISK, half_life: float = HALF_LIFE) -> EvictionPolicy:
    """A new policy, for one tier, of the kind that `lru` or `cost` names. Raises BadInput for anything else."""
    if name == "lru":
        return LRUPolicy()
    if name == "cost":
        return CostPolicy(rebuild, half_life)
    raise BadInput(f"'{name}' is no eviction policy: use lru or cost")
