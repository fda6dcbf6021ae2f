"""`memos-vllm vault`: what it prints, how it ends, and that nothing of it needs a server to stop but compaction."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memos_vllm.cli import main
from memos_vllm.vault import Vault
from tests.unit.vault_cases import add


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    with Vault.open(path) as vault:
        tea = add(vault, "tea", "milk", access=("bo",))[0]
        vault.update(tea.id, "green tea", actor="maya")
        add(vault, "the key is under the mat", owner="bo")
    return path


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    """What a command prints on stdout, or on stderr where it fails."""
    assert main(["vault", *map(str, words)]) == code
    printed = capsys.readouterr()
    return printed.err if code == 2 else printed.out


def break_record(path: Path, database: str) -> None:
    with Vault.open(path) as vault:
        key, stored = vault._env.read(lambda txn: next(iter(txn.scan(database))))
        vault._env.write(lambda txn: txn.put(database, key, stored[:-1] + b"?"))


def test_stats(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = json.loads(said(capsys, "stats", path, "--json"))
    assert numbers["cubes"] == 3 and numbers["versions"] == 1
    shown = said(capsys, "stats", path)
    assert "cubes" in shown and "map bytes" in shown


def test_check(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "check", path) == f"{path}: no problems\n"
    with Vault.open(path):
        assert main(["vault", "check", str(path)]) == 0
        assert "pages of the data file were not checked" in capsys.readouterr().err
    break_record(path, "cubes")
    assert "checksum mismatch" in said(capsys, "check", path, code=1)


def test_backup_and_restore(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "a long name of a folder" / ("x" * 100)
    with Vault.open(path):
        shown = said(capsys, "backup", path, copy)
    assert shown.splitlines()[0].startswith(f"{path} → {copy}: 3 memories, 0 K/V, ")
    shutil.rmtree(path)
    assert "3 memories" in said(capsys, "restore", copy, path)
    with Vault.open(path, readonly=True) as vault:
        assert [entry.action for entry in vault.log()[-1:]] == ["vault.restore"]
        assert vault.log()[-1].actor.startswith("operator:")
    assert "is there already; name a new folder" in said(capsys, "restore", copy, path, code=2)
    assert "is there already; name a new folder" in said(capsys, "backup", path, copy, code=2)
    assert "There is no vault in" in said(capsys, "restore", tmp_path, tmp_path / "new", code=2)


def test_compact(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Vault.open(path):
        assert "stop the server" in said(capsys, "compact", path, code=2)
    assert said(capsys, "compact", path).startswith(f"{path}: ")


def test_reindex(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Vault.open(path) as vault:
        vault._env.write(lambda txn: txn.clear("terms"))
        assert vault.check() != []
    assert said(capsys, "reindex", path) == f"{path}: 3 memories in the index\n"
    with Vault.open(path) as vault:
        assert vault.check() == []


def test_log(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in said(capsys, "log", path, "--json").splitlines()]
    assert [line["action"] for line in lines] == ["vault.create", "add", "add", "update", "add"]
    assert "green" not in json.dumps(lines)
    owned = said(capsys, "log", path, "--json", "--owner", "maya", "--did", "add", "--last", "1").splitlines()
    assert [json.loads(line)["seq"] for line in owned] == [3]
    assert said(capsys, "log", path, "--json", "--since", "2100-01-01") == ""
    assert "update" in said(capsys, "log", path, "--target", lines[3]["target"])
    assert "ISO-8601" in said(capsys, "log", path, "--since", "yesterday", code=2)


def test_verify(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    anchor = said(capsys, "log", path, "--head").strip()
    assert anchor.startswith("5:") and anchor in said(capsys, "verify", path)
    with Vault.open(path) as vault:
        add(vault, "more")
    assert "whole" in said(capsys, "verify", path, "--anchor", anchor)
    assert "differs from the anchor" in said(capsys, "verify", path, "--anchor", f"5:{'0' * 64}", code=1)
    assert "vault log --head" in said(capsys, "verify", path, "--anchor", "x", code=2)
    break_record(path, "audit")
    assert said(capsys, "verify", path, code=1) == "audit entry 1: changed, its hash differs\n"


def test_forgotten(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cubes: 2\n" in said(capsys, "forgotten", path, "maya", code=1)
    with Vault.open(path) as vault:
        vault.forget("maya", actor="ops")
    assert said(capsys, "forgotten", path, "maya") == f"{path}: no row tells of 'maya'\n"


def test_a_folder_without_a_vault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("stats", "check", "log", "verify"):
        assert "There is no vault in" in said(capsys, action, tmp_path, code=2)


@pytest.mark.parametrize(
    "words",
    [
        *("vault backup DIR COPY", "vault compact DIR", "vault reindex DIR", "export DIR maya --to bo"),
        *("key revoke DIR 1", "key require DIR on", "group add DIR team maya", "group remove DIR team"),
        *("quota set DIR maya --rps 1", "quota clear DIR maya"),
    ],
)
def test_no_command_makes_a_vault_where_a_path_is_mistyped(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "not mounted"
    empty.mkdir()
    for folder in (tmp_path / "typo", empty):
        paths = {"DIR": str(folder), "COPY": str(tmp_path / "copy")}
        assert main([paths.get(word, word) for word in words.split()]) == 2
        assert "There is no " in capsys.readouterr().err
    assert [*tmp_path.rglob("*")] == [empty]


def test_lines_are_plain_where_nobody_watches(path: Path) -> None:
    """No colours, no wrapping and no progress in what a script reads."""
    command = [sys.executable, "-m", "memos_vllm.cli", "vault", "verify", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and "\x1b" not in done.stdout and done.stderr == ""
