"""Damage is put into the data file through LMDB itself, below the vault; `check` must name it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import msgspec
import pytest

from memos_vllm.cube import MemCube
from memos_vllm.errors import VaultUnavailable
from memos_vllm.vault import KVRecord, Vault, keys, records
from memos_vllm.vault.check import STRAY_SECONDS


class Case:
    """A vault of two memories, one of them shared, changed and with a KV file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with Vault.open(path) as vault:
            self.cube, self.other = vault.add(
                [MemCube.plaintext("tea", owner="maya", access=["bo"]), MemCube.plaintext("milk", owner="maya")],
                actor="maya",
            )
            self.cube = vault.update(self.cube.id, "coffee", actor="maya")
            (path / "kv" / "one").write_bytes(b"12345")
            self.kv = KVRecord("k1", "maya", self.cube.id, 2, "kv/one", 3, 5, "", self.cube.header.created, 0.1)
            vault.put_kv(self.kv)
            assert vault.check() == []

    @contextmanager
    def raw(self, database: str) -> Iterator["lmdb.Transaction[bytes]"]:
        env = lmdb.open(str(self.path / "vault"), max_dbs=64)
        handle = env.open_db(database.encode(), create=False)
        try:
            with env.begin(db=handle, write=True) as txn:
                yield txn
        finally:
            env.close()

    def problems(self) -> list[str]:
        with Vault.open(self.path) as vault:
            found = vault.check()
        with Vault.open(self.path, readonly=True) as vault:
            assert vault.check() == found
        return found

    def only_problem(self) -> str:
        found = self.problems()
        assert len(found) == 1, found
        return found[0]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path / "memory")


@pytest.mark.parametrize("database", ["cubes", "versions", "events", "revisions", "kv"])
def test_a_flipped_bit_in_any_record_is_named(case: Case, database: str) -> None:
    with case.raw(database) as txn:
        key, value = next(iter(txn.cursor()))
    for position in {0, 1, 8, 9, len(value) // 2, len(value) - 1}:
        with case.raw(database) as txn:
            txn.put(key, value[:position] + bytes([value[position] ^ 0x10]) + value[position + 1 :])
        assert f"{database} {key.hex()}: checksum mismatch" in case.problems()
    for stored, named in ((b"", "0 bytes"), (value[:9], "9 bytes"), (value + b"?", "checksum")):
        with case.raw(database) as txn:
            txn.put(key, stored)
        assert any(line.startswith(f"{database} {key.hex()}: ") and named in line for line in case.problems())


def test_a_damaged_memory_is_an_error_and_no_answer(case: Case) -> None:
    with case.raw("cubes") as txn:
        value = txn.get(keys.cube_key(case.cube.id), b"")
        txn.put(keys.cube_key(case.cube.id), value[:-1] + b"?")
    with Vault.open(case.path) as vault:
        for call in (lambda: vault.get(case.cube.id), lambda: vault.list("maya"), lambda: vault.readable("bo")):
            with pytest.raises(VaultUnavailable, match=case.cube.id):
                call()
        assert vault.get(case.other.id) == case.other
        assert vault.check() == [f"cubes {case.cube.id}: checksum mismatch"]


def test_a_record_under_another_key_is_found(case: Case) -> None:
    with case.raw("cubes") as txn:
        txn.put(keys.cube_key(case.other.id), txn.get(keys.cube_key(case.cube.id), b""))
    assert case.only_problem() == f"cubes {case.other.id}: checksum mismatch"


def test_a_record_of_a_newer_schema_is_named(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    key = keys.cube_key(case.other.id)
    with monkeypatch.context() as patched:
        patched.setattr(records, "SCHEMA", 3)
        newer = records.encode(case.other, "cubes", key)
    with case.raw("cubes") as txn:
        txn.put(key, newer)
    assert case.only_problem() == f"cubes {case.other.id}: schema 3, this version reads 2"


def test_rows_that_are_missing(case: Case) -> None:
    rows = {
        "owners": (keys.of_principal("maya", case.cube.id), "row missing"),
        "grants": (keys.of_principal("bo", case.cube.id), "row missing"),
        "versions": (keys.numbered(case.cube.id, 1), "version missing"),
        "events": (keys.numbered(case.cube.id, 2), "event missing"),
        "kv_cubes": (keys.of_cube(case.cube.id, "k1"), "row missing"),
    }
    for database, (key, named) in rows.items():
        with case.raw(database) as txn:
            value = txn.get(key, b"")
            txn.delete(key)
        found = case.problems()
        assert found[0] == f"{database} {key.hex()}: {named}"
        assert all(line.startswith("statistics") for line in found[1:])
        with case.raw(database) as txn:
            txn.put(key, value)
    with case.raw("revisions") as txn:
        txn.delete(keys.digest("bo"))
    assert case.only_problem() == "revisions: no row for 'bo'"


def test_rows_too_many(case: Case) -> None:
    rows = {
        "owners": (keys.of_principal("eve", case.cube.id), "row without a memory"),
        "grants": (keys.of_principal("eve", case.cube.id), "row without a memory"),
        "kv_cubes": (keys.of_cube(case.other.id, "k1"), "row without a manifest row"),
    }
    for database, (key, named) in rows.items():
        with case.raw(database) as txn:
            txn.put(key, b"")
        assert case.only_problem() == f"{database} {key.hex()}: {named}"
        with case.raw(database) as txn:
            txn.delete(key)


def test_a_memory_that_vanished_is_named(case: Case) -> None:
    with case.raw("cubes") as txn:
        txn.delete(keys.cube_key(case.cube.id))
    found = case.problems()
    assert f"cubes {case.cube.id}: memory missing, it was never deleted" in found
    assert f"kv k1: its memory {case.cube.id} is missing" in found
    assert any(line.startswith("versions") and "without a memory" in line for line in found)


def test_a_memory_that_came_back_is_named(case: Case) -> None:
    key = keys.cube_key(case.other.id)
    with case.raw("cubes") as txn:
        value = txn.get(key, b"")
    with Vault.open(case.path) as vault:
        vault.delete(case.other.id, actor="maya")
    with case.raw("cubes") as txn:
        txn.put(key, value)
    assert f"cubes {case.other.id}: present although deleted" in case.problems()


def test_a_manifest_row_that_differs_from_its_cube(case: Case) -> None:
    key = keys.digest("k1")
    with case.raw("kv") as txn:
        txn.put(key, records.encode(msgspec.structs.replace(case.kv, owner="eve"), "kv", key))
    assert case.only_problem() == f"kv k1: owner or version differs from memory {case.cube.id}"


def test_kv_files(case: Case) -> None:
    file = case.path / "kv" / "one"
    file.write_bytes(b"1234")
    assert case.only_problem() == "kv/one: 4 bytes, kv k1 says 5"
    file.unlink()
    assert case.problems() == [], "evicted from disk; its row goes at the next round"
    file.write_bytes(b"12345")
    stray = case.path / "kv" / "deep" / "stray"
    stray.parent.mkdir()
    stray.touch()
    assert case.problems() == []
    long_ago = stray.stat().st_mtime - STRAY_SECONDS - 60
    os.utime(stray, (long_ago, long_ago))
    assert case.only_problem().startswith("kv/deep/stray: file without a manifest row")


def test_files_of_each_rank_are_those_of_the_row(case: Case) -> None:
    """A server with another tensor-parallel size left its own beside them."""
    folder = case.path / "kv"
    for name in ("k2.0of2.kv", "k2.1of2.kv", "k2.0of1.kv"):
        (folder / name).write_bytes(b"123")
    with Vault.open(case.path) as vault:
        vault.put_kv(msgspec.structs.replace(case.kv, key="k2", path="kv/k2.0of2.kv", bytes=6))
        assert case.problems() == []
        (folder / "k2.1of2.kv").write_bytes(b"12")
        assert case.only_problem() == "kv/k2.0of2.kv: 5 bytes, kv k2 says 6"
        vault.drop_kv("k2")
    assert [file.name for file in folder.glob("k2*")] == ["k2.0of1.kv"]


def test_files_that_a_server_is_working_on_are_no_fault(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([["a", "b"], ["b"]])
    monkeypatch.setattr("memos_vllm.vault.vault.file_problems", lambda *_: next(found))
    with Vault.open(case.path, readonly=True) as vault:
        assert vault.check() == ["b"]


def test_damaged_pages_are_named_without_harm_to_the_process(case: Case) -> None:
    """The file is damaged under an open vault; LMDB would end the process if it read these pages."""
    with Vault.open(case.path) as vault:
        data = case.path / "vault" / "data.mdb"
        copy = shutil.copy(data, case.path / "copy.mdb")
        with data.open("r+b") as file:
            file.seek(2 * 4096)
            file.write(bytes(data.stat().st_size - 2 * 4096))
        found = vault.check()
        assert found and all(line.startswith("vault/data.mdb: ") for line in found)
        shutil.copy(copy, data)
        assert vault.check() == []
