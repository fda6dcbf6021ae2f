"""`memos-vllm adapter`: what it prints, how it ends, and that a server sees it at its next request."""

import json
from pathlib import Path

import pytest

from memos_vllm.cli import main
from memos_vllm.errors import NotFound
from memos_vllm.vault import Vault
from tests.unit.adapter_cases import MAYA, TINY, base, registry_of, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A memory directory with one version of an adapter."""
    path = tmp_path / "memory"
    source = write(tmp_path / "in")
    assert main(["adapter", "add", str(path), "maya/poet", str(source), "--model", str(TINY), "--activate"]) == 0
    return path


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    """What a command prints on stdout, or on stderr where it fails."""
    capsys.readouterr()
    assert main(["adapter", *map(str, words)]) == code
    printed = capsys.readouterr()
    return printed.err if code == 2 else printed.out


def test_adding(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = write(tmp_path / "second", seed=1, rank=8)
    told = said(capsys, "add", path, "maya/poet", second, "--model", TINY, "--tag", "more")
    assert told.startswith("maya/poet@v2: stored, rank 8, ")
    third = write(tmp_path / "third", seed=2)
    assert main(["adapter", "add", str(path), "bo/cook", str(third), "--model", str(TINY)]) == 0
    assert "It serves nobody yet; `memos-vllm adapter activate" in capsys.readouterr().err
    shown = json.loads(said(capsys, "show", path, "maya/poet", "--json"))
    assert shown["active"] == 1 and shown["versions"][1]["tags"] == ["more"] and shown["default"]
    assert shown["versions"][0]["author"].startswith("operator:")


def test_what_cannot_be_added(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (write(tmp_path / "dora", use_dora=True), "use_dora is set"),
        (write(tmp_path / "large", rank=65), "rank is 65, the limit here is 64"),
        (write(tmp_path / "other", base_model_name_or_path="x/y"), base().fingerprint),
        (tmp_path / "nothing", "No such file or directory"),
    ]
    for folder, message in cases:
        assert message in said(capsys, "add", path, "maya/new", folder, "--model", TINY, code=2)
    other = tmp_path / "other"
    assert said(capsys, "add", path, "maya/new", other, "--model", TINY, "--base", base().fingerprint)
    large = tmp_path / "large"
    assert said(capsys, "add", path, "maya/large", large, "--model", TINY, "--max-rank", "128", "--activate")
    for name in ("poet", "maya/poet@v1", "maya/Poet"):
        assert "poet" in said(capsys, "add", path, name, other, "--model", TINY, code=2).lower()
    assert "Cannot read the base model" in said(capsys, "add", path, "maya/x", other, "--model", tmp_path, code=2)


def test_listing(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "add", path, "bo/cook", write(tmp_path / "second"), "--model", TINY)
    lines = [json.loads(line) for line in said(capsys, "list", path, "--json").splitlines()]
    assert [(line["owner"], line["name"], line["active"]) for line in lines] == [
        ("bo", "cook", None),
        ("maya", "poet", 1),
    ]
    table = said(capsys, "list", path, "--owner", "maya")
    assert "maya/poet" in table and "v1, default" in table and "tiny" in table and "cook" not in table
    shown = said(capsys, "show", path, "maya/poet")
    assert "activated, active: v1, default" in shown and "shared with: nobody else" in shown and "q_proj" in shown


def test_activation(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "add", path, "maya/poet", write(tmp_path / "second", seed=1), "--model", TINY)
    with Vault.open(path) as vault:
        server = registry_of(vault)
        assert server.resolve(MAYA, "poet").version == 1
        assert said(capsys, "activate", path, "maya/poet").startswith("maya/poet@v2: active")
        assert server.resolve(MAYA, "poet").version == 2
        said(capsys, "activate", path, "maya/poet@v1", "--no-default")
        assert server.resolve(MAYA, "poet").version == 1 and server.default_of(MAYA) is None
        assert said(capsys, "rollback", path, "maya/poet").startswith("maya/poet@v2: active")
        assert said(capsys, "deactivate", path, "maya/poet") == "maya/poet: no version is active\n"
        assert server.get(MAYA, "poet").active is None
        assert "There is no version 7" in said(capsys, "activate", path, "maya/poet@v7", code=2)
        assert vault.log()[-1].actor.startswith("operator:")


def test_removal(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "add", path, "maya/poet", write(tmp_path / "second", seed=1), "--model", TINY)
    assert "poet@v1 is active" in said(capsys, "remove", path, "maya/poet@v1", code=2)
    assert said(capsys, "remove", path, "maya/poet@v2") == "maya/poet@v2: removed\n"
    assert said(capsys, "remove", path, "maya/poet") == "maya/poet: removed\n"
    assert "There is no such adapter" in said(capsys, "remove", path, "maya/poet", code=2)
    with Vault.open(path) as vault:
        assert vault.check() == [] and list((path / "adapters").iterdir()) == []
        with pytest.raises(NotFound):
            registry_of(vault).resolve(MAYA, "poet")


def test_what_is_exported_can_be_added(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out"
    assert said(capsys, "export", path, "maya/poet", target) == f"maya/poet@v1: written to {target}, rank 4, 59.7 kB\n"
    assert "is there already" in said(capsys, "export", path, "maya/poet", target, code=2)
    said(capsys, "add", path, "bo/copy", target, "--model", TINY)
    with Vault.open(path) as vault:
        digests = {version.digest for entry in registry_of(vault).all() for version in entry.versions}
    assert len(digests) == 1


def test_the_vaults_commands_know_adapters(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["vault", "backup", str(path), str(tmp_path / "copy")]) == 0
    assert "1 memories, 0 K/V, 1 adapters" in capsys.readouterr().out
    weights = next((path / "adapters").iterdir()) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["vault", "check", str(path)]) == 1
    assert "changed or cut short" in capsys.readouterr().out
    assert main(["vault", "backup", str(path), str(tmp_path / "second")]) == 0
    assert "1 adapters were missing, damaged or removed" in capsys.readouterr().out
    assert main(["vault", "stats", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapters"] == 1
