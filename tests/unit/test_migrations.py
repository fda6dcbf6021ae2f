"""A vault of schema 1 becomes one of this schema, wholly or not at all."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import pytest

from memos_vllm.errors import NotAVault, VaultInUse
from memos_vllm.vault import LogQuery, Vault, migrations
from memos_vllm.vault.env import Environment, Txn
from memos_vllm.vault.records import SCHEMA
from tests.unit import schema1
from tests.unit.schema1 import JAM, NOTE, TEA


@pytest.fixture
def path(tmp_path: Path) -> Path:
    schema1.make(tmp_path / "memory")
    return tmp_path / "memory"


def marked(path: Path) -> int:
    return int(json.loads((path / "memos.json").read_text())["schema"])


def test_everything_is_there_afterwards(path: Path) -> None:
    with Vault.open(path) as vault:
        assert vault.check() == []
        tea = vault.get(TEA)
        assert tea.text == "Maya drinks green tea" and tea.version == 2 and tea.header.priority == "pinned"
        assert tea.header.namespace == "user" and tea.header.happened == ""
        assert vault.get(TEA, version=1).text == "Maya drinks coffee"
        assert [cube.id for cube in vault.readable("bo")] == [TEA, NOTE]
        assert [event.operation for event in vault.history(JAM)] == ["add", "delete"]
        assert vault.usage("maya").cubes == 1 and vault.usage("bo").cubes == 1
        assert [row.key for row in vault.kv_of(TEA)] == ["k1"] and vault.pinned_keys() == {"k1"}
        assert vault.uses_of([TEA])[TEA].count == 3
        assert vault.revision("maya") >= 4
        assert [cube.id for cube in vault.due("2031-01-01", limit=9)] == [NOTE]
    assert marked(path) == SCHEMA
    with Vault.open(path, readonly=True) as vault:
        assert vault.check() == [] and vault.get(NOTE).text == "The key is under the mat"


def test_the_migrated_vault_can_be_changed(path: Path) -> None:
    with Vault.open(path) as vault:
        assert vault.update(TEA, "Maya drinks water", actor="maya").version == 3
        vault.rollback(TEA, 1, actor="maya")
        vault.delete(NOTE, actor="bo")
        assert vault.check() == []


def test_the_log_tells_of_it(path: Path) -> None:
    with Vault.open(path) as vault:
        (entry,) = vault.log(LogQuery(action="vault.migrate"))
        assert entry.detail["from"] == 1 and entry.detail["to"] == 2 and entry.seq == 1
        assert vault.verify_log() == []
    with Vault.open(path) as vault:
        assert len(vault.log()) == 1


def test_steps_are_recorded_without_gaps() -> None:
    assert [step.schema for step in migrations.MIGRATIONS] == list(range(2, SCHEMA + 1))
    assert all(step.name for step in migrations.MIGRATIONS)


def test_reading_only_does_not_migrate(path: Path) -> None:
    with pytest.raises(NotAVault, match="schema 1, this version reads 2; migrate it"):
        Vault.open(path, readonly=True)
    assert marked(path) == 1 and schema1.read(path) == schema1.rows()


def test_a_damaged_record_stops_it_and_nothing_is_changed(tmp_path: Path) -> None:
    rows = schema1.rows()
    key = ("uses", bytes.fromhex(TEA))
    rows[key] = rows[key][:-1] + b"?"
    schema1.make(tmp_path / "memory", rows)
    for _ in range(2):
        with pytest.raises(NotAVault, match=r"damaged record \(checksum mismatch\) and was left as it is"):
            Vault.open(tmp_path / "memory")
        assert schema1.read(tmp_path / "memory") == rows and marked(tmp_path / "memory") == 1


def test_a_torn_file_is_refused(path: Path) -> None:
    data = path / "vault" / "data.mdb"
    with data.open("r+b") as file:
        file.truncate(data.stat().st_size // 2)
    with pytest.raises(NotAVault, match="restore it from a backup"):
        Vault.open(path)


def test_it_waits_for_nobody(path: Path) -> None:
    """A command of this version that has the vault open would read rows that are being rewritten."""
    env = Environment(path / "vault", readonly=True, map_bytes=1 << 20, max_bytes=None) if _ready(path) else None
    assert env is not None
    with pytest.raises(VaultInUse, match="stop the server"):
        migrations.migrate(path / "vault")
    env.close()
    Vault.open(path).close()


def test_it_notices_an_older_server(path: Path) -> None:
    """Whose version takes no lock of ours: LMDB's own tells of it."""
    script = "import lmdb, sys; env = lmdb.open(sys.argv[1], max_dbs=9); print(1, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(path / "vault")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as older:
        assert older.stdout is not None and older.stdout.readline() == b"1\n"
        with pytest.raises(VaultInUse, match="stop the server"):
            Vault.open(path)
        older.communicate()
    assert marked(path) == 1
    Vault.open(path).close()


def _ready(path: Path) -> bool:
    """Add the databases of this version, so that it can be opened as it is."""
    Environment(path / "vault", readonly=False, map_bytes=1 << 20, max_bytes=None).close()
    return schema1.read(path) == schema1.rows()


def test_a_marker_that_lags_behind_is_put_right(path: Path) -> None:
    """A crash after the transaction, before the marker."""
    Vault.open(path).close()
    (path / "memos.json").write_text(json.dumps({"format": "memos-vault", "schema": 1}))
    with Vault.open(path) as vault:
        assert vault.check() == [] and len(vault.log()) == 1
    assert marked(path) == SCHEMA


def test_a_failing_step_leaves_schema_1(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(txn: Txn) -> None:
        migrations.MIGRATIONS[0].apply(txn)
        raise KeyError("boom")

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "_apply", fail)
        with pytest.raises(KeyError):
            Vault.open(path)
    assert marked(path) == 1 and schema1.read(path) == schema1.rows()


def test_kill_at_any_moment_leaves_one_schema_or_the_other(tmp_path: Path) -> None:
    """A larger vault, migrated by a process that is killed after a while; the next one finishes it."""
    rows = schema1.rows()
    for n in range(3000):
        cube_id = f"0190{n:028x}"
        key = bytes.fromhex(cube_id)
        rows["cubes", key] = schema1.record("cubes", key, schema1.cube(cube_id, f"fact {n} of maya", owner="maya"))
        row = schema1.record("events", key + (1).to_bytes(4), schema1.event(cube_id, 1, "add", "maya"))
        rows["events", key + (1).to_bytes(4)] = row
        rows["owners", schema1.digest("maya") + key] = b""
    path = tmp_path / "memory"
    schema1.make(path, rows)
    script = "import sys; from pathlib import Path; from memos_vllm.vault import Vault; print(1, flush=True)\n"
    for delay in (0.0, 0.05, 0.2):
        with subprocess.Popen(
            [sys.executable, "-c", script + "Vault.open(Path(sys.argv[1]))", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as child:
            assert child.stdout is not None and child.stdout.readline() == b"1\n"
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
    held = schema1.read(path)
    assert held == rows or {stored[0] for (database, _), stored in held.items() if database == "cubes"} == {2}
    with Vault.open(path) as vault:
        assert vault.check() == []
        assert vault.usage("maya").cubes == 3001 and len(vault.log(LogQuery(action="vault.migrate"))) == 1


@pytest.mark.parametrize("schema", [3, 99])
def test_a_newer_schema_is_refused(path: Path, schema: int) -> None:
    (path / "memos.json").write_text(json.dumps({"format": "memos-vault", "schema": schema}))
    with pytest.raises(NotAVault, match="upgrade memos-vllm"):
        Vault.open(path)
    with lmdb.open(str(path / "vault"), max_dbs=64):
        pass
    assert schema1.read(path) == schema1.rows()
