"""The engine's copies of adapters: whole or not there, kept while in use by any process, gone with their server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from memos_vllm.errors import StartError
from memos_vllm.parameter import staging
from memos_vllm.parameter.staging import Stage

OTHER = """
import sys, time
from pathlib import Path
from memos_vllm.parameter.staging import Stage
stage = Stage.open(Path(sys.argv[1]))
hold = stage.hold(7)
print("held", flush=True)
sys.stdin.read()
hold.release()
stage.close()
"""
"""Another API server: it holds number 7 until its stdin is closed."""


def fill(folder: Path) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"w" * 1000)


def refuse(folder: Path) -> None:
    raise OSError(28, "No space left on device")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "stage"


@pytest.fixture
def stage(folder: Path) -> Stage:
    return Stage.open(folder)


def other_server(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OTHER, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_copy_is_there_until_it_is_removed(stage: Stage) -> None:
    assert not stage.has(7)
    stage.copy(7, fill)
    assert stage.has(7) and sorted(path.name for path in stage.path(7).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    (copy,) = stage.copies()
    assert (copy.number, copy.bytes) == (7, 1002)
    stage.remove(7)
    assert not stage.has(7) and stage.copies() == []


def test_what_cannot_be_copied_leaves_nothing(stage: Stage, folder: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        stage.copy(7, refuse)
    assert [path.name for path in folder.iterdir()] == ["alive"]


def test_what_a_cleaner_of_temporary_files_left_is_made_anew(stage: Stage) -> None:
    stage.copy(7, fill)
    (stage.path(7) / "adapter_config.json").unlink()
    assert not stage.has(7)
    stage.copy(7, fill)
    assert stage.has(7)


def test_two_make_one_copy(folder: Path) -> None:
    """Two API servers at once: the second one waits, and finds the copy of the first."""
    begun, made = threading.Event(), []

    def slowly(folder: Path) -> None:
        made.append(folder)
        begun.set()
        time.sleep(0.2)
        fill(folder)

    stages = [Stage.open(folder) for _ in range(2)]
    first = threading.Thread(target=stages[0].copy, args=(7, slowly))
    first.start()
    assert begun.wait(10)
    stages[1].copy(7, slowly)
    first.join()
    assert stages[0].has(7) and len(made) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["7", "alive"]


def test_copies_are_told_from_the_one_used_longest_ago(stage: Stage) -> None:
    for number, used in ((3, 300), (1, 100), (2, 200)):
        stage.copy(number, fill)
        os.utime(stage.path(number), (used, used))
    assert [copy.number for copy in stage.copies()] == [1, 2, 3]
    stage.used(1, 400)
    assert [copy.number for copy in stage.copies()] == [2, 3, 1]


def test_who_holds_keeps_others_from_removing_and_who_removes_from_holding(stage: Stage) -> None:
    first, second = stage.hold(7), stage.hold(7)
    assert first is not None and second is not None
    assert stage.seize(7) is None
    first.release()
    assert stage.seize(7) is None
    second.release()
    seized = stage.seize(7)
    assert seized is not None and stage.hold(7) is None
    stage.remove(7)
    held = stage.hold(7)  # of the copy that will be made next: the old lock went with the old one
    assert held is not None
    seized.release()
    assert stage.seize(7) is None
    held.release()


@pytest.mark.parametrize("killed", [False, True])
def test_another_process_holds_until_it_releases_or_dies(stage: Stage, folder: Path, killed: bool) -> None:
    process = other_server(folder)
    assert stage.seize(7) is None
    if killed:
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    seized = stage.seize(7)
    assert seized is not None
    seized.release()


def test_the_last_server_to_leave_removes_the_folder(stage: Stage, folder: Path) -> None:
    process = other_server(folder)
    stage.close()
    assert folder.is_dir()
    process.communicate(timeout=30)
    assert not folder.exists()


def test_a_start_removes_what_killed_servers_left_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "SHARED_MEMORY", tmp_path / "none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living, dead = staging.new_folder(1), staging.new_folder(1)
    assert {living.parent, dead.parent} == {tmp_path}
    (tmp_path / "memos-vllm-elsewhere").mkdir()
    process = other_server(dead)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    stage = Stage.open(living)
    staging.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, "memos-vllm-elsewhere"])
    stage.close()


def test_a_sweep_and_an_opening_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that was just made is not locked yet: it may be swept, and is made again."""
    monkeypatch.setattr(staging, "SHARED_MEMORY", tmp_path / "none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sweeper = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import tempfile, sys; tempfile.tempdir = sys.argv[1]\n"
            "from memos_vllm.parameter.staging import sweep\nprint('ready', flush=True)\nwhile True: sweep()",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert sweeper.stdout is not None and sweeper.stdout.readline() == "ready\n"
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            stage = Stage.open(staging.new_folder(1))
            stage.copy(7, fill)
            assert stage.has(7) and (stage.folder / "alive").exists()
            stage.close()
    finally:
        sweeper.kill()
        sweeper.communicate()


def test_the_folder_is_nobody_elses(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o755)
    with pytest.raises(StartError, match="not a private folder"):
        Stage.open(open_to_all)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(StartError, match="not a private folder"):
        Stage.open(link)


def test_room_is_looked_for_in_ram_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "SHARED_MEMORY", tmp_path)
    assert staging.new_folder(1).parent == tmp_path
    assert staging.new_folder(1 << 60).parent == Path(tempfile.gettempdir())
