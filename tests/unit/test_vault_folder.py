"""The memory directory: what becomes a vault, what is refused, and which processes may use it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memos_vllm.errors import NotAVault, VaultUnavailable
from memos_vllm.vault import Vault
from tests.unit.vault_cases import add


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory"


def test_a_new_folder_is_marked(path: Path) -> None:
    Vault.open(path).close()
    assert json.loads((path / "memos.json").read_text()) == {"format": "memos-vault", "schema": 2}
    assert {entry.name for entry in path.iterdir()} == {"memos.json", "vault", "kv"}
    assert path.stat().st_mode & 0o077 == (path / "vault" / "data.mdb").stat().st_mode & 0o077 == 0


def test_a_start_that_was_cut_short_is_resumed(path: Path) -> None:
    path.mkdir()
    (path / "memos.json.new").touch()
    (path / "vault").mkdir()
    (path / "lost+found").mkdir()
    with Vault.open(path) as vault:
        assert vault.check() == []


@pytest.mark.parametrize(
    ("marker", "named"),
    [
        (None, "notes.txt"),
        ("", "not JSON"),
        ("[]", "does not mark"),
        ('{"format": "other", "schema": 2}', "does not mark"),
        ('{"format": "memos-vault"}', "does not mark"),
        ('{"format": "memos-vault", "schema": 99}', "upgrade"),
        ('{"format": "memos-vault", "schema": 1}', "missing or empty"),
        ('{"format": "memos-vault", "schema": 2}', "missing or empty"),
    ],
)
def test_other_folders_are_refused_and_left_alone(path: Path, marker: str | None, named: str) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    if marker is not None:
        (path / "memos.json").write_text(marker)
    before = {entry.name for entry in path.iterdir()}
    with pytest.raises(NotAVault, match=named):
        Vault.open(path)
    assert {entry.name for entry in path.iterdir()} == before


def test_a_file_or_nothing_is_refused(path: Path) -> None:
    with pytest.raises(NotAVault, match="no folder"):
        Vault.open(path, readonly=True)
    path.mkdir()
    with pytest.raises(NotAVault, match="no vault"):
        Vault.open(path, readonly=True)
    (path / "file").touch()
    with pytest.raises(NotAVault, match="no folder"):
        Vault.open(path / "file")
    with pytest.raises(NotAVault, match="no folder"):
        Vault.open(path / "file" / "below")


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "zeros"])
def test_a_damaged_data_file_is_refused(path: Path, damage: str) -> None:
    with Vault.open(path) as vault:
        add(vault, *(f"memory {n} {'x' * 500}" for n in range(200)))
    data = path / "vault" / "data.mdb"
    size = data.stat().st_size
    if damage == "garbage":
        data.write_bytes(os.urandom(size))
    elif damage == "zeros":
        with data.open("r+b") as file:
            file.seek(4 * 4096)
            file.write(bytes(size - 4 * 4096))
    else:
        os.truncate(data, 0 if damage == "empty" else size // 2)
    script = "import sys; from memos_vllm.cli import main; sys.exit(main(sys.argv[1:]))"
    for action, codes in (("check", (1, 2)), ("stats", (0, 2))):  # neither may die of it
        command = [sys.executable, "-c", script, "vault", action, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in codes, done
        assert not done.returncode or re.search(r"data\.mdb|damaged", done.stdout + done.stderr), done
    with pytest.raises(NotAVault, match=r"data\.mdb|damaged"):
        Vault.open(path)


def test_one_process_may_open_a_vault_twice(path: Path) -> None:
    with Vault.open(path) as first, Vault.open(path, readonly=True) as second:
        cube = add(first, "a")[0]
        assert second.get(cube.id) == cube
        with pytest.raises(VaultUnavailable, match="reading only"):
            add(second, "b")
        first.close()
        first.close()
        assert second.get(cube.id) == cube
    with pytest.raises(VaultUnavailable, match="closed"):
        second.get(cube.id)
    with Vault.open(path, readonly=True), pytest.raises(VaultUnavailable, match="reading only"):
        Vault.open(path)


def test_a_fork_may_not_use_the_vault(path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from memos_vllm.errors import VaultUnavailable
from memos_vllm.vault import Vault
vault = Vault.open(Path(sys.argv[1]))
if os.fork() == 0:
    for call in (lambda: vault.list("maya"), lambda: Vault.open(Path(sys.argv[1]))):
        try:
            call()
        except VaultUnavailable as error:
            print(error, flush=True)
    vault.close()
    os._exit(0)
os.wait()
print(vault.list("maya"))
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert [("fork" in line) for line in lines] == [True, True, False] and lines[2] == "[]", done
