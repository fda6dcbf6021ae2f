"""What tenants share in an API server, and nobody can crowd the others out of: threads, a queue with turns, a cache."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


AT_ONCE = 8
"""Requests of one tenant that may be in threads at a time. anyio gives 40 to all of a process."""


class TenantGate:
    """At most AT_ONCE of each tenant are inside; more wait their turn. Of one event loop."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._tenants: dict[str, _Places] = {}

    @asynccontextmanager
    async def inside(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a place and keep it. Where there is one, nothing is waited for, not even the event loop's turn."""
        places = self._tenants.get(tenant)
        if places is None:
            places = self._tenants[tenant] = _Places(asyncio.Semaphore(self._at_once))
        places.wanted += 1
        try:
            async with places.free:
                yield
        finally:
            places.wanted -= 1
            if not places.wanted:
                del self._tenants[tenant]

    def check_integrity(self) -> int:
        """How many tenants are inside or wait. Raises AssertionError unless each has a place, and none too many."""
        assert all(places.wanted > 0 for places in self._tenants.values())
        assert all(places.free._value <= self._at_once for places in self._tenants.values())
        return len(self._tenants)


@dataclass
class _Places:
    """wanted: by how many, those that have one included."""

    free: asyncio.Semaphore
    wanted: int = 0


class FairQueue(Generic[Item]):
    """First in, first out for each tenant, tenants in turn. Not thread-safe."""

    def __init__(self, max_items: int, max_per_tenant: int) -> None:
        self.max_items, self.max_per_tenant = max_items, max_per_tenant
        self._tenants: OrderedDict[str, deque[Item]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, tenant: str, item: Item, *, urgent: bool = False) -> bool:
        """Queue an item, `urgent` in front of the tenant's others; False where the tenant or the queue is full."""
        if self._count >= self.max_items or len(self._tenants.get(tenant, ())) >= self.max_per_tenant:
            return False
        waiting = self._tenants.setdefault(tenant, deque())
        waiting.appendleft(item) if urgent else waiting.append(item)
        self._count += 1
        return True

    def pop(self) -> Item:
        """The first item of the tenant whose turn it is. Raises KeyError when nothing waits."""
        tenant, waiting = self._tenants.popitem(last=False)
        item = waiting.popleft()
        if waiting:
            self._tenants[tenant] = waiting
        self._count -= 1
        return item

    def check_integrity(self) -> None:
        """Raise AssertionError unless the counts balance and keep their limits."""
        assert self._count == sum(map(len, self._tenants.values())) <= self.max_items
        assert all(0 < len(waiting) <= self.max_per_tenant for waiting in self._tenants.values())


class TenantCache(Generic[Key, Value]):
    """Least recently used goes first, by weight; a tenant over its share loses its own entries. Thread-safe.

    max_weight: of all entries together; share: the part of it that one tenant may fill.
    """

    def __init__(self, max_weight: int, share: float = 1.0) -> None:
        self.max_weight, self.max_tenant = max_weight, int(max_weight * share)
        self._entries: OrderedDict[tuple[str, Key], tuple[Value, int]] = OrderedDict()
        self._tenants: dict[str, OrderedDict[Key, None]] = {}
        self._weights: dict[str, int] = {}
        self._weight = 0
        self._lock = threading.Lock()

    def get(self, tenant: str, key: Key) -> Value | None:
        with self._lock:
            entry = self._entries.get((tenant, key))
            if entry is None:
                return None
            self._entries.move_to_end((tenant, key))
            self._tenants[tenant].move_to_end(key)
            return entry[0]

    def put(self, tenant: str, key: Key, value: Value, weight: int) -> None:
        """Keep an entry; one that is over a tenant's share by itself is not kept."""
        with self._lock:
            self._remove(tenant, key)
            if weight > self.max_tenant:
                return
            self._entries[tenant, key] = (value, weight)
            self._tenants.setdefault(tenant, OrderedDict())[key] = None
            self._weights[tenant] = self._weights.get(tenant, 0) + weight
            self._weight += weight
            while self._weights[tenant] > self.max_tenant:
                self._remove(tenant, next(iter(self._tenants[tenant])))
            while self._weight > self.max_weight:
                self._remove(*next(iter(self._entries)))

    def computed(self, tenant: str, key: Key, compute: Callable[[], Value], weigh: Callable[[Value], int]) -> Value:
        """The entry, made by `compute` where it is not there; `None` cannot be kept."""
        value = self.get(tenant, key)
        if value is None:
            value = compute()
            self.put(tenant, key, value, weigh(value))
        return value

    def drop(self, tenant: str) -> None:
        """Remove all that a tenant has here."""
        with self._lock:
            for key in [*self._tenants.get(tenant, ())]:
                self._remove(tenant, key)

    def _remove(self, tenant: str, key: Key) -> None:
        entry = self._entries.pop((tenant, key), None)
        if entry is None:
            return
        self._weight -= entry[1]
        self._weights[tenant] -= entry[1]
        del self._tenants[tenant][key]
        if not self._tenants[tenant]:
            del self._tenants[tenant], self._weights[tenant]

    def check_integrity(self) -> None:
        """Raise AssertionError unless the weights balance and keep their limits."""
        with self._lock:
            weights: dict[str, int] = {}
            for (tenant, key), (_, weight) in self._entries.items():
                weights[tenant] = weights.get(tenant, 0) + weight
                assert key in self._tenants[tenant]
            assert weights == self._weights and set(weights) == set(self._tenants)
            assert sum(weights.values()) == self._weight <= self.max_weight
            assert all(weight <= self.max_tenant for weight in weights.values())
