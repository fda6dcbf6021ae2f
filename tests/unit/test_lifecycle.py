"""What time does to cubes: expiry, fading, waking; a state machine walks all of it against a model."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from memos_vllm.cube import Header, MemCube, State
from memos_vllm.errors import Conflict, QuotaExceeded, VaultUnavailable
from memos_vllm.retrieval import MemOperator
from memos_vllm.scheduler import recall as module
from memos_vllm.scheduler.clock import DAY, stamp_of
from memos_vllm.scheduler.lifecycle import ACTOR, CHANGES, FAINT, PAGE, Lifecycle, strength
from memos_vllm.scheduler.recall import recall
from memos_vllm.vault import Usage, Uses, Vault, changes
from memos_vllm.vault.env import Txn
from memos_vllm.vault.states import ALLOWED, HOT
from tests.unit.vault_cases import add, kv_for, texts


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault
        assert vault.check() == []


def swept(lifecycle: Lifecycle, now: float) -> list[Any]:
    return [*lifecycle.expire(now), *lifecycle.fade(now)]


def state(vault: Vault, cube: MemCube) -> State:
    return vault.get(cube.id).header.state


def found(vault: Vault, query: str = "tea") -> list[str]:
    return texts([hit.cube for hit in MemOperator(vault).search("maya", query, top_k=50)])


def test_strength_halves_in_a_half_life_and_each_doubling_of_uses_adds_one() -> None:
    header = Header(updated=stamp_of(0), half_life_days=2.0)
    assert strength(header, Uses(), 0, None) == strength(header, Uses(), -DAY, None) == 1
    assert strength(header, Uses(), 2 * DAY, None) == pytest.approx(1 / 2)
    assert strength(header, Uses(), 8 * DAY, None) == pytest.approx(FAINT)
    assert strength(header, Uses(3, 0.0, 0.0), 6 * DAY, None) == pytest.approx(1 / 2)
    assert strength(header, Uses(1, 0.0, 5 * DAY), 5 * DAY, None) == 1
    assert strength(Header(updated=stamp_of(0)), Uses(), 1e12, None) == 1
    assert strength(Header(updated=stamp_of(0)), Uses(), 3 * DAY, 1.0) == pytest.approx(1 / 8)
    low, high = (Header(updated=stamp_of(0), priority=name) for name in ("low", "high"))
    assert strength(low, Uses(), DAY, 1.0) == pytest.approx(1 / 4)
    assert strength(high, Uses(), DAY, 1.0) == pytest.approx(2**-0.5)
    fleeting = Header(updated=stamp_of(0), half_life_days=5e-324, priority="low")
    assert strength(fleeting, Uses(), DAY, None) < FAINT


def test_what_is_due_expires_with_its_kv_and_leaves_the_search(vault: Vault) -> None:
    now = time.time()
    due, later = (
        MemCube.plaintext(f"tea {word}", owner="maya", expires=stamp_of(now + days * DAY))
        for word, days in (("soon", 1), ("later", 3))
    )
    vault.add([due, later], actor="maya")
    vault.put_kv(kv_for(vault, vault.get(due.id), "k"))
    assert list(Lifecycle(vault).expire(now)) == []
    (step,) = Lifecycle(vault).expire(now + 2 * DAY)
    assert (step.expired, step.kv_keys) == (1, ["k"])
    assert state(vault, due) == "expired" and state(vault, later) == "generated"
    assert vault.get_kv("k") is None and not (vault.path / "kv" / "k.safetensors").exists()
    assert found(vault) == ["tea later"] and vault.get(due.id).text == "tea soon"
    assert list(Lifecycle(vault).expire(now + 2 * DAY)) == []


def test_a_long_question_among_many_archived_memories_takes_little_memory(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 16)
    query = " ".join(f"w{n}" for n in range(1200))
    cubes = add(vault, *(f"tea {query}" for _ in range(99)), "an oolong")
    vault.transition_all([cube.id for cube in cubes], "archived", actor="maya")
    tracemalloc.start()
    found = recall(vault, "maya", f"{query} oolong")
    assert next(found).cube.text == "an oolong"
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert sum(1 for _ in found) == 99


def test_unused_memories_are_archived_found_again_and_brought_back(vault: Vault) -> None:
    unused, used, pinned, frozen = add(vault, "green tea", "black tea", "white tea", "iced tea")
    vault.prioritise(pinned.id, "pinned")
    vault.transition(frozen.id, "frozen", actor="maya")
    now = time.time() + 5 * DAY
    vault.add_uses({used.id: 1}, now - DAY)
    lifecycle = Lifecycle(vault, half_life_days=1.0)
    assert sum(step.archived for step in swept(lifecycle, now)) == 1
    assert [state(vault, cube) for cube in (unused, used, pinned, frozen)] == [
        *("archived", "generated", "generated", "frozen"),
    ]
    assert sorted(found(vault)) == ["black tea", "white tea"]
    assert texts([hit.cube for hit in recall(vault, "maya", "Which green tea?")]) == ["green tea"]
    assert [*recall(vault, "maya", "?"), *recall(vault, "maya", "Which coffee?")] == []
    assert [*recall(vault, "noor", "green tea")] == []
    vault.add_uses({unused.id: 1}, now)
    assert lifecycle.activate([unused.id]) == 1
    assert sum(step.archived for step in swept(lifecycle, now)) == 0
    assert "green tea" in found(vault)


def test_a_use_activates_and_thaws_nothing(vault: Vault) -> None:
    fresh, frozen, merged, gone = add(vault, "a", "b", "c", "d")
    vault.transition(frozen.id, "frozen", actor="maya")
    vault.transition(merged.id, "merged", actor="maya")
    vault.delete(gone.id, actor="maya")
    lifecycle = Lifecycle(vault)
    assert lifecycle.activate([cube.id for cube in (fresh, frozen, merged, gone)]) == 1
    assert [state(vault, cube) for cube in (fresh, frozen, merged)] == ["activated", "frozen", "merged"]
    assert lifecycle.activate([fresh.id]) == 0


def test_steps_are_small_and_every_cube_is_looked_at(vault: Vault) -> None:
    count = 2 * PAGE + 5
    add(vault, *(f"tea {n}" for n in range(count)))
    steps = swept(Lifecycle(vault, half_life_days=1.0), time.time() + 9 * DAY)
    assert sum(step.seen for step in steps) == sum(step.archived for step in steps) == count
    assert max(step.archived for step in steps) == CHANGES and max(step.seen for step in steps) == PAGE
    assert found(vault) == []


def test_what_is_used_or_pinned_while_a_sweep_rests_is_not_archived(vault: Vault) -> None:
    used, pinned, deleted, idle = (add(vault, *(f"{name} {n}" for n in range(CHANGES))) for name in "abcd")
    now = time.time() + 9 * DAY
    steps = Lifecycle(vault, half_life_days=1.0).fade(now)
    next(steps)  # has looked at them all
    vault.add_uses({cube.id: 1 for cube in used}, now)
    for cube in pinned:
        vault.prioritise(cube.id, "pinned")
    for cube in deleted:
        vault.delete(cube.id, actor="maya")
    assert sum(step.archived for step in steps) == len(idle)
    assert {state(vault, cube) for cube in idle} == {"archived"}


def test_an_owner_at_their_quota_keeps_nobody_from_expiring(vault: Vault) -> None:
    now = time.time()

    def due_soon(text: str, owner: str) -> MemCube:
        return MemCube.plaintext(text, owner=owner, expires=stamp_of(now + DAY))

    vault.add([due_soon(f"tea {n}", "eve") for n in range(CHANGES)], actor="eve")
    (other,) = vault.add([due_soon("milk", "bo")], actor="bo")

    def guard(owner: str, _before: Usage, _after: Usage) -> None:
        if owner == "eve":
            raise QuotaExceeded("full", owner)

    vault.quota_guard = guard
    assert sum(step.expired for step in Lifecycle(vault).expire(now + 2 * DAY)) == CHANGES + 1
    assert state(vault, other) == "expired"
    (idle,) = add(vault, "coffee", owner="bo")
    assert sum(step.archived for step in Lifecycle(vault, half_life_days=1.0).fade(now + 9 * DAY)) == 1
    vault.quota_guard = lambda *_: guard("eve", Usage(), Usage())
    assert Lifecycle(vault).activate([idle.id]) == 1
    vault.edit(idle.id, actor="bo", sensitivity=["health"], expires="2999-01-01")
    vault.prioritise(idle.id, "pinned")
    with pytest.raises(QuotaExceeded):
        vault.edit(idle.id, actor="bo", tags=["long"])


def test_cubes_that_cannot_expire_keep_nobody_else_waiting(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = time.time()
    cubes = [MemCube.plaintext(f"tea {n}", owner="maya", expires=stamp_of(now + n)) for n in range(1, 2 * CHANGES)]
    vault.add(cubes, actor="maya")
    refused = {cube.id for cube in cubes[:CHANGES]}
    transit = changes.transit

    def failing(txn: Txn, cube: MemCube, state: State, actor: str) -> MemCube:
        if cube.id in refused:
            raise VaultUnavailable("damaged")
        return transit(txn, cube, state, actor)

    monkeypatch.setattr(changes, "transit", failing)
    assert sum(step.expired for step in Lifecycle(vault).expire(now + DAY)) == CHANGES - 1
    assert caplog.text.count("damaged") == CHANGES


def test_what_its_owner_prolongs_at_the_last_moment_does_not_expire(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    (cube,) = vault.add([MemCube.plaintext("tea", owner="maya", expires=stamp_of(now + 1))], actor="maya")
    change = vault.transition_all

    def late(*args: Any, **options: Any) -> list[MemCube]:
        vault.edit(cube.id, actor="maya", expires="")
        return change(*args, **options)

    monkeypatch.setattr(vault, "transition_all", late)
    assert sum(step.expired for step in Lifecycle(vault).expire(now + DAY)) == 0
    assert state(vault, cube) == "generated"


def test_what_the_lifecycle_did_is_in_the_audit_log(vault: Vault) -> None:
    (cube,) = add(vault, "tea")
    swept(Lifecycle(vault, half_life_days=1.0), time.time() + 9 * DAY)
    (entry,) = [entry for entry in vault.log() if entry.action == "transition"]
    assert (entry.actor, entry.target) == (ACTOR, cube.id)
    assert (entry.detail["from"], entry.detail["to"]) == ("generated", "archived")


class Walk(RuleBasedStateMachine):
    """Owners, uses, time and the sweep, against a model of the states. Times are days after the start, and a half."""

    cubes = Bundle("cubes")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.vault = Vault.open(self.folder / "memory")
        self.lifecycle = Lifecycle(self.vault, half_life_days=3.0)
        self.operator = MemOperator(self.vault)
        self.days = 0.5
        self.begun = time.time()
        self.states: dict[str, State] = {}
        self.expires: dict[str, float] = {}
        self.fading: dict[str, float] = {}
        self.uses: dict[str, tuple[int, float]] = {}

    def teardown(self) -> None:
        assert self.vault.check() == []
        self.vault.close()
        shutil.rmtree(self.folder)

    @property
    def now(self) -> float:
        return self.begun + self.days * DAY

    @rule(
        target=cubes,
        expires=st.none() | st.integers(1, 60),
        half_life=st.none() | st.integers(1, 5),
        pinned=st.booleans(),
    )
    def add(self, expires: int | None, half_life: int | None, pinned: bool) -> str:
        stamp = "" if expires is None else stamp_of(self.now + expires * DAY)
        cube = MemCube.plaintext("tea", owner="maya", expires=stamp, priority="pinned" if pinned else "mid")
        (cube,) = self.vault.add([cube], actor="maya")
        if half_life is not None:
            self.vault.edit(cube.id, actor="maya", half_life_days=half_life)
        self.states[cube.id] = "generated"
        self.expires[cube.id] = math.inf if expires is None else self.days + expires
        self.fading[cube.id] = math.inf if pinned else half_life or 3.0
        self.uses[cube.id] = (0, 0.0)
        return cube.id

    @rule(cube_id=cubes, count=st.integers(1, 4))
    def use(self, cube_id: str, count: int) -> None:
        self.vault.add_uses({cube_id: count}, self.now)
        self.lifecycle.activate([cube_id])
        self.uses[cube_id] = (self.uses[cube_id][0] + count, self.days)
        if self.states[cube_id] in ("generated", "archived"):
            self.states[cube_id] = "activated"

    @rule(cube_id=cubes, wanted=st.sampled_from([*ALLOWED]))
    def transit(self, cube_id: str, wanted: State) -> None:
        held = self.states[cube_id]
        if wanted in ALLOWED[held]:
            assert self.vault.transition(cube_id, wanted, actor="maya").header.state == wanted
            self.states[cube_id] = wanted
        else:
            with pytest.raises(Conflict, match=f"{held}.*{wanted}"):
                self.vault.transition(cube_id, wanted, actor="maya")

    @rule(cube_id=consumes(cubes))
    def delete(self, cube_id: str) -> None:
        self.vault.delete(cube_id, actor="maya")
        del self.states[cube_id]

    @rule(days=st.integers(1, 15))
    def wait_and_sweep(self, days: int) -> None:
        self.days += days
        swept(self.lifecycle, self.now)
        for cube_id, held in self.states.items():
            if held != "expired" and self.days >= self.expires[cube_id]:
                self.states[cube_id] = "expired"
            elif held in ("generated", "activated", "merged") and self._faint(cube_id):
                self.states[cube_id] = "archived"

    def _faint(self, cube_id: str) -> bool:
        """Idle for more than four half-lives, each as many times as long as the uses have doubled."""
        count, last = self.uses[cube_id]
        return self.days - last > 4 * self.fading[cube_id] * (1 + math.log2(1 + count))

    @invariant()
    def the_vault_agrees(self) -> None:
        held = {cube.id: cube.header.state for cube in self.vault.list("maya")}
        assert held == self.states

    @invariant()
    def only_what_is_hot_is_found(self) -> None:
        hits = {hit.cube.id for hit in self.operator.search("maya", "tea", top_k=50)}
        assert hits == {cube_id for cube_id, held in self.states.items() if held in HOT}


Walk.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
test_the_lifecycle_walks_as_its_model = Walk.TestCase
