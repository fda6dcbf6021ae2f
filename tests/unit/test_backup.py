"""Backup, restore and compaction: whole copies or none, of vaults that others use meanwhile."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from memos_vllm.errors import BackupFailed, NotAVault, VaultInUse
from memos_vllm.vault import LogQuery, Vault
from memos_vllm.vault.backup import compact, restore
from tests.unit import schema1
from tests.unit.vault_cases import add, kv_for, texts

# Adds numbered memories one by one, each acknowledged by a line, until it is killed.
WRITER = """
import sys
from pathlib import Path
from memos_vllm.cube import MemCube
from memos_vllm.vault import Vault
vault = Vault.open(Path(sys.argv[1]), map_bytes=65536)
for n in range(1_000_000):
    vault.add([MemCube.plaintext(f"{n} " + "x" * 500, owner="maya", access=["bo"])], actor="maya")
    print(n, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "copy"


@contextmanager
def writing(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that adds memories until the block ends."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "0\n"
        try:
            yield child
        finally:
            child.send_signal(signal.SIGKILL)


def filled(path: Path) -> None:
    """Two memories, one of them changed and with K/V on two ranks, and one that was deleted."""
    with Vault.open(path) as vault:
        tea, _, jam = add(vault, "tea", "milk", "jam")
        vault.update(tea.id, "green tea", actor="maya")
        (path / "kv" / "k1.1of2.safetensors").write_bytes(b"")
        record = kv_for(vault, vault.get(tea.id), "k1")
        (path / record.path).rename(path / "kv" / "k1.0of2.safetensors")
        vault.put_kv(msgspec.structs.replace(record, path="kv/k1.0of2.safetensors"))
        vault.delete(jam.id, actor="maya")
        vault.snapshot("maya", "then", actor="maya")


def test_a_backup_holds_everything(path: Path, target: Path) -> None:
    filled(path)
    with Vault.open(path) as vault:
        copied = vault.backup(target, actor="ops")
        held = vault.list("maya")
        log = vault.log()
    assert (copied.cubes, copied.kv, copied.left_out) == (2, 1, 0) and copied.bytes > 10
    with Vault.open(target, readonly=True) as copy:
        assert copy.check() == []
        assert copy.list("maya") == held and texts(held) == ["green tea", "milk"]
        assert copy.get(held[0].id, version=1).text == "tea"
        assert copy.log() == log[:-1] and log[-1].action == "vault.backup" and log[-1].actor == "ops"
        assert copy.log_head() == copied.log_head
        assert [record.key for record in copy.iter_kv()] == ["k1"]
        assert [snapshot.name for snapshot in copy.snapshots("maya")] == ["then"]
    assert {file.name for file in (target / "kv").iterdir()} == {"k1.0of2.safetensors", "k1.1of2.safetensors"}
    assert target.stat().st_mode & 0o077 == 0
    assert {entry.name for entry in path.parent.iterdir()} == {"memory", "copy"}


@pytest.mark.parametrize("kv", [True, False])
def test_kv_files_that_are_gone_or_not_wanted_are_left_out(path: Path, target: Path, kv: bool) -> None:
    filled(path)
    with Vault.open(path) as vault:
        vault.put_kv(kv_for(vault, vault.list("maya")[1], "k2"))
        (path / "kv" / "k2.safetensors").unlink()
        copied = vault.backup(target, actor="ops", kv=kv)
        assert (copied.kv, copied.left_out) == ((1, 1) if kv else (0, 2))
    with Vault.open(target) as copy:
        assert copy.check() == [] and {record.key for record in copy.iter_kv()} == ({"k1"} if kv else set())


def test_a_backup_while_another_process_writes(path: Path, target: Path) -> None:
    """The copy holds the first so many memories, at least those that were acknowledged before it began."""
    with writing(path) as child, Vault.open(path) as vault:
        time.sleep(0.3)
        for n in range(3):
            before = len(vault.list("maya"))
            copied = vault.backup(target / str(n), actor="ops")
            assert copied.cubes >= before
            with Vault.open(target / str(n), readonly=True) as copy:
                numbers = [int(text.split()[0]) for text in texts(copy.list("maya"))]
                assert numbers == list(range(copied.cubes))
                assert copy.verify_log() == []
        assert child.poll() is None
    with Vault.open(path) as vault:
        assert vault.check() == [] and len(vault.log(LogQuery(action="vault.backup"))) == 3


def test_deleted_text_is_neither_in_a_backup_nor_in_a_compacted_vault(path: Path, target: Path) -> None:
    secret = "the code is 4711"
    with Vault.open(path) as vault:
        add(vault, "tea", *(f"{secret} {n}" for n in range(50)))
        add(vault, "coffee", owner="bo")
        vault.forget("maya", actor="ops")
        vault.backup(target, actor="ops")
    compact(path, actor="ops")
    for folder in (path, target):
        stored = (folder / "vault" / "data.mdb").read_bytes()
        assert b"coffee" in stored and secret.encode() not in stored and b"maya" not in stored


def test_a_target_in_the_way_is_refused(path: Path, target: Path) -> None:
    filled(path)
    target.mkdir()
    (target / "mine").touch()
    with Vault.open(path) as vault:
        with pytest.raises(BackupFailed, match="there already"):
            vault.backup(target, actor="ops")
        with pytest.raises(BackupFailed, match="there already"):
            vault.backup(target / "mine", actor="ops")
        with pytest.raises(BackupFailed, match="Cannot write"):
            vault.backup(target / "mine" / "below", actor="ops")
        with pytest.raises(BackupFailed, match="lies inside"):
            vault.backup(path / "kv" / "backup", actor="ops")
        (target / "mine").unlink()
        vault.backup(target, actor="ops")
    assert {entry.name for entry in target.iterdir()} == {"memos.json", "vault", "kv"}


def test_a_damaged_vault_makes_no_backup(path: Path, target: Path) -> None:
    filled(path)
    with Vault.open(path) as vault:
        key, stored = vault._env.read(lambda txn: next(iter(txn.scan("cubes"))))
        vault._env.write(lambda txn: txn.put("cubes", key, stored[:-1] + b"?"))
        with pytest.raises(BackupFailed, match=r"faults in the copy.*checksum mismatch.*vault check"):
            vault.backup(target, actor="ops")
    assert not target.exists() and {entry.name for entry in path.parent.iterdir()} == {"memory"}


BACKUP = """
import sys
from pathlib import Path
from memos_vllm.vault import Vault
vault = Vault.open(Path(sys.argv[1]))
print(1, flush=True)
vault.backup(Path(sys.argv[2]), actor="ops")
"""


def test_a_backup_that_is_killed_leaves_none_and_the_next_one_works(path: Path, target: Path) -> None:
    with Vault.open(path) as vault:
        add(vault, *(f"{n} {'x' * 400}" for n in range(500)))
    whole = 0
    for delay in (0.0, 0.02, 0.1):
        command = [sys.executable, "-c", BACKUP, str(path), str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline() == b"1\n"
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        if target.exists():
            with Vault.open(target) as copy:
                assert copy.check() == []
            shutil.rmtree(target)
            whole += 1
    assert whole < 3
    other = path.parent / ".yesterday.partial"
    (other / "unfinished").mkdir(parents=True)
    with Vault.open(path) as vault:
        assert vault.check() == [] and vault.backup(target, actor="ops").cubes == 500
    assert {entry.name for entry in path.parent.iterdir()} == {"memory", "copy"}


def test_restore_brings_it_back(path: Path, target: Path) -> None:
    filled(path)
    with Vault.open(path) as vault:
        vault.backup(target, actor="ops")
        held = vault.list("maya")
    before = (target / "vault" / "data.mdb").read_bytes()
    shutil.rmtree(path)
    copied = restore(target, path, actor="ops")
    assert copied.cubes == 2 and copied.kv == 1
    with Vault.open(path) as vault:
        assert vault.check() == [] and vault.list("maya") == held
        assert vault.log()[-1].action == "vault.restore"
        assert vault.update(held[0].id, "water", actor="maya").version == 3
    assert (target / "vault" / "data.mdb").read_bytes() == before


def test_restore_of_an_older_schema_migrates_the_copy(path: Path, target: Path) -> None:
    schema1.make(target)
    restore(target, path, actor="ops")
    assert schema1.read(target) == schema1.rows()
    with Vault.open(path) as vault:
        assert vault.check() == [] and vault.get(schema1.TEA).text == "Maya drinks green tea"


def test_a_backup_with_another_version_of_the_index_is_restored(path: Path, target: Path, tmp_path: Path) -> None:
    filled(path)
    with Vault.open(path) as vault:
        vault.backup(target, actor="ops")
    with Vault.open(target) as vault:
        vault._env.write(lambda txn: txn.put("meta", b"index format", bytes(4)))
        vault._env.write(lambda txn: txn.clear("statistics"))
    restore(target, tmp_path / "new", actor="ops")
    with Vault.open(tmp_path / "new") as vault:
        assert vault.check() == [] and vault.usage("maya").cubes == 2


def test_what_is_no_backup_is_refused(path: Path, target: Path) -> None:
    with pytest.raises(NotAVault, match="no vault"):
        restore(target, path, actor="ops")
    target.mkdir()
    (target / "memos.json").write_text("{}")
    with pytest.raises(NotAVault, match="does not mark"):
        restore(target, path, actor="ops")
    filled(path)
    with Vault.open(path) as vault:
        vault.backup(target.parent / "good", actor="ops")
    with pytest.raises(BackupFailed, match="there already"):
        restore(target.parent / "good", path, actor="ops")
    data = target.parent / "good" / "vault" / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)
    with pytest.raises(NotAVault, match="restore it from a backup"):
        restore(target.parent / "good", target.parent / "new", actor="ops")
    assert not (target.parent / "new").exists()


def test_a_vault_in_use_is_not_restored_from(path: Path, target: Path) -> None:
    filled(path)
    with Vault.open(path), pytest.raises(VaultInUse, match="stop the server"):
        restore(path, target, actor="ops")


def test_compaction_gives_pages_back(path: Path) -> None:
    with Vault.open(path) as vault:
        cubes = add(vault, *(f"kept {n}" for n in range(10)))
        add(vault, *(f"{n} {'x' * 900}" for n in range(1000)), owner="bo")
        vault.delete_owner("bo", actor="bo")
    before, after = compact(path, actor="ops")
    assert after == (path / "vault" / "data.mdb").stat().st_size < before / 2
    with Vault.open(path) as vault:
        assert vault.check() == [] and vault.list("maya") == cubes
        assert vault.log(LogQuery(newest_first=True, limit=1))[0].action == "vault.compact"
        add(vault, "more")
    assert {entry.name for entry in path.iterdir()} == {"memos.json", "vault", "kv"}


def test_compaction_waits_for_nobody(path: Path) -> None:
    filled(path)
    with Vault.open(path, readonly=True), pytest.raises(VaultInUse, match="stop the server"):
        compact(path, actor="ops")
    with writing(path), pytest.raises(VaultInUse, match="stop the server"):
        compact(path, actor="ops")
    compact(path, actor="ops")


COMPACT = """
import sys
from pathlib import Path
from memos_vllm.vault.backup import compact
print(1, flush=True)
compact(Path(sys.argv[1]), actor="ops")
"""


def test_a_compaction_that_is_killed_leaves_the_vault(path: Path) -> None:
    with Vault.open(path) as vault:
        cubes = add(vault, *(f"{n} {'x' * 400}" for n in range(500)))
    for delay in (0.0, 0.03, 0.1):
        with subprocess.Popen([sys.executable, "-c", COMPACT, str(path)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline() == b"1\n"
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        with Vault.open(path) as vault:
            assert vault.list("maya") == cubes and vault.check() == []
            assert not (path / "vault.compact").exists(), "it holds what is forgotten from now on"
    compact(path, actor="ops")
    assert not (path / "vault.compact").exists()
