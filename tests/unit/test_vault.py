"""Cubes, versions, events and the KV manifest of one vault."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from memos_vllm.cube import MemCube, new_id
from memos_vllm.errors import BadInput, Conflict, MemosError, NotFound, TooLarge
from memos_vllm.vault import Vault
from tests.unit.vault_cases import add, kv_for, texts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory"


@pytest.fixture
def vault(path: Path) -> Iterator[Vault]:
    with Vault.open(path) as vault:
        yield vault
        assert vault.check() == []


def test_added_cubes_come_back_after_a_restart(path: Path) -> None:
    with Vault.open(path) as vault:
        cubes = add(vault, "a", "b")
    with Vault.open(path, readonly=True) as vault:
        assert [vault.get(cube.id) for cube in cubes] == cubes
        assert vault.list("maya") == cubes
    assert cubes[0].header.author == "maya" and cubes[0].version == 1


def test_an_add_is_all_or_nothing(vault: Vault) -> None:
    first = add(vault, "a")[0]
    with pytest.raises(Conflict):
        vault.add([MemCube.plaintext("b", owner="maya"), first], actor="maya")
    with pytest.raises(BadInput, match="owner"):
        vault.add([MemCube.plaintext("b", owner="maya"), MemCube.plaintext("c", owner="")], actor="maya")
    assert vault.list("maya") == [first]
    assert vault.add([], actor="maya") == []


def test_an_id_is_never_used_again(vault: Vault) -> None:
    cube = add(vault, "a")[0]
    vault.delete(cube.id, actor="maya")
    with pytest.raises(Conflict):
        vault.add([cube], actor="maya")


def test_updates_make_versions(vault: Vault) -> None:
    cube = vault.add([MemCube.plaintext("tea", owner="maya", metadata={"a": 1, "b": 2})], actor="maya")[0]
    vault.update(cube.id, "milk", actor="bo", operation="append", metadata={"b": 3})
    vault.update(cube.id, "TEA\nsugar", actor="maya", operation="merge")
    last = vault.update(cube.id, "water", actor="maya")
    assert last.version == 4 and last.header.operation == "overwrite"
    assert last.header.metadata == {"a": 1, "b": 3}
    assert last.header.created == cube.header.created and last.header.updated > cube.header.updated
    held = [vault.get(cube.id, version=n) for n in (1, 2, 3, 4)]
    assert texts(held) == ["tea", "tea\nmilk", "tea\nmilk\nsugar", "water"]
    assert held[1].header.author == "bo" and vault.get(cube.id) == held[3] == last
    assert vault.list("maya") == [last]


def test_updates_that_are_refused(vault: Vault) -> None:
    cube = add(vault, "a")[0]
    header = msgspec.structs.replace(cube.header, id=new_id(), state="frozen")
    frozen = vault.add([MemCube(header, cube.payload)], actor="maya")[0]
    with pytest.raises(Conflict, match="frozen"):
        vault.update(frozen.id, "b", actor="maya")
    with pytest.raises(BadInput):
        vault.update(cube.id, "  ", actor="maya")
    with pytest.raises(BadInput):
        vault.update(cube.id, "b", actor="maya", operation="replace")  # type: ignore[arg-type]
    with pytest.raises(TooLarge):
        vault.update(cube.id, "b" * (1 << 20), actor="maya", operation="append")
    assert vault.get(cube.id) == cube


@pytest.mark.parametrize("cube_id", ["", "x", "0" * 32, "../../etc/passwd", "Ä" * 32, "\ud800"])
def test_unknown_ids(vault: Vault, cube_id: str) -> None:
    for call in (vault.get, vault.history):
        with pytest.raises(NotFound):
            call(cube_id)
    with pytest.raises(NotFound):
        vault.update(cube_id, "x", actor="maya")
    with pytest.raises(NotFound):
        vault.delete(cube_id, actor="maya")


def test_versions_that_do_not_exist(vault: Vault) -> None:
    cube = add(vault, "a")[0]
    for version in (-1, 0, 2, 2**40):
        with pytest.raises(NotFound, match="versions 1 to 1"):
            vault.get(cube.id, version=version)


def test_lists_are_paged_in_id_order(vault: Vault) -> None:
    cubes = add(vault, *(f"n{n}" for n in range(7)))
    add(vault, "other", owner="bo")
    assert vault.list("maya") == sorted(cubes, key=lambda cube: cube.id)
    pages = []
    after = ""
    while page := vault.list("maya", limit=3, after=after):
        pages.append(len(page))
        after = page[-1].id
    assert pages == [3, 3, 1]
    with pytest.raises(BadInput):
        vault.list("maya", after="zz")


def test_readable_is_owned_and_granted(vault: Vault) -> None:
    add(vault, "private")
    add(vault, "shared", access=("bo", "cy"))
    add(vault, "bo's", owner="bo")
    assert set(texts(vault.readable("bo"))) == {"shared", "bo's"}
    assert set(texts(vault.readable("maya"))) == {"private", "shared"}
    assert texts(vault.readable("cy")) == ["shared"] and vault.list("cy") == []


def test_owners_whose_names_share_a_prefix_are_apart(vault: Vault) -> None:
    names = ["a", "aa", "a" * 128, "é" * 128, "🦊" * 128]
    for name in names:
        add(vault, name, owner=name)
    assert [texts(vault.list(name)) for name in names] == [[name] for name in names]


def test_the_revision_grows_for_everyone_concerned(vault: Vault) -> None:
    def revisions() -> tuple[int, ...]:
        return tuple(vault.revision(name) for name in ("maya", "bo", "cy"))

    assert revisions() == (0, 0, 0)
    cube = add(vault, "a", access=("bo",))[0]
    assert revisions() == (1, 1, 0)
    vault.update(cube.id, "b", actor="maya")
    assert revisions() == (2, 2, 0)
    vault.delete(cube.id, actor="maya")
    assert revisions() == (3, 3, 0)


def test_history_tells_who_changed_what(vault: Vault) -> None:
    cube = add(vault, "a")[0]
    vault.update(cube.id, "b", actor="bo")
    steps = [(e.version, e.operation, e.actor, e.old_text, e.new_text) for e in vault.history(cube.id)]
    assert steps == [(1, "add", "maya", None, "a"), (2, "update", "bo", "a", "b")]


def test_deleting_leaves_no_text(path: Path) -> None:
    secret = "the-door-code-is-4711"
    with Vault.open(path) as vault:
        cube = add(vault, secret)[0]
        vault.update(cube.id, f"{secret}-and-more", actor="maya")
        vault.delete(cube.id, actor="bo")
        events = vault.history(cube.id)
        assert [(e.operation, e.actor, e.old_text, e.new_text) for e in events] == [
            ("add", "maya", None, None),
            ("update", "maya", None, None),
            ("delete", "bo", None, None),
        ]
        assert vault.stats()["cubes"] == vault.stats()["versions"] == 0
        assert vault.list("maya") == vault.readable("maya") == []
        for version in (None, 1, 2):
            with pytest.raises(NotFound):
                vault.get(cube.id, version=version)
        assert vault.check() == []


def test_delete_owner_takes_all_of_one_owner(vault: Vault) -> None:
    gone = add(vault, "a", "b", access=("bo",))
    kept = add(vault, "c", owner="bo")
    vault.put_kv(kv_for(vault, gone[0], "k1"))
    assert vault.delete_owner("maya", actor="admin") == (2, ["k1"])
    assert vault.readable("bo") == kept
    assert vault.delete_owner("maya", actor="admin") == (0, [])


def test_manifest_rows_follow_their_cube(vault: Vault) -> None:
    cube, other = add(vault, "a", "b")
    record = kv_for(vault, cube, "k1")
    vault.put_kv(record)
    vault.put_kv(kv_for(vault, other, "k2"))
    assert vault.get_kv("k1") == record and vault.kv_of(cube.id) == [record]
    assert {row.key for row in vault.iter_kv()} == {"k1", "k2"}
    assert vault.stats()["kv"] == 2 and vault.stats()["kv_bytes"] == 20
    assert vault.delete(cube.id, actor="maya") == ["k1"]
    assert vault.get_kv("k1") is None and not (vault.path / record.path).exists()
    assert (vault.path / "kv/k2.safetensors").exists()
    dropped = vault.drop_kv("k2")
    assert dropped is not None and dropped.key == "k2" and vault.drop_kv("k2") is None
    assert list((vault.path / "kv").iterdir()) == []


def test_two_cubes_with_the_same_kv(vault: Vault) -> None:
    first, second = add(vault, "same", "same")
    vault.put_kv(kv_for(vault, first, "k"))
    record = kv_for(vault, second, "k")
    vault.put_kv(record)
    assert vault.kv_of(first.id) == [] and vault.kv_of(second.id) == [record]
    assert vault.delete(first.id, actor="maya") == []
    assert vault.get_kv("k") == record
    assert vault.delete(second.id, actor="maya") == ["k"]


def test_a_manifest_row_needs_a_current_cube_and_a_file(vault: Vault) -> None:
    cube = add(vault, "a")[0]
    record = kv_for(vault, cube, "k")
    refused: list[tuple[type[MemosError], dict[str, Any]]] = [
        (NotFound, {"cube_id": new_id()}),
        (NotFound, {"cube_version": 2}),
        (Conflict, {"owner": "bo"}),
        (Conflict, {"path": "kv/none"}),
        (BadInput, {"path": "kv/../memos.json"}),
        (BadInput, {"path": "/etc/passwd"}),
        (BadInput, {"path": "kv"}),
    ]
    for error, change in refused:
        with pytest.raises(error):
            vault.put_kv(msgspec.structs.replace(record, **change))
    assert vault.iter_kv() == []
    (vault.path / record.path).unlink()


def test_every_rank_has_a_file(vault: Vault) -> None:
    cube = add(vault, "a")[0]
    record = msgspec.structs.replace(kv_for(vault, cube, "k"), path="kv/k.0of2", bytes=7)
    (vault.path / "kv/k.safetensors").rename(vault.path / "kv/k.0of2")
    (vault.path / "kv/k.0of2").write_bytes(b"1234")
    (vault.path / "kv/k.1of2").write_bytes(b"567")
    (vault.path / "kv/k2.0of2").touch()
    vault.put_kv(record)
    assert vault.check() == []
    vault.delete(cube.id, actor="maya")
    assert [file.name for file in (vault.path / "kv").iterdir()] == ["k2.0of2"]


def test_kv_of_no_memory(vault: Vault) -> None:
    record = msgspec.structs.replace(kv_for(vault, add(vault, "a")[0], "k"), cube_id="", cube_version=0, owner="")
    vault.put_kv(record)
    assert vault.get_kv("k") == record and vault.check() == []
    vault.delete_owner("maya", actor="maya")
    assert vault.iter_kv() == [record]
    assert vault.drop_kv("k") == record and list((vault.path / "kv").iterdir()) == []


def test_files_of_deleted_cubes_go_at_the_next_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Vault.open(path) as vault:
        cube = add(vault, "a")[0]
        file = path / kv_for(vault, cube, "k").path
        vault.put_kv(kv_for(vault, cube, "k"))
        # A crash between the commit and the removal of the file.
        monkeypatch.setattr(Vault, "_bury", lambda self: None)
        vault.delete(cube.id, actor="maya")
        assert file.exists() and "still there" in vault.check()[0]
    monkeypatch.undo()
    with Vault.open(path) as vault:
        assert not file.exists() and vault.check() == []
