"""Folders of adapters: what is damaged, missing or left behind is found, and the same files lie there once."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from memos_vllm.cube import Header, MemCube, new_id
from memos_vllm.errors import AdapterUnusable, Conflict, VaultFull, VaultUnavailable
from memos_vllm.parameter import folders
from memos_vllm.parameter.registry import AdapterFiles, AdapterRegistry, AdapterVersion
from memos_vllm.vault import AdapterRecord, Vault, adapter_files
from tests.unit.adapter_cases import MAYA, add, base, files, registry_of


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[AdapterRegistry]:
    with Vault.open(tmp_path / "memory") as vault:
        yield registry_of(vault)


def names(registry: AdapterRegistry) -> list[str]:
    return sorted(path.name for path in (registry.vault.path / "adapters").iterdir())


def staged(registry: AdapterRegistry, version: AdapterVersion, target: Path) -> str:
    """What staging says: "" where it went well. It leaves nothing where it did not."""
    try:
        registry.stage(version, target)
    except AdapterUnusable as error:
        assert not target.exists()
        return str(error)
    assert folders.digest_of(target) == version.digest
    return ""


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 4)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: shutil.rmtree(folder), "No such file"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "No such file"),
    (lambda folder: (folder / "adapter_config.json").unlink(), "No such file"),
    (lambda folder: truncate(folder / "adapter_model.safetensors"), "changed or cut short"),
    (lambda folder: flip(folder / "adapter_model.safetensors"), "changed or cut short"),
    (lambda folder: flip(folder / "adapter_config.json"), "changed or cut short"),
    (lambda folder: (folder / "adapter_config.json").write_text("{}"), "changed or cut short"),
]


@pytest.mark.parametrize(("damage", "match"), DAMAGES)
def test_damage_is_found_when_staged_and_by_check(
    registry: AdapterRegistry, tmp_path: Path, damage: Callable[[Path], object], match: str
) -> None:
    stored = add(registry, tmp_path, activate=True)
    other = add(registry, tmp_path, "cook", seed=1)
    assert staged(registry, stored, tmp_path / "before") == "" and registry.vault.check() == []
    damage(registry.folder(stored))
    assert match in staged(registry, stored, tmp_path / "after")
    assert staged(registry, other, tmp_path / "other") == ""
    problems = registry.vault.check()
    assert len(problems) == 1 and problems[0].startswith(f"adapters/{registry.folder(stored).name}: ")
    again = add(registry, tmp_path)
    assert again.digest == stored.digest and staged(registry, again, tmp_path / "again") == ""
    assert staged(registry, stored, tmp_path / "healed") == "" and registry.vault.check() == []


def test_the_memory_directory_moved_away(registry: AdapterRegistry, tmp_path: Path) -> None:
    stored = add(registry, tmp_path, activate=True)
    path = registry.vault.path
    path.rename(tmp_path / "moved")
    assert registry.resolve(MAYA, "poet") == stored, "rows lie in a file that is open"
    assert "No such file" in staged(registry, stored, tmp_path / "out")
    with pytest.raises(VaultUnavailable, match="Cannot write below"):
        add(registry, tmp_path, seed=1)
    (tmp_path / "moved").rename(path)
    assert staged(registry, stored, tmp_path / "out") == ""


def test_a_folder_that_cannot_be_read(registry: AdapterRegistry, tmp_path: Path) -> None:
    stored = add(registry, tmp_path)
    weights = registry.folder(stored) / "adapter_model.safetensors"
    weights.unlink()
    weights.mkdir()
    assert "Is a directory" in staged(registry, stored, tmp_path / "out")
    assert "Is a directory" in registry.vault.check()[0]


def test_staging_into_a_folder_that_is_there(registry: AdapterRegistry, tmp_path: Path) -> None:
    stored = add(registry, tmp_path)
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").touch()
    with pytest.raises(Conflict, match="is there already"):
        registry.stage(stored, target)
    assert (target / "mine").exists()


def test_the_same_files_lie_there_once(registry: AdapterRegistry, tmp_path: Path) -> None:
    one, two = add(registry, tmp_path), add(registry, tmp_path)
    assert one.digest == two.digest and one.int_id != two.int_id and len(names(registry)) == 1
    registry.remove(MAYA, "poet", 1)
    assert staged(registry, two, tmp_path / "out") == ""
    registry.remove(MAYA, "poet")
    assert names(registry) == []


def test_no_two_adapters_share_files(registry: AdapterRegistry, tmp_path: Path) -> None:
    """So that nobody learns by adding files whether somebody else has them."""
    mine, theirs = add(registry, tmp_path), add(registry, tmp_path, owner="bo")
    assert mine.digest == theirs.digest and len(names(registry)) == 2
    registry.remove(MAYA, "poet")
    assert staged(registry, theirs, tmp_path / "out") == ""


def test_other_files_under_the_same_digest(
    registry: AdapterRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows two such adapters, so the digest is made to say nothing."""
    monkeypatch.setattr("memos_vllm.parameter.folders.digest_of", lambda folder: "0" * 32)
    monkeypatch.setattr("memos_vllm.vault.adapter_files.digest_of", lambda folder: "0" * 32)
    add(registry, tmp_path)
    with pytest.raises(Conflict, match="differ from an earlier version's but have its digest"):
        add(registry, tmp_path, seed=1)
    assert len(registry.get(MAYA, "poet").versions) == 1 and len(names(registry)) == 1


def test_a_start_removes_what_a_crash_left(registry: AdapterRegistry, tmp_path: Path) -> None:
    stored = add(registry, tmp_path)
    parent = registry.vault.path / "adapters"
    for name in (f"{'a' * 32}-{'b' * 32}", f".{'c' * 32}.partial", f".{'d' * 32}.gone"):
        (parent / name).mkdir()
        (parent / name / "adapter_config.json").touch()
    (parent / "notes.txt").touch()
    (parent / "mine").mkdir()
    assert len(registry.vault.check()) == 3
    with Vault.open(registry.vault.path):
        assert names(registry) == sorted([registry.folder(stored).name, "notes.txt", "mine"])
    assert registry.vault.check() == []


def test_a_start_leaves_what_others_are_writing(registry: AdapterRegistry) -> None:
    with registry.vault.new_adapter_folder() as folder:
        with Vault.open(registry.vault.path) as second:
            assert folder.is_dir() and second.check() == []
        (folder / "adapter_config.json").touch()
    assert names(registry) == []


def test_adding_at_the_same_time(registry: AdapterRegistry, tmp_path: Path) -> None:
    """Threads that add versions of one adapter while others start and sweep."""
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(3):
                made = files(tmp_path / f"in-{number}", seed=10 * number + turn % 2)
                registry.add("maya", "poet", made, author="maya", activate=True)
                registry.vault.sweep_adapters()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    versions = registry.get(MAYA, "poet").versions
    assert [version.version for version in versions] == list(range(1, 13))
    assert len({version.int_id for version in versions}) == 12 and len(names(registry)) == 8
    assert registry.vault.check() == []


def test_a_full_disk(registry: AdapterRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("memos_vllm.parameter.folders.sync", full)
    with pytest.raises(VaultFull, match="nothing was stored"):
        add(registry, tmp_path)
    assert names(registry) == [] and registry.list(MAYA) == []


def test_folders_are_for_their_user_alone(registry: AdapterRegistry, tmp_path: Path) -> None:
    stored = add(registry, tmp_path)
    registry.stage(stored, tmp_path / "out")
    for folder in (registry.vault.path / "adapters", registry.folder(stored), tmp_path / "out"):
        assert folder.stat().st_mode & 0o077 == 0


def draft_of(folder: Path, made: AdapterFiles) -> MemCube:
    payload = folders.take_in(folder, made, base(), name="poet", max_rank=64, max_bytes=1 << 30)
    return MemCube(Header(id=new_id(), owner="maya"), payload)


def test_a_write_that_runs_again_finds_its_files(registry: AdapterRegistry, tmp_path: Path) -> None:
    """The map was full after the files had got their place, and has grown."""
    vault, runs = registry.vault, []

    def full_once(record: AdapterRecord, alive: set[int]) -> AdapterRecord:
        runs.append(record)
        if len(runs) == 1:
            raise lmdb.MapFullError("full")
        return record

    with vault.new_adapter_folder() as folder:
        draft = draft_of(folder, files(tmp_path / "in"))
        vault.put_adapter(draft, folder, actor="maya", switch=full_once)
    assert len(runs) == 2 and vault.check() == [] and len(names(registry)) == 1


def test_files_follow_their_cube_where_a_run_was_undone(registry: AdapterRegistry, tmp_path: Path) -> None:
    """Another process made an adapter of that name meanwhile, so they belong to the next version of that one."""
    vault = registry.vault
    with vault.new_adapter_folder() as folder:
        draft = draft_of(folder, files(tmp_path / "in"))
        first = vault._env.write(lambda txn: adapter_files.settle(txn, vault.path, folder, draft))
        assert names(registry) == [first.name] and first.name.startswith(draft.id)
        other = add(registry, tmp_path, seed=1)
        vault.put_adapter(draft, first, actor="maya")
    assert vault.check() == [] and len(names(registry)) == 2
    assert staged(registry, registry.resolve(MAYA, "poet@v2"), tmp_path / "out") == ""
    assert other.version == 1
