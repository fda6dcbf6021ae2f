"""Snapshots of an owner's cubes, their restore, and what the cubes were at a time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from memos_vllm.cube import MemCube, now
from memos_vllm.errors import BadInput, Conflict, NotFound
from memos_vllm.vault import Usage, Vault, keys
from memos_vllm.vault.pipeline import DeleteStep, PurifyStep
from memos_vllm.vault.states import HOT
from tests.unit.vault_cases import add, kv_for, texts


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault
        assert vault.check() == []


def test_a_restore_brings_back_what_was_changed_and_deleted(vault: Vault) -> None:
    kept, changed, gone = add(vault, "kept", "before", "gone", access=("bo",))
    other = add(vault, "other", owner="bo")
    kept_kv = kv_for(vault, kept, "k")
    vault.put_kv(kept_kv)
    snapshot = vault.snapshot("maya", "monday", actor="maya")
    assert (snapshot.cubes, snapshot.namespace) == (3, None) and snapshot.bytes > 0
    vault.update(changed.id, "after", actor="bo")
    vault.update(gone.id, "still there", actor="maya")
    vault.delete(gone.id, actor="maya")
    (new,) = add(vault, "new")
    vault.put_kv(kv_for(vault, vault.get(changed.id), "of another text"))
    restored = vault.restore_snapshot("maya", "monday", actor="admin")
    assert restored.kv_keys == ["of another text"] and vault.get_kv("of another text") is None
    assert texts(restored.changed) == ["before"] and restored.unchanged == 1
    assert texts(restored.revived) == ["gone"] and texts(restored.archived) == ["new"]
    assert texts(vault.list("maya", states=HOT)) == ["kept", "before", "gone"]
    assert vault.get(changed.id).version == 3 and vault.get(changed.id).header.operation == "restore"
    assert vault.get(new.id).header.state == "archived"
    assert vault.kv_of(kept.id) == [kept_kv] and vault.list("bo") == other


def test_a_revived_cube_keeps_its_id_and_is_private(vault: Vault) -> None:
    (cube,) = add(vault, "tea", access=("bo",))
    vault.update(cube.id, "milk", actor="maya")
    vault.snapshot("maya", "s", actor="maya")
    vault.delete(cube.id, actor="maya")
    (revived,) = vault.restore_snapshot("maya", "s", actor="maya").revived
    assert (revived.id, revived.version, revived.text) == (cube.id, 4, "milk")
    assert revived.readers() == ("maya",) and vault.readable("bo") == []
    assert [(event.operation, event.how) for event in vault.history(cube.id)] == [
        ("add", "add"),
        ("update", "overwrite"),
        ("delete", None),
        ("add", "restore"),
    ]
    assert [item.version for item in vault.provenance(cube.id)] == [4, 2, 1]
    assert vault.update(cube.id, "rain", actor="maya").version == 5
    assert texts(vault.versions(cube.id)) == ["milk", "rain"]
    with pytest.raises(NotFound, match="versions 4 to 5"):
        vault.get(cube.id, version=2)
    vault.delete(cube.id, actor="maya")
    assert vault.restore_snapshot("maya", "s", actor="maya").revived[0].version == 7


def test_a_restore_is_idempotent(vault: Vault) -> None:
    cube, gone = add(vault, "a", "b")
    vault.snapshot("maya", "s", actor="maya")
    vault.update(cube.id, "c", actor="maya")
    vault.delete(gone.id, actor="maya")
    vault.restore_snapshot("maya", "s", actor="maya")
    held = vault.list("maya")
    again = vault.restore_snapshot("maya", "s", actor="maya")
    assert again.unchanged == 2 and not (again.changed or again.revived or again.archived)
    assert vault.list("maya") == held


def test_a_right_that_was_taken_away_stays_away(vault: Vault) -> None:
    (cube,) = add(vault, "a", access=("bo",))
    vault.snapshot("maya", "s", actor="maya")
    vault.edit(cube.id, actor="maya", access=["cy"], tags=["new"], sensitivity=["health"])
    (restored,) = vault.restore_snapshot("maya", "s", actor="maya").changed
    assert restored.readers() == ("maya", "cy") and restored.header.sensitivity == ("health",)
    assert restored.header.tags == ()


def test_what_was_purified_does_not_come_back(vault: Vault) -> None:
    first, second, other = add(vault, "my pin is 4711", "my key is under the mat", "tea")
    for name in ("s", "t"):
        vault.snapshot("maya", name, actor="maya")
    vault.pipeline([PurifyStep(first.id, "my pin is secret")], actor="maya")
    vault.update(second.id, "my key is safe", actor="maya", operation="purify")
    vault.transition(second.id, "archived", actor="maya")
    vault.delete(first.id, actor="maya")
    vault.update(other.id, "milk", actor="maya")
    restored = vault.restore_snapshot("maya", "s", actor="maya")
    assert texts(restored.revived) == ["my pin is secret"]
    assert texts(vault.list("maya")) == ["my pin is secret", "my key is safe", "tea"]
    assert vault.get(second.id).header.state == "generated"
    rows = vault.read(lambda txn: [value for name in keys.DATABASES for _, value in txn.scan(name)])
    assert not any(b"4711" in value or b"under" in value for value in rows)


def test_deletes_that_reach_into_snapshots(vault: Vault) -> None:
    first, second, third, _ = add(vault, "a", "b", "c", "d")
    for name in ("s", "t"):
        vault.snapshot("maya", name, actor="maya")
    assert vault.copies_of([first, second]) == 4
    vault.delete(first.id, actor="maya", snapshots=True)
    vault.pipeline([DeleteStep(second.id, snapshots=True), DeleteStep(third.id)], actor="maya")
    assert [vault.copies_of([cube]) for cube in (first, second, third)] == [0, 0, 2]
    assert [snapshot.cubes for snapshot in vault.snapshots("maya")] == [2, 2]
    assert texts(vault.restore_snapshot("maya", "s", actor="maya").revived) == ["c"]
    vault.delete_owner("maya", actor="maya", snapshots=True)
    assert [snapshot.cubes for snapshot in vault.snapshots("maya")] == [0, 0] and vault.usage("maya") == Usage()


def test_states_come_back_too(vault: Vault) -> None:
    cube, frozen = add(vault, "a", "b")
    vault.transition(frozen.id, "frozen", actor="maya")
    vault.snapshot("maya", "s", actor="maya")
    vault.transition(cube.id, "archived", actor="maya")
    vault.transition(frozen.id, "archived", actor="maya")
    restored = vault.restore_snapshot("maya", "s", actor="maya")
    assert [held.header.state for held in restored.changed] == ["generated", "frozen"]
    assert [held.version for held in vault.list("maya")] == [1, 1]


def test_a_frozen_cube_that_would_have_to_change_stops_the_whole_restore(vault: Vault) -> None:
    cube, other = add(vault, "a", "b")
    vault.snapshot("maya", "s", actor="maya")
    for held in (cube, other):
        vault.update(held.id, "changed", actor="maya")
    vault.transition(other.id, "frozen", actor="maya")
    before = vault.list("maya")
    with pytest.raises(Conflict, match="frozen"):
        vault.restore_snapshot("maya", "s", actor="maya")
    assert vault.list("maya") == before


def test_what_has_expired_meanwhile_stays_so(vault: Vault) -> None:
    (cube,) = vault.add([MemCube.plaintext("a", owner="maya", expires="2025-01-01")], actor="maya")
    vault.snapshot("maya", "s", actor="maya")
    vault.transition(cube.id, "expired", actor="maya")
    assert vault.restore_snapshot("maya", "s", actor="maya").unchanged == 1
    assert vault.get(cube.id).header.state == "expired"


def test_a_snapshot_of_one_namespace_leaves_the_others_alone(vault: Vault) -> None:
    (mine,) = add(vault, "mine")
    (known,) = add(vault, "known")
    vault.edit(known.id, actor="maya", namespace="expert")
    assert vault.snapshot("maya", "s", actor="maya", namespace="expert").cubes == 1
    vault.update(mine.id, "changed", actor="maya")
    vault.update(known.id, "changed", actor="maya")
    (new,) = add(vault, "new")
    restored = vault.restore_snapshot("maya", "s", actor="maya")
    assert texts(restored.changed) == ["known"] and restored.archived == []
    assert texts(vault.list("maya")) == ["changed", "known", new.text]


def test_names_of_snapshots(vault: Vault) -> None:
    add(vault, "a")
    vault.snapshot("maya", "s", actor="maya")
    vault.snapshot("bo", "s", actor="bo")
    assert [held.name for held in vault.snapshots("maya")] == ["s"]
    with pytest.raises(Conflict, match="'s'"):
        vault.snapshot("maya", "s", actor="maya")
    for name in ("", " s", "s\n", "s" * 129):
        with pytest.raises(BadInput):
            vault.snapshot("maya", name, actor="maya")
    vault.drop_snapshot("maya", "s", actor="maya")
    assert vault.snapshots("maya") == [] and len(vault.snapshots("bo")) == 1
    for call in (vault.drop_snapshot, vault.restore_snapshot):
        with pytest.raises(NotFound):
            call("maya", "s", actor="maya")


def test_copies_count_and_go(vault: Vault) -> None:
    (cube,) = add(vault, "a" * 1000)
    single = vault.usage("maya")
    vault.snapshot("maya", "s", actor="maya")
    assert vault.usage("maya").bytes == 2 * single.bytes and vault.usage("maya").cubes == 1
    vault.delete(cube.id, actor="maya", snapshots=True)
    assert vault.snapshots("maya")[0].cubes == 0 and vault.usage("maya") == Usage()
    assert vault.restore_snapshot("maya", "s", actor="maya").revived == []


def test_as_of_shows_the_versions_of_then(vault: Vault) -> None:
    early = now()
    first, second = add(vault, "a", "b")
    added = now()
    vault.update(first.id, "a2", actor="maya")
    updated = now()
    vault.update(first.id, "a3", actor="maya")
    (third,) = add(vault, "c")
    assert texts(vault.as_of("maya", early)) == []
    assert texts(vault.as_of("maya", added)) == ["a", "b"]
    assert texts(vault.as_of("maya", updated)) == ["a2", "b"]
    assert texts(vault.as_of("maya", now())) == ["a3", "b", "c"]
    assert vault.as_of("maya", "2020-01-01") == [] == vault.as_of("bo", now())
    vault.snapshot("maya", "s", actor="maya")
    vault.delete(second.id, actor="maya")
    deleted = now()
    vault.restore_snapshot("maya", "s", actor="maya")
    assert texts(vault.as_of("maya", deleted)) == ["a3", "c"]
    assert texts(vault.as_of("maya", updated)) == ["a2"]
    assert texts(vault.as_of("maya", now())) == ["a3", "b", third.text]
    for at in ("", "yesterday"):
        with pytest.raises(BadInput):
            vault.as_of("maya", at)
