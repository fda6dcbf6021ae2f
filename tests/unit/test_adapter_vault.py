"""Adapters in the life of a vault: check, backup, restore, compaction, forgetting, snapshots, and every other door."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from memos_vllm.cube import Grant, Header, MemCube, Parameter, completed
from memos_vllm.errors import AdapterInactive, BadInput, Conflict, NotFound, QuotaExceeded, VaultUnavailable
from memos_vllm.governance.quota import Limits
from memos_vllm.parameter.folders import digest_of
from memos_vllm.parameter.registry import AdapterRegistry
from memos_vllm.vault import Vault, books
from memos_vllm.vault.backup import compact, restore
from memos_vllm.vault.env import Txn
from memos_vllm.vault.pipeline import AddStep, DeleteStep, MergeStep, PurifyStep, TransferStep
from tests.unit.adapter_cases import BO, MAYA, add, registry_of
from tests.unit.vault_cases import add as add_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory"


@pytest.fixture
def registry(path: Path) -> Iterator[AdapterRegistry]:
    with Vault.open(path) as vault:
        yield registry_of(vault)


def folders(path: Path) -> list[str]:
    return sorted(folder.name for folder in (path / "adapters").iterdir())


def test_a_cube_that_is_deleted_takes_its_adapter_along(registry: AdapterRegistry, path: Path, tmp_path: Path) -> None:
    stored = add(registry, tmp_path, activate=True, access=(Grant("bo"),))
    add(registry, tmp_path, seed=1)
    registry.vault.delete(stored.cube_id, actor="maya")
    for caller, name in ((MAYA, "poet"), (BO, "maya/poet")):
        with pytest.raises(NotFound):
            registry.resolve(caller, name)
    assert folders(path) == [] and registry.vault.check() == [] and registry.default_of(MAYA) is None
    assert add(registry, tmp_path).cube_id != stored.cube_id


def test_forgetting_a_user(registry: AdapterRegistry, path: Path, tmp_path: Path) -> None:
    add(registry, tmp_path, activate=True, access=(Grant("bo"),))
    theirs = add(registry, tmp_path, owner="bo", seed=1, activate=True, access=(Grant("maya"), Grant("anna")))
    registry.vault.snapshot("maya", "before", actor="maya")
    report = registry.vault.forget("maya", actor="ops")
    assert report.cubes == 1 and registry.vault.traces_of("maya") == {}
    assert folders(path) == [registry.folder(theirs).name] and registry.vault.check() == []
    with pytest.raises(NotFound):
        registry.resolve(MAYA, "bo/poet")
    assert registry.resolve(BO, "poet") == theirs


def test_traces_are_found(registry: AdapterRegistry, tmp_path: Path) -> None:
    add(registry, tmp_path, activate=True)
    traces, anywhere = registry.vault.traces_of("maya"), registry.vault.traces_anywhere("maya")
    assert traces["adapter_names"] == traces["adapter_default"] == anywhere["adapters"] == 1


def test_no_other_door_lets_an_adapter_in(registry: AdapterRegistry, path: Path, tmp_path: Path) -> None:
    """A cube that names files it did not bring could name somebody else's."""
    stored = add(registry, tmp_path)
    stolen = completed(MemCube(Header(owner="bo"), registry.vault.get(stored.cube_id).payload))
    with pytest.raises(BadInput, match="added with its files"):
        registry.vault.add([stolen], actor="bo")
    with pytest.raises(BadInput, match="added with its files"):
        registry.vault.pipeline([AddStep(stolen)], actor="bo")
    with pytest.raises(Conflict, match="export it, and let its new owner add it"):
        registry.vault.pipeline([TransferStep(stored.cube_id, "bo")], actor="maya")
    with pytest.raises(TypeError):
        registry.vault.pipeline([PurifyStep(stored.cube_id, "text")], actor="maya")
    with pytest.raises(TypeError):
        registry.vault.update(stored.cube_id, "text", actor="maya")
    nameless = completed(MemCube(Header(owner="bo"), Parameter("d", "m", 8, 1.0, ("q_proj",))))
    registry.vault.add([nameless], actor="bo")
    assert registry.list(BO) == [] and registry.vault.check() == [] and len(folders(path)) == 1


def test_pipelines_that_end_an_adapter(registry: AdapterRegistry, path: Path, tmp_path: Path) -> None:
    stored = add(registry, tmp_path, activate=True)
    tea = add_text(registry.vault, "tea")[0]
    registry.vault.pipeline([MergeStep((stored.cube_id, tea.id), "what both told")], actor="maya")
    with pytest.raises(AdapterInactive, match="is merged"):
        registry.resolve(MAYA, "poet")
    registry.vault.pipeline([DeleteStep(stored.cube_id)], actor="maya")
    assert folders(path) == [] and registry.vault.check() == []


def test_a_cube_that_is_rolled_back_has_a_version_more(registry: AdapterRegistry, path: Path, tmp_path: Path) -> None:
    one = add(registry, tmp_path, activate=True)
    add(registry, tmp_path, seed=1)
    registry.vault.rollback(one.cube_id, 1, actor="maya")
    three = registry.resolve(MAYA, "poet@v3")
    assert three.digest == one.digest and three.int_id > one.int_id and len(folders(path)) == 2
    assert registry.resolve(MAYA, "poet") == one
    registry.remove(MAYA, "poet", 2)
    with pytest.raises(Conflict, match="were removed; it cannot come back"):
        registry.vault.rollback(one.cube_id, 2, actor="maya")
    assert registry.vault.check() == []


def test_snapshots_keep_what_they_can_bring_back(registry: AdapterRegistry, path: Path, tmp_path: Path) -> None:
    stored = add(registry, tmp_path, activate=True, access=(Grant("bo"),))
    registry.vault.snapshot("maya", "before", actor="maya")
    add(registry, tmp_path, seed=1, activate=True)
    registry.remove(MAYA, "poet")
    assert folders(path) == [registry.folder(stored).name] and registry.vault.check() == []
    registry.vault.restore_snapshot("maya", "before", actor="maya")
    back = registry.get(MAYA, "poet")
    assert [version.digest for version in back.versions] == [stored.digest] and back.active is None
    assert back.versions[0].int_id > stored.int_id and registry.list(BO) == []
    registry.activate(MAYA, "poet")
    registry.stage(registry.resolve(MAYA, "poet"), tmp_path / "out")
    registry.remove(MAYA, "poet", snapshots=True)
    assert folders(path) == [] and registry.vault.check() == []


def test_dropping_a_snapshot_lets_go_of_its_files(registry: AdapterRegistry, path: Path, tmp_path: Path) -> None:
    add(registry, tmp_path)
    registry.vault.snapshot("maya", "before", actor="maya")
    registry.remove(MAYA, "poet")
    assert len(folders(path)) == 1
    registry.vault.drop_snapshot("maya", "before", actor="maya")
    assert folders(path) == [] and registry.vault.check() == []


def test_a_name_that_was_taken_meanwhile(registry: AdapterRegistry, tmp_path: Path) -> None:
    add(registry, tmp_path)
    registry.vault.snapshot("maya", "before", actor="maya")
    registry.remove(MAYA, "poet")
    new = add(registry, tmp_path, seed=1)
    with pytest.raises(Conflict, match="There is an adapter 'poet' already"):
        registry.vault.restore_snapshot("maya", "before", actor="maya")
    assert registry.get(MAYA, "poet").versions == (new,) and registry.vault.check() == []


def test_a_restored_snapshot_leaves_what_is_active(registry: AdapterRegistry, tmp_path: Path) -> None:
    add(registry, tmp_path, activate=True)
    registry.vault.snapshot("maya", "before", actor="maya")
    two = add(registry, tmp_path, seed=1, activate=True)
    registry.vault.restore_snapshot("maya", "before", actor="maya")
    assert registry.resolve(MAYA, "poet") == two
    assert len(registry.get(MAYA, "poet").versions) == 3 and registry.vault.check() == []


def test_a_snapshot_of_a_version_that_was_removed(registry: AdapterRegistry, tmp_path: Path) -> None:
    """The other memories come back all the same."""
    add(registry, tmp_path, activate=True)
    add(registry, tmp_path, seed=1)
    registry.remove(MAYA, "poet", 2)
    tea = add_text(registry.vault, "tea")[0]
    registry.vault.snapshot("maya", "before", actor="maya")
    add(registry, tmp_path, seed=2)
    registry.vault.update(tea.id, "coffee", actor="maya")
    registry.vault.restore_snapshot("maya", "before", actor="maya")
    assert registry.vault.get(tea.id).text == "tea"
    assert [version.version for version in registry.get(MAYA, "poet").versions] == [1, 3]
    assert registry.vault.check() == []


def test_files_count_as_their_owners_bytes(registry: AdapterRegistry, tmp_path: Path) -> None:
    one = add(registry, tmp_path)
    used = registry.vault.usage("maya")
    assert used.cubes == 1 and one.bytes < used.bytes < one.bytes + 2000
    add(registry, tmp_path)
    assert registry.vault.usage("maya").bytes < used.bytes + 2000, "the same files count once"
    registry.vault.quota_guard = Limits(bytes=2 * one.bytes).check
    with pytest.raises(QuotaExceeded):
        add(registry, tmp_path, seed=1)
    assert len(folders(registry.vault.path)) == 1
    registry.remove(MAYA, "poet")
    assert registry.vault.usage("maya").bytes == 0 and registry.vault.check() == []


def test_books_can_be_made_anew(registry: AdapterRegistry, tmp_path: Path) -> None:
    add(registry, tmp_path)
    add(registry, tmp_path)
    registry.vault.snapshot("maya", "before", actor="maya")
    used = registry.vault.usage("maya")
    registry.vault._env.write(lambda txn: txn.clear("adapter_files"))
    assert any("adapter_files" in problem for problem in registry.vault.check())
    registry.vault._env.write(books.rebuild)
    assert registry.vault.usage("maya") == used and registry.vault.check() == []


@pytest.mark.parametrize(
    ("database", "problem"),
    [
        ("adapters", "record missing"),
        ("adapter_names", "row missing"),
        ("adapter_ids", "row missing"),
        ("adapter_files", "None, the cubes make 1"),
    ],
)
def test_check_misses_no_row(registry: AdapterRegistry, tmp_path: Path, database: str, problem: str) -> None:
    add(registry, tmp_path, activate=True)
    registry.vault._env.write(lambda txn: txn.clear(database))
    assert any(problem in line for line in registry.vault.check())


def test_check_finds_rows_too_many(registry: AdapterRegistry, tmp_path: Path) -> None:
    stored = add(registry, tmp_path, activate=True)
    rows = [("adapter_names", bytes(32)), ("adapter_ids", bytes(20)), ("adapter_default", bytes(16))]

    def spoil(txn: Txn) -> None:
        for database, key in rows:
            source = next(iter(txn.scan(database)))[1]
            txn.put(database, key, source)

    registry.vault._env.write(spoil)
    lines = registry.vault.check()
    assert any("row without a right to it" in line for line in lines)
    assert any("names no adapter of its owner" in line for line in lines)
    assert any("adapter_ids" in line for line in lines)
    assert stored.version == 1


def test_a_backup_brings_adapters_along(registry: AdapterRegistry, path: Path, tmp_path: Path) -> None:
    one = add(registry, tmp_path, activate=True)
    two = add(registry, tmp_path, seed=1, owner="bo", activate=True, access=(Grant("maya"),))
    copied = registry.vault.backup(tmp_path / "copy", actor="ops")
    assert (copied.adapters, copied.adapters_lost) == (2, 0) and copied.bytes > one.bytes + two.bytes
    registry.vault.close()
    shutil.rmtree(path)
    assert restore(tmp_path / "copy", path, actor="ops").adapters == 2
    with Vault.open(path) as vault:
        restored = registry_of(vault)
        assert vault.check() == [] and restored.resolve(MAYA, "poet") == one
        restored.stage(restored.resolve(MAYA, "bo/poet"), tmp_path / "out")
        assert digest_of(tmp_path / "out") == two.digest
        assert add(restored, tmp_path, "third").int_id > two.int_id


def test_a_backup_of_damaged_adapters_says_so(registry: AdapterRegistry, tmp_path: Path) -> None:
    one = add(registry, tmp_path)
    two = add(registry, tmp_path, seed=1, activate=True)
    registry.vault.snapshot("maya", "before", actor="maya")
    other = add(registry, tmp_path, "cook", seed=2, activate=True)
    (registry.folder(two) / "adapter_model.safetensors").write_bytes(b"")
    shutil.rmtree(registry.folder(other))
    copied = registry.vault.backup(tmp_path / "copy", actor="ops")
    assert (copied.adapters, copied.adapters_lost) == (1, 2)
    with Vault.open(tmp_path / "copy") as vault:
        copy = registry_of(vault)
        assert vault.check() == [] and [version.version for version in copy.get(MAYA, "poet").versions] == [1]
        assert copy.resolve(MAYA, "poet@v1").digest == one.digest
        for name in ("poet", "cook"):
            with pytest.raises(AdapterInactive):
                copy.resolve(MAYA, name)
        assert add(copy, tmp_path, "cook", seed=2).version == 2 and vault.check() == []


def test_a_backup_while_adapters_come_and_go(registry: AdapterRegistry, path: Path, tmp_path: Path) -> None:
    """Removed between its row's copy and that of its files: the backup is whole without it."""
    stored = add(registry, tmp_path)

    def remove(what: str, done: int, total: int) -> None:
        if what == "adapters" and registry.exists(stored):
            registry.remove(MAYA, "poet")

    copied = registry.vault.backup(tmp_path / "copy", actor="ops", progress=remove)
    assert (copied.adapters, copied.adapters_lost) == (0, 1) and folders(path) == []
    with Vault.open(tmp_path / "copy") as vault:
        assert vault.check() == []


def test_compaction_leaves_adapters_where_they_are(registry: AdapterRegistry, path: Path, tmp_path: Path) -> None:
    stored = add(registry, tmp_path, activate=True)
    registry.vault.close()
    compact(path, actor="ops")
    with Vault.open(path) as vault:
        assert vault.check() == [] and registry_of(vault).resolve(MAYA, "poet") == stored


def test_a_vault_from_before_adapters(path: Path, tmp_path: Path) -> None:
    with Vault.open(path) as vault:
        add_text(vault, "tea")
        assert not (path / "adapters").exists()
        assert registry_of(vault).list(MAYA) == [] and vault.check() == []
    with Vault.open(path, readonly=True) as vault:
        assert vault.check() == []
        with pytest.raises(VaultUnavailable, match="reading only"):
            add(registry_of(vault), tmp_path)
