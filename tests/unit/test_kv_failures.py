"""A worker's KV store when files, disks and threads fail: each is reported, none stops the store."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from memos_vllm.activation import store as store_module
from memos_vllm.activation.files import KVLabel, read_kv, write_kv
from memos_vllm.activation.payload import KVCube, Payload
from memos_vllm.activation.store import Fetched, KVStore
from tests.unit.kv_cases import SHAPE, Gate, cube, fetched, first, label, on_disk, path_of, same


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KVStore]:
    found = KVStore(tmp_path, 0, 1)
    yield found
    found.close()


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "truncated":
        path.write_bytes(whole[:-1])
    elif how == "flipped":
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "of other tokens":
        write_kv(path, label("a", tokens="d"), cube())
    elif how == "of another identity":
        write_kv(path, KVLabel("a", "e" * 32, "c" * 64), cube())
    elif how == "of another shape":
        write_kv(path, label("a"), KVCube(cube().k[:, :4], cube().v[:, :4], 0))
    elif how == "of another key":
        write_kv(path, label("b"), cube())
    else:
        write_kv(path, label("a"), cube().pack("int8"))


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "flipped",
        "empty",
        "of other tokens",
        "of another identity",
        "of another shape",
        "of another key",
        "in 8 bit",
    ],
)
def test_a_bad_file_is_reported_and_removed(store: KVStore, how: str) -> None:
    """Then the cube counts as missing, and is captured anew."""
    path = on_disk(store, "a")
    damage(path, how)
    report = fetched(store, "a")
    assert not report.ok and report.error.startswith("KVUnusable: ")
    assert not path.exists()
    assert store.get("a", label("a")) is None


def test_a_missing_file_and_a_vanished_folder_are_reported(store: KVStore) -> None:
    assert "No such file" in fetched(store, "a").error
    path = on_disk(store, "a")
    path.unlink()
    path.parent.rmdir()
    assert "No such file" in fetched(store, "a").error
    store.keep("a", label("a"), cube())
    assert first(store.written).ok, "the folder is made anew"


def test_a_file_that_cannot_be_opened_stays(store: KVStore) -> None:
    """It may be readable again. Root may open any file, but no folder."""
    path = on_disk(store, "a")
    path.chmod(0)
    if os.access(path, os.R_OK):
        path.unlink()
        path.mkdir()
    report = fetched(store, "a")
    assert not report.ok and "cannot be read" in report.error
    assert path.exists()


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError(), SystemExit(1), KeyboardInterrupt()])
def test_whatever_a_reader_dies_of_is_reported(
    store: KVStore, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = on_disk(store, "a")

    def die(*args: object) -> Payload:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "read_payload", die)
        for _ in range(5):  # more often than there are threads
            report = fetched(store, "a")
            assert not report.ok and type(error).__name__ in report.error
    assert path.exists()
    assert fetched(store, "a").ok


def test_whatever_a_writer_dies_of_is_reported(store: KVStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: object) -> None:
        raise SystemExit(1)

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_kv", die)
        store.keep("a", label("a"), cube())
        assert first(store.written).error == "SystemExit: 1"
    assert same(store.get("a", label("a")), cube())
    store.keep("b", label("b"), cube())
    assert first(store.written).ok


def test_a_hanging_disk_fails_the_fetch_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = KVStore(tmp_path, 0, 1, io_threads=1, fetch_seconds=0.05)
    on_disk(store, "a")
    on_disk(store, "b")
    gate = Gate(monkeypatch)
    store.fetch("a", label("a"), SHAPE)
    store.fetch("b", label("b"), SHAPE)  # waits behind it
    reports: list[Fetched] = []
    while len(reports) < 2:
        reports += store.poll()
    assert {(report.key, report.ok) for report in reports} == {("a", False), ("b", False)}
    assert all("not read within" in report.error for report in reports)
    gate.opened.set()
    store.close()
    assert store.poll() == []
    assert store.num_resident == 0


def test_a_slow_disk_does_not_pile_up_captures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = KVStore(tmp_path, 0, 1, unwritten_bytes=2 * cube().nbytes)
    opened = threading.Event()

    def slow(*args: object) -> None:
        assert opened.wait(20)

    monkeypatch.setattr(store_module, "write_kv", slow)
    for key in "abc":
        store.keep(key, label(key), cube())
    (refused,) = store.written()
    assert refused.key == "c" and "wait for the disk" in refused.error
    assert store.num_resident == 3
    opened.set()
    store.close()
    assert [report.ok for report in store.written()] == [True, True]


LIMITED = """
    import resource, sys, time
    from pathlib import Path
    import torch
    from memos_vllm.activation.files import KVLabel
    from memos_vllm.activation.payload import KVCube
    from memos_vllm.activation.store import KVStore
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    store = KVStore(Path(sys.argv[1]), 0, 1)
    for key, tokens in (("large", 100), ("small", 5)):
        k = torch.zeros(2, tokens, 2, 64)
        store.keep(key, KVLabel(key, "b" * 32, "c" * 64), KVCube(k, k, 0))
    store.close()
    for report in store.written():
        print(report.key, report.ok, report.error)
    print(store.num_resident)
"""


def test_a_file_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].startswith("large False OSError: ") and os.strerror(errno.EFBIG) in lines[0]
    assert lines[1:] == ["small True ", "2"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["small.0of1.safetensors"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_reported_and_leaves_nothing_behind(small_disk: Path) -> None:
    store = KVStore(small_disk, 0, 1)
    zeros = torch.zeros(2, 60, 2, 64)
    for key in ("one", "two"):
        store.keep(key, label(key), KVCube(zeros, zeros, 0), write=False)
        store.write(
            key, label(key), KVCube(zeros[:, :20], zeros[:, :20], 0) if key == "one" else KVCube(zeros, zeros, 0)
        )
    store.close()
    good, bad = store.written()
    assert good.ok and not bad.ok and os.strerror(errno.ENOSPC) in bad.error
    assert store.num_resident == 2
    assert len([path for path in small_disk.rglob("*") if path.is_file()]) == 1
    assert read_kv(path_of(store, "one"), label("one")).k.shape == (2, 20, 2, 64)
