"""The books follow from the cubes: they can be made anew, and a difference is found."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memos_vllm.cube import MemCube
from memos_vllm.vault import Usage, Vault, books, keys
from memos_vllm.vault.env import Txn
from tests.unit.vault_cases import add

BOOKS = ("statistics", "mentions", "expiries")


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """Versions, grants, a snapshot, a deleted cube and one that will expire."""
    with Vault.open(tmp_path / "memory") as vault:
        first, gone = add(vault, "tea", "gone", access=("bo",))
        vault.update(first.id, "green tea", actor="cy")
        vault.edit(first.id, actor="maya", access=[])
        vault.snapshot("maya", "s", actor="maya")
        vault.delete(gone.id, actor="admin")
        vault.add([MemCube.plaintext("soon", owner="bo", expires="2999-01-01")], actor="bo")
        assert vault.check() == []
        yield vault


def rows(vault: Vault) -> dict[str, dict[bytes, bytes]]:
    return vault.read(lambda txn: {name: dict(txn.scan(name)) for name in BOOKS})


def write(vault: Vault, work: Callable[[Txn], object]) -> None:
    vault._env.write(work)


def test_books_can_be_made_anew(vault: Vault) -> None:
    kept = rows(vault)
    assert all(kept.values())
    write(vault, lambda txn: [txn.delete(name, key) for name in BOOKS for key in kept[name]])
    assert len(vault.check()) > 3
    write(vault, books.rebuild)
    made = rows(vault)
    assert (made["statistics"], made["expiries"]) == (kept["statistics"], kept["expiries"])
    # An owner who did not act on a cube that is gone is named in none of its rows.
    assert made["mentions"].keys() <= kept["mentions"].keys()
    assert vault.check() == [] and vault.forget("maya", actor="admin").cubes == 1
    for name in ("maya", "cy"):
        vault.forget(name, actor="admin")
        assert vault.traces_of(name) == {} == vault.traces_anywhere(name)


def test_what_is_shared_counts_for_each_who_finds_it(vault: Vault) -> None:
    """Each of them has index rows of it."""
    (cube,) = add(vault, "x" * 1000, owner="eve")
    alone = vault.usage("eve").bytes
    vault.edit(cube.id, actor="eve", access=[f"user {n}" for n in range(9)])
    shared = vault.usage("eve").bytes
    assert shared > 10 * alone and vault.check() == []
    vault.edit(cube.id, actor="eve", access=["bo"])
    vault.update(cube.id, "y" * 1000, actor="eve")
    assert 3 * alone < vault.usage("eve").bytes < 4 * alone and vault.check() == []
    vault.delete(cube.id, actor="eve")
    assert vault.usage("eve") == Usage() and vault.check() == []


@pytest.mark.parametrize("database", BOOKS)
def test_a_missing_row_is_found(vault: Vault, database: str) -> None:
    (cube,) = vault.list("bo")
    key = {
        "statistics": keys.digest("bo"),
        "mentions": keys.of_principal("cy", vault.list("maya")[0].id),
        "expiries": b"2999-01-01" + keys.cube_key(cube.id),
    }[database]
    write(vault, lambda txn: txn.delete(database, key))
    (problem,) = vault.check()
    assert problem.startswith(f"{database} {key.hex()}: ")


def test_copies_that_a_snapshot_does_not_count_are_found(vault: Vault) -> None:
    (key,) = vault.read(lambda txn: [key for key, _ in txn.scan("snapshots")])
    write(vault, lambda txn: txn.delete("snapshots", key))
    assert vault.check() == [f"snapshot_cubes {row.hex()}: copy without a snapshot" for row in copies(vault)]
    (copy, *_) = copies(vault)
    write(vault, lambda txn: txn.delete("snapshot_cubes", copy))
    assert any(problem.startswith("statistics") for problem in vault.check())


def copies(vault: Vault) -> list[bytes]:
    return vault.read(lambda txn: [key for key, _ in txn.scan("snapshot_cubes")])
