"""What tenants share: places in threads, turns in the queue, shares of the cache."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memos_vllm.server.fair import AT_ONCE, FairQueue, TenantCache, TenantGate

TENANTS = st.sampled_from(["maya", "tom", "zoe"])


def test_a_tenant_waits_behind_its_own_requests_alone() -> None:
    """In the order they came; one that gives up while it waits, or fails inside, takes no place with it."""

    async def session() -> None:
        gate, finish = TenantGate(2), asyncio.Event()
        inside: list[str] = []

        async def visit(tenant: str, name: str) -> None:
            async with gate.inside(tenant):
                inside.append(name)
                await finish.wait()
                if name == "m1":
                    raise ValueError(name)

        visits = [asyncio.create_task(visit("maya", f"m{number}")) for number in range(5)]
        await asyncio.sleep(0)
        await visit_at_once(gate)
        assert inside == ["m0", "m1"]
        visits[2].cancel()
        finish.set()
        results = await asyncio.gather(*visits, return_exceptions=True)
        assert inside == ["m0", "m1", "m3", "m4"]
        assert [type(result) for result in results if result] == [ValueError, asyncio.CancelledError]
        assert gate.check_integrity() == 0

    asyncio.run(session())


async def visit_at_once(gate: TenantGate) -> None:
    """A tenant with a place goes in and out without giving the loop a turn."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    async with gate.inside("tom"):
        assert turns == 0
    assert turns == 0
    other.cancel()


def test_a_tenants_places_leave_threads_to_others() -> None:
    assert 1 < AT_ONCE <= 40 // 4


def test_a_tenant_with_many_items_waits_for_its_turn() -> None:
    queue: FairQueue[str] = FairQueue(100, 100)
    for number in range(5):
        queue.put("maya", f"m{number}")
    queue.put("tom", "t0")
    queue.put("maya", "now", urgent=True)
    assert [queue.pop() for _ in range(4)] == ["now", "t0", "m0", "m1"]


def test_limits_of_a_tenant_and_of_all() -> None:
    queue: FairQueue[int] = FairQueue(3, 2)
    assert [queue.put("maya", n) for n in range(3)] == [True, True, False]
    assert queue.put("tom", 3) and not queue.put("zoe", 4)


class Queue(RuleBasedStateMachine):
    """Against one list for each tenant."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue(8, 4)
        self.model: dict[str, list[int]] = {}
        self.number = 0

    @rule(tenant=TENANTS, urgent=st.booleans())
    def put(self, tenant: str, urgent: bool) -> None:
        mine = self.model.setdefault(tenant, [])
        room = len(mine) < 4 and sum(map(len, self.model.values())) < 8
        self.number += 1
        assert self.queue.put(tenant, self.number, urgent=urgent) is room
        if room:
            mine.insert(0 if urgent else len(mine), self.number)

    @precondition(lambda self: len(self.queue) > 0)
    @rule()
    def pop(self) -> None:
        item = self.queue.pop()
        (tenant,) = (tenant for tenant, mine in self.model.items() if mine and mine[0] == item)
        self.model[tenant].pop(0)

    @invariant()
    def balances(self) -> None:
        self.queue.check_integrity()
        assert len(self.queue) == sum(map(len, self.model.values()))


TestQueue = Queue.TestCase


def test_a_tenant_over_its_share_loses_its_own() -> None:
    cache: TenantCache[str, int] = TenantCache(100, share=0.4)
    cache.put("tom", "t", 1, 40)
    for number in range(10):
        cache.put("maya", f"m{number}", number, 20)
    assert cache.get("tom", "t") == 1
    assert [number for number in range(10) if cache.get("maya", f"m{number}") is not None] == [8, 9]
    cache.put("maya", "huge", 1, 41)
    assert cache.get("maya", "huge") is None
    cache.drop("maya")
    assert cache.get("maya", "m9") is None and cache.get("tom", "t") == 1
    cache.check_integrity()


def test_the_least_recently_used_goes_first() -> None:
    cache: TenantCache[str, int] = TenantCache(3)
    for name in "abc":
        cache.put("maya", name, 1, 1)
    assert cache.get("maya", "a") == 1
    cache.put("maya", "d", 1, 1)
    assert [name for name in "abcd" if cache.get("maya", name)] == ["a", "c", "d"]


@given(st.lists(st.tuples(TENANTS, st.integers(0, 5), st.integers(0, 60), st.booleans())))
def test_books_balance(steps: list[tuple[str, int, int, bool]]) -> None:
    cache: TenantCache[int, int] = TenantCache(100, share=0.5)
    for tenant, key, weight, read in steps:
        if read:
            cache.get(tenant, key)
        else:
            cache.put(tenant, key, weight, weight)
            assert cache.get(tenant, key) == (weight if weight <= 50 else None)
        cache.check_integrity()
