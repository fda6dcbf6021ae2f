"""The RAM tier against a slow, obvious model and workers that do as they are told; eviction policies."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memos_vllm.activation.policies import (
    FROM_DISK,
    FROM_PREFILL,
    CostPolicy,
    EvictionPolicy,
    LRUPolicy,
    Rebuild,
    parse_eviction,
)
from memos_vllm.activation.tiers import KVTiers, State
from memos_vllm.errors import BadInput

KEYS = st.sampled_from("abcdefgh")
SIZES = st.integers(1, 40)
BUDGET = 100
RANKS = 2


class TiersMachine(RuleBasedStateMachine):
    """`order`: resident keys, least recently used first. `ranks`: what each worker has in RAM."""

    def __init__(self) -> None:
        super().__init__()
        self.tiers = KVTiers(BUDGET, LRUPolicy())
        self.order: list[str] = []
        self.fetching: list[str] = []
        self.sizes: dict[str, int] = {}
        self.leases: Counter[str] = Counter()
        self.pinned: set[str] = set()
        self.doomed: set[str] = set()
        self.fresh: list[str] = []
        self.drops: list[str] = []
        self.ranks: list[set[str]] = [set() for _ in range(RANKS)]
        self.sent: list[str] = []
        self.under_way: list[str] = []
        self.captures: list[str] = []

    def used(self) -> int:
        return sum(self.sizes[key] for key in (*self.order, *self.fetching))

    def remove(self, key: str) -> None:
        self.order.remove(key)
        self.doomed.discard(key)
        self.drops.append(key)

    def room(self, nbytes: int) -> bool:
        free = [key for key in self.order if not self.leases[key] and key not in self.pinned]
        if self.used() - sum(self.sizes[key] for key in free) + nbytes > BUDGET:
            return False
        while self.used() + nbytes > BUDGET:
            self.remove(free.pop(0))
        return True

    def settle(self, key: str) -> None:
        if key in self.doomed and key in self.order and not self.leases[key]:
            self.remove(key)

    @rule(key=KEYS, nbytes=SIZES)
    def fetch(self, key: str, nbytes: int) -> None:
        if key in self.order or key in self.fetching:
            with pytest.raises(ValueError, match="not absent"):
                self.tiers.fetch(key, nbytes)
            return
        fits = self.room(nbytes)
        assert self.tiers.fetch(key, nbytes) is fits
        if fits:
            self.sizes[key] = nbytes
            self.fetching.append(key)
            self.sent.append(key)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), good=st.lists(st.booleans(), min_size=RANKS, max_size=RANKS))
    def fetched(self, data: st.DataObject, good: list[bool]) -> None:
        key = data.draw(st.sampled_from(self.under_way))
        self.under_way.remove(key)
        for rank, ok in zip(self.ranks, good, strict=True):
            if ok:
                rank.add(key)
        self.tiers.fetched(key, all(good))
        self.fetching.remove(key)
        self.order.append(key)
        if not all(good):
            self.remove(key)
        self.settle(key)

    @rule(key=KEYS, nbytes=SIZES)
    def admit(self, key: str, nbytes: int) -> None:
        if key in self.fetching:
            assert not self.tiers.admit(key, nbytes)
            return
        fits = key in self.order or self.room(nbytes)
        assert self.tiers.admit(key, nbytes) is fits
        if not fits:
            return
        if key not in self.order:
            self.sizes[key] = nbytes
            self.order.append(key)
        self.doomed.discard(key)
        self.leases[key] += 1
        self.fresh.append(key)
        self.captures.append(key)

    @rule(key=KEYS)
    def hold(self, key: str) -> None:
        self.tiers.hold(key)
        self.leases[key] += 1
        assert self.tiers.held(key) and self.tiers.in_use(key)

    @rule(key=KEYS)
    def release(self, key: str) -> None:
        if self.leases[key] > self.fresh.count(key):
            self.tiers.release(key)
            self.leases[key] -= 1
            self.settle(key)
        elif not self.leases[key]:
            with pytest.raises(ValueError, match="not held"):
                self.tiers.release(key)

    @rule(key=KEYS, pinned=st.booleans())
    def pin(self, key: str, pinned: bool) -> None:
        self.tiers.pin(key, pinned)
        (self.pinned.add if pinned else self.pinned.discard)(key)

    @rule(key=KEYS)
    def touch(self, key: str) -> None:
        self.tiers.touch(key)
        if key in self.order:
            self.order.append(self.order.pop(self.order.index(key)))

    @rule(key=KEYS)
    def drop(self, key: str) -> None:
        self.tiers.drop(key)
        if key in self.order or key in self.fetching:
            self.doomed.add(key)
            self.settle(key)

    @rule()
    def step(self) -> None:
        """The workers carry out a step: drops, fetches, captures."""
        drops, self.drops = self.drops, []
        assert self.tiers.take_drops() == drops
        fresh, self.fresh = self.fresh, []
        for key in fresh:
            self.leases[key] -= 1
            self.settle(key)
        for rank in self.ranks:
            rank -= set(drops)
            rank |= set(self.captures)
        self.under_way += self.sent
        self.sent, self.captures = [], []

    @invariant()
    def books_balance(self) -> None:
        self.tiers.check_integrity()
        for key in "abcdefgh":
            state = State.RESIDENT if key in self.order else State.FETCHING if key in self.fetching else State.ABSENT
            assert self.tiers.state(key) is state
        stats = self.tiers.stats()
        assert stats.num_resident == self.tiers.num_resident == len(self.order)
        assert stats.num_fetching == len(self.fetching)
        assert stats.resident_bytes == sum(self.sizes[key] for key in self.order)
        assert stats.fetching_bytes == sum(self.sizes[key] for key in self.fetching)
        assert list(self.tiers.policy.order()) == self.order

    @invariant()
    def workers_have_what_is_resident(self) -> None:
        """But for commands that the next step brings, and fetches that some ranks have ended."""
        for rank in self.ranks:
            assert (rank - set(self.drops)) | set(self.captures) >= set(self.order)
            assert rank - set(self.drops) - set(self.fetching) <= set(self.order)


TestTiers = TiersMachine.TestCase
TestTiers.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_a_fetch_without_room_evicts_nothing() -> None:
    tiers = KVTiers(100, LRUPolicy())
    for key in "abc":
        assert tiers.admit(key, 30)
    tiers.take_drops()
    tiers.hold("a")
    tiers.pin("b", True)
    assert not tiers.fetch("d", 80)
    assert [tiers.state(key) for key in "abcd"] == [State.RESIDENT] * 3 + [State.ABSENT]
    assert tiers.fetch("d", 40)
    assert tiers.take_drops() == ["c"]
    stats = tiers.stats()
    assert (stats.refused, stats.evictions, stats.evicted_bytes, stats.misses) == (1, 1, 30, 2)


def test_a_capture_is_not_dropped_in_its_own_step() -> None:
    """The workers drop first and capture last: such a drop would leave them a payload that nobody knows of."""
    tiers = KVTiers(10, LRUPolicy())
    assert tiers.admit("a", 10)
    assert not tiers.admit("b", 10)
    tiers.drop("a")
    assert tiers.take_drops() == []
    assert tiers.take_drops() == ["a"]
    assert tiers.state("a") is State.ABSENT


def test_a_recaptured_cube_is_wanted_again() -> None:
    tiers = KVTiers(10, LRUPolicy())
    tiers.admit("a", 10)
    tiers.drop("a")
    tiers.admit("a", 10)
    tiers.take_drops()
    assert tiers.take_drops() == []
    assert tiers.state("a") is State.RESIDENT


def test_a_hit_is_counted_for_what_is_in_ram_only() -> None:
    tiers = KVTiers(10, LRUPolicy())
    tiers.fetch("a", 5)
    tiers.touch("a")
    tiers.fetched("a", True)
    tiers.touch("a")
    assert (tiers.stats().hits, tiers.stats().misses) == (1, 1)
    with pytest.raises(ValueError, match="not fetching"):
        tiers.fetched("a", True)


def test_a_weight_is_kept_while_the_cube_is_away() -> None:
    tiers = KVTiers(20, CostPolicy(clock=lambda: 0.0))
    tiers.weigh("a", 4.0)
    tiers.weigh("b", 0.5)
    for key in "ab":
        tiers.fetch(key, 10)
        tiers.fetched(key, True)
    assert list(tiers.policy.order()) == ["b", "a"]
    tiers.weigh("a", 1.0)
    tiers.weigh("b", 1.0)
    tiers.touch("b")
    assert list(tiers.policy.order()) == ["a", "b"]


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


EVENTS = st.lists(st.tuples(KEYS, st.sampled_from(["add", "use", "weigh", "remove"]), st.integers(1, 900)), max_size=60)


@given(events=EVENTS)
@settings(deadline=None)
def test_cost_orders_by_decayed_heat_weight_and_cost_for_a_byte(events: list[tuple[str, str, int]]) -> None:
    """The heap against the definition, summed over every use of every entry."""
    clock, half_life, rebuild = Clock(), 600.0, Rebuild(0.01, 1e4)
    policy = CostPolicy(rebuild, half_life, clock)
    uses: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    weights: dict[str, float] = {}
    for key, event, number in events:
        clock.now += number
        if event == "add":
            policy.added(key, number)
            uses[key], sizes[key] = [clock.now], number
        elif event == "use":
            policy.used(key)
            uses.get(key, []).append(clock.now)
        elif event == "weigh":
            policy.weigh(key, number / 100)
            weights[key] = number / 100
        else:
            policy.removed(key)
            uses.pop(key, None)

        def value(key: str) -> float:
            heat = sum(0.5 ** ((clock.now - at) / half_life) for at in uses[key])
            return math.log(heat * weights.get(key, 1.0) * rebuild(sizes[key]) / sizes[key])

        found = list(policy.order())
        assert sorted(found) == sorted(uses)
        values = [value(key) for key in found]
        assert all(one <= other + 1e-6 for one, other in pairwise(values))


def test_a_cube_that_was_hot_long_ago_goes_before_one_of_today() -> None:
    clock = Clock()
    policy = CostPolicy(clock=clock)
    policy.added("old", 1000)
    for _ in range(1000):
        policy.used("old")
    policy.added("warm", 1000)
    assert next(policy.order()) == "warm"
    clock.now += 20 * 600.0
    policy.added("new", 1000)
    assert list(policy.order()) == ["warm", "old", "new"]


def test_small_cubes_are_worth_more_for_each_byte() -> None:
    policy = CostPolicy(FROM_DISK, clock=lambda: 0.0)
    policy.added("large", 100 << 20)
    policy.added("small", 1 << 20)
    assert list(policy.order()) == ["large", "small"]


@pytest.mark.parametrize("policy", [LRUPolicy(), CostPolicy()], ids=["lru", "cost"])
def test_entries_of_a_scan_come_in_the_order_of_their_times(policy: EvictionPolicy) -> None:
    for key, at in {"b": 2e8, "a": 1e8, "c": 3e8}.items():
        policy.added(key, 10, at)
    assert list(policy.order()) == ["a", "b", "c"]
    policy.used("a")
    policy.added("d", 10, 1.5e8)
    assert list(policy.order()) == ["d", "b", "c", "a"]
    policy.removed("c")
    policy.used("c")
    assert list(policy.order()) == ["d", "b", "a"]


def test_the_heap_does_not_grow_with_uses() -> None:
    policy = CostPolicy()
    policy.added("a", 10)
    for _ in range(10_000):
        policy.used("a")
    assert len(policy._heap) < 200


def test_policies_by_name() -> None:
    assert isinstance(parse_eviction("lru"), LRUPolicy)
    cost = parse_eviction("cost", FROM_PREFILL, half_life=1.0)
    assert isinstance(cost, CostPolicy) and cost.rebuild is FROM_PREFILL
    assert parse_eviction("cost") is not parse_eviction("cost")
    with pytest.raises(BadInput, match="lru or cost"):
        parse_eviction("arc")
