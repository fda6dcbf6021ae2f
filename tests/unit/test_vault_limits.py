"""A vault that grows under several threads and processes, and one that is full."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import lmdb
import pytest

from memos_vllm.cube import MemCube, now
from memos_vllm.errors import Conflict, NotFound, StartError, VaultFull
from memos_vllm.vault import LogQuery, Vault
from memos_vllm.vault.base import Opened
from memos_vllm.vault.env import Txn
from tests.unit.vault_cases import TINY_MAP, add, kv_for


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory"


def test_the_map_grows(path: Path) -> None:
    with Vault.open(path, map_bytes=TINY_MAP) as vault:
        cubes = add(vault, *("x" * 3000 for _ in range(500)))
        assert vault.stats()["map_bytes"] > 500 * 3000
        assert vault.list("maya") == cubes and vault.check() == []


def test_the_map_grows_under_readers_and_writers(path: Path) -> None:
    done = threading.Event()
    with Vault.open(path, map_bytes=TINY_MAP) as vault, ThreadPoolExecutor(4) as pool:

        def read() -> None:
            while not done.is_set():
                assert all(len(cube.text) == 5000 for cube in vault.list("maya", limit=20))

        def write() -> None:
            for _ in range(40):
                add(vault, "x" * 5000)
                with pytest.raises(NotFound):
                    vault.delete("0" * 32, actor="maya")

        readers = [pool.submit(read) for _ in range(2)]
        writers = [pool.submit(write) for _ in range(2)]
        wait(writers)
        done.set()
        for work in writers + readers:
            work.result()
        assert len(vault.list("maya")) == 80 and vault.check() == []


def test_a_write_that_is_refused_waits_for_no_reader(path: Path) -> None:
    """Nor does what comes after it."""
    with Vault.open(path) as vault:
        (cube,) = add(vault, "tea")
        reading, refused = threading.Event(), threading.Event()

        def long_read(_: Txn) -> bool:
            reading.set()
            return refused.wait(5)

        reader = ThreadPoolExecutor(1).submit(vault.read, long_read)
        assert reading.wait(5)
        with pytest.raises(Conflict):
            vault.update(cube.id, "milk", actor="maya", expect=7)
        with pytest.raises(NotFound):
            vault.delete("0" * 32, actor="maya")
        assert vault.get(cube.id).text == "tea"
        refused.set()
        assert reader.result(), "a write waited for the reader"


def test_what_fails_behind_a_commit_is_no_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller would do it again."""
    with Vault.open(path) as vault:
        (cube,) = add(vault, "tea")
        vault.put_kv(kv_for(vault, cube, "k"))
        write = vault._env.write

        def full(*args: Any, **options: Any) -> Any:
            raise VaultFull("no room")

        monkeypatch.setattr(vault._env, "write", full)
        assert vault.update(cube.id, "milk", actor="maya", operation="append").text == "tea\nmilk"
        assert "no room" in caplog.text and (path / "kv" / "k.safetensors").exists()
        monkeypatch.setattr(vault._env, "write", write)
        monkeypatch.setattr(vault._env, "_give_back_spare", full)
        vault.delete(cube.id, actor="maya")
        assert vault.list("maya") == [] and not (path / "kv" / "k.safetensors").exists()


def test_long_reads_let_others_in_between(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of their transactions sees a few rows, and together they see the same as one."""
    with Vault.open(path) as vault:
        cubes = add(vault, *(f"tea {n}" for n in range(7)))
        vault.transition(cubes[2].id, "archived", actor="bo")
        whole = vault.list("maya"), vault.as_of("maya", now()), vault.log()
        for module in ("base", "audit", "chain", "vault"):
            monkeypatch.setattr(f"memos_vllm.vault.{module}.SLICE", 2)
        monkeypatch.setattr(Opened._sliced, "__kwdefaults__", {"under": b"", "after": b"", "rows": 2})
        assert (vault.list("maya"), vault.as_of("maya", now()), vault.log()) == whole
        assert vault.list("maya", states={"archived"}) == [vault.get(cubes[2].id)]
        assert vault.list("maya", after=cubes[2].id, limit=3) == cubes[3:6]
        assert vault.log(LogQuery(actor="bo")) == whole[2][-1:]
        assert vault.log(LogQuery(newest_first=True, limit=5)) == whole[2][:-6:-1]
        assert vault.log(LogQuery(owner="maya", limit=3, after=1)) == whole[2][1:4]
        assert vault.verify_log() == [] == vault.verify_log(vault.log_head())


def filled(vault: Vault) -> tuple[list[MemCube], str]:
    """The memories which the vault took until it was full, and what it said then."""
    held: list[MemCube] = []
    while True:
        try:
            held += add(vault, "x" * 4000)
        except VaultFull as error:
            return held, str(error)


WRITER = """
import sys
from pathlib import Path
from memos_vllm.cube import MemCube
from memos_vllm.vault import Vault
owner = sys.argv[2]
with Vault.open(Path(sys.argv[1]), map_bytes=65536) as vault:
    for n in range(40):
        cube = vault.add([MemCube.plaintext(f"{n} " + "x" * 3000, owner=owner, access=["all"])], actor=owner)[0]
        vault.update(cube.id, f"{n}", actor=owner, operation="append")
        if n % 4 == 3:
            vault.delete(cube.id, actor=owner)
"""


def test_several_processes_write_at_once(path: Path) -> None:
    """Each opens a vault that is not there yet, and grows its map under the others."""
    names = [f"user{n}" for n in range(4)]
    running = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", WRITER, str(path), name], stderr=subprocess.PIPE)
        for name in names
    ]
    failures = [process.communicate(timeout=120)[1] for process in running]
    assert failures == [b""] * 4
    with Vault.open(path, map_bytes=TINY_MAP) as vault:
        assert vault.check() == []
        assert [len(vault.list(name)) for name in names] == [30] * 4
        assert len(vault.readable("all")) == 120 and vault.revision("all") == 4 * 90


@pytest.mark.parametrize("times", [1, 100])
def test_a_map_that_grows_while_it_is_opened(path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """LMDB says so where another process did it between two of its reads of the file."""
    plain, left = lmdb.open, [None] * times

    def grown(*args: Any, **options: Any) -> Any:
        if left:
            left.pop()
            error = lmdb.MapResizedError("mdb_txn_begin")
            error.__dict__["code"] = -30785  # as LMDB's own have one
            raise error
        return plain(*args, **options)

    monkeypatch.setattr(lmdb, "open", grown)
    if times > 1:
        with pytest.raises(StartError, match="Cannot open"):
            Vault.open(path)
        left.clear()
    with Vault.open(path) as vault:
        assert vault.check() == []


def test_a_full_vault_loses_nothing_and_can_be_emptied(path: Path) -> None:
    with Vault.open(path, map_bytes=TINY_MAP, max_bytes=1 << 20) as vault:
        held, message = filled(vault)
        assert "1048576" in message
        assert len(held) > 50
        with pytest.raises(VaultFull):
            add(vault, *("y" * 4000 for _ in range(20)))
        assert vault.list("maya") == held and vault.check() == []
        for cube in held[:40]:
            vault.delete(cube.id, actor="maya")
        assert vault.stats()["map_bytes"] <= (1 << 20) + (1 << 18)
        held = held[40:] + add(vault, *("z" * 4000 for _ in range(10)))
        assert vault.list("maya") == held and vault.check() == []
        assert vault.delete_owner("maya", actor="maya")[0] == len(held)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing_and_can_be_emptied(small_disk: Path) -> None:
    with Vault.open(small_disk / "memory") as vault:
        held, message = filled(vault)
        assert "disk" in message
        assert len(held) > 50 and vault.list("maya") == held and vault.check() == []
        with pytest.raises(VaultFull):
            add(vault, *("y" * 4000 for _ in range(50)))
        for cube in held[:20]:
            vault.delete(cube.id, actor="maya")
        held = held[20:] + add(vault, "z" * 4000)
    with Vault.open(small_disk / "memory") as vault:
        assert vault.list("maya") == held and vault.check() == []
