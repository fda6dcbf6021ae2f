"""Which state may follow which, and what a state does to search, content and K/V."""

from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import get_args

import pytest

from memos_vllm.cube import MemCube, State, now
from memos_vllm.errors import BadInput, Conflict, NotFound
from memos_vllm.vault import Uses, Vault
from memos_vllm.vault.states import ALLOWED, HOT, check_transition
from tests.unit.vault_cases import add, kv_for, texts

STATES: tuple[State, ...] = get_args(State)
ASLEEP: frozenset[State] = frozenset({"archived"})


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault
        assert vault.check() == []


def test_the_lifecycle() -> None:
    assert ALLOWED.keys() == set(STATES)
    chain: tuple[State, ...] = ("generated", "activated", "merged", "archived", "expired")
    for old, new in pairwise(chain):
        check_transition(old, new)
    for state in chain[:-1]:
        check_transition(state, "frozen")
    for state in ("archived", "frozen"):
        check_transition(state, "activated")
    assert {"generated", "activated"} == HOT


def test_every_pair_of_states(vault: Vault) -> None:
    pairs = [*product(STATES, STATES)]
    told = [{"meta": {"state": old}, "payload": {"type": "plaintext", "content": "tea"}} for old, _ in pairs]
    cubes = vault.add([MemCube.from_json(data, owner="maya") for data in told], actor="maya")
    for cube, (old, new) in zip(cubes, pairs, strict=True):
        if new in ALLOWED[old]:
            assert vault.transition(cube.id, new, actor="admin").header.state == new
            assert vault.get(cube.id).version == 1
        else:
            with pytest.raises(Conflict, match=rf"{old}.*{new}"):
                vault.transition(cube.id, new, actor="admin")
            assert vault.get(cube.id) == cube


def test_transition_of_an_unknown_cube(vault: Vault) -> None:
    with pytest.raises(NotFound):
        vault.transition("0" * 32, "archived", actor="maya")


def test_many_at_once(vault: Vault) -> None:
    tea, milk, rain, gone = add(vault, "tea", "milk", "rain", "gone")
    vault.transition(milk.id, "frozen", actor="maya")
    vault.transition(rain.id, "expired", actor="maya")
    vault.delete(gone.id, actor="maya")
    ids = [gone.id, rain.id, milk.id, tea.id, tea.id]

    def is_hot(cube: MemCube, uses: Uses) -> bool:
        return cube.header.state in HOT and uses == Uses()

    assert texts(vault.transition_all(ids, "activated", actor="x", only_if=is_hot)) == ["tea"]
    assert texts(vault.transition_all(ids, "archived", actor="x")) == ["milk", "tea"]
    assert vault.transition_all([], "archived", actor="x") == []
    assert texts(vault.list("maya", states=ASLEEP)) == ["tea", "milk"]
    with pytest.raises(BadInput):
        vault.transition_all(["zz"], "archived", actor="x")


def test_only_hot_cubes_are_in_the_index(vault: Vault) -> None:
    (cube,) = add(vault, "tea")
    assert vault.reindex() == 1
    vault.transition(cube.id, "archived", actor="maya")
    assert vault.check() == [] and vault.reindex() == 0
    vault.transition(cube.id, "activated", actor="maya")
    assert vault.check() == [] and vault.reindex() == 1


def test_what_is_frozen_keeps_its_content_and_can_be_thawed(vault: Vault) -> None:
    (cube,) = add(vault, "tea")
    vault.update(cube.id, "milk", actor="maya")
    vault.transition(cube.id, "frozen", actor="maya")
    with pytest.raises(Conflict, match=r"frozen.*activate"):
        vault.update(cube.id, "rain", actor="maya")
    with pytest.raises(Conflict, match=r"frozen.*activate"):
        vault.rollback(cube.id, 1, actor="maya")
    assert texts(vault.versions(cube.id)) == ["tea", "milk"]
    assert vault.edit(cube.id, actor="maya", tags=["kept"]).header.tags == ("kept",)
    vault.transition(cube.id, "activated", actor="maya")
    assert vault.rollback(cube.id, 1, actor="maya").text == "tea"


def test_a_pinned_cube_that_sleeps_holds_no_pin(vault: Vault) -> None:
    (cube,) = add(vault, "tea")
    vault.prioritise(cube.id, "pinned")
    vault.put_kv(kv_for(vault, cube, "k"))
    assert vault.pinned_keys() == {"k"}
    vault.transition(cube.id, "archived", actor="maya")
    assert vault.pinned_keys() == set()
    vault.transition(cube.id, "activated", actor="maya")
    assert vault.pinned_keys() == {"k"}


def test_cubes_fall_due_in_order(vault: Vault) -> None:
    dates = ["2025-03-01", "2025-01-01T10:00:00Z", "", "2999-01-01", "2025-01-01"]
    cubes = vault.add([MemCube.plaintext(date or "none", owner="maya", expires=date) for date in dates], actor="maya")
    due = ["2025-01-01", "2025-01-01T10:00:00Z", "2025-03-01"]
    assert texts(vault.due(now(), limit=9)) == due
    first = vault.due(now(), limit=1)
    assert texts(first) == due[:1] and texts(vault.due(now(), limit=9, after=first[0])) == due[1:]
    vault.edit(cubes[4].id, actor="maya", expires="")
    vault.transition(cubes[1].id, "expired", actor="maya")
    vault.edit(cubes[3].id, actor="maya", expires="2025-02-01")
    assert texts(vault.due(now(), limit=9)) == ["2999-01-01", "2025-03-01"]
    vault.delete_owner("maya", actor="maya")
    assert vault.due(now(), limit=9) == []


def test_a_walk_meets_every_cube_once(vault: Vault) -> None:
    cubes = [*add(vault, "a", "b", "c"), *add(vault, "d", "e", owner="bo")]
    met: list[MemCube] = []
    while page := vault.walk(after=met[-1].id if met else "", limit=2):
        met += page
    assert met == sorted(cubes, key=lambda cube: cube.id)
