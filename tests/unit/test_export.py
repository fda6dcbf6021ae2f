"""Exports: what leaves, what stays, and how a leaked text is led back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memos_vllm import cli
from memos_vllm.cube import MemCube
from memos_vllm.errors import BadInput
from memos_vllm.governance.export import export, trace
from memos_vllm.governance.watermark import strip
from memos_vllm.vault import LogQuery, Vault


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault.open(tmp_path / "memory")


def remember(vault: Vault, text: str, **fields: Any) -> MemCube:
    (cube,) = vault.add([MemCube.plaintext(text, owner="maya", **fields)], actor="maya")
    return cube


def contents(vault: Vault, **options: Any) -> list[Any]:
    _, cubes = export(vault, "maya", recipient="doctor", actor="maya", **options)
    return [cube["payload"]["content"] for cube in cubes]


def test_an_export_is_redacted_and_marked(vault: Vault) -> None:
    remember(vault, "Ana's number is +351 912 345 678.", access=["bo"], metadata={"mail": "ana@example.org", "n": 3})
    number, cubes = export(vault, "maya", recipient="doctor", actor="maya")
    (cube,) = cubes
    assert strip(cube["payload"]["content"]) == "Ana's number is [phone]."
    assert cube["meta"]["metadata"] == {"mail": "[email]", "n": 3}
    assert cube["meta"]["access"] == [] and cube["meta"]["watermark"] == number
    found = trace(vault, "They wrote: " + cube["payload"]["content"])
    assert [(name, entry and entry.recipient) for name, entry in found.items()] == [(number, "doctor")]


def test_marks_hide_nothing_from_redaction(vault: Vault) -> None:
    remember(vault, "card 4111 1111\u2063 1111 1111, mail ana\u2063@example.org", tags=["ana\u2063@example.org"])
    _, cubes = export(vault, "maya", recipient="doctor", actor="maya")
    (cube,) = cubes
    assert strip(cube["payload"]["content"]) == "card [payment card], mail [email]"
    assert cube["meta"]["tags"] == ["[email]"]


def test_who_owns_and_who_wrote_does_not_leave(vault: Vault) -> None:
    cube = MemCube.plaintext("tea", owner="maya@example.org", access=["bo@example.org"])
    vault.add([cube], actor="maya@example.org")
    vault.update(cube.id, "green tea", actor="bo@example.org")
    _, cubes = export(vault, "maya@example.org", recipient="doctor", actor="maya@example.org")
    (left,) = cubes
    assert "example" not in json.dumps(left) and left["meta"]["parents"] == []


def test_structured_content_stays_json(vault: Vault) -> None:
    content = {"card": 4111111111111111, "year": 2024, "ok": True, "who": ["ana@example.org", None, 1.5]}
    data = {"meta": {}, "payload": {"type": "plaintext", "format": "json", "content": content}}
    vault.add([MemCube.from_json(data, owner="maya")], actor="maya")
    (redacted,) = contents(vault, marked=False)
    assert redacted == {"card": "[payment card]", "year": 2024, "ok": True, "who": ["[email]", None, 1.5]}
    (marked,) = contents(vault)
    assert json.loads(json.dumps(marked)) == marked and list(trace(vault, json.dumps(marked, ensure_ascii=False)))


def test_what_does_not_leave(vault: Vault) -> None:
    remember(vault, "old", expires="2020-01-01")
    ill = remember(vault, "ill")
    vault.edit(ill.id, actor="maya", sensitivity=["health"])
    remember(vault, "tea")
    vault.add([MemCube.plaintext("foreign", owner="bo", access=["maya"])], actor="bo")
    assert contents(vault, marked=False) == ["ill", "tea"]
    assert contents(vault, marked=False, clearance=frozenset()) == ["tea"]
    assert contents(vault, marked=False, clearance=frozenset(("health",))) == ["ill", "tea"]


def test_untouched_where_asked(vault: Vault) -> None:
    remember(vault, "Write to ana@example.org.")
    assert contents(vault, redacted=False, marked=False) == ["Write to ana@example.org."]


def test_an_export_is_in_the_audit_log_and_goes_with_its_user(vault: Vault) -> None:
    remember(vault, "tea")
    number, cubes = export(vault, "maya", recipient="doctor", actor="operator:cy")
    (text,) = (cube["payload"]["content"] for cube in cubes)
    (entry,) = vault.log(LogQuery(action="export.put"))
    assert (entry.actor, entry.owner, entry.target) == ("operator:cy", "maya", number)
    vault.forget("maya", actor="maya")
    assert trace(vault, text) == {number: None}
    assert sum(vault.traces_of("maya").values()) == 0


def test_a_forgotten_recipient_is_no_longer_named(vault: Vault) -> None:
    remember(vault, "tea")
    number, cubes = export(vault, "maya", recipient="doctor", actor="maya")
    (text,) = (cube["payload"]["content"] for cube in cubes)
    vault.forget("doctor", actor="doctor")
    found = trace(vault, text)[number]
    assert found is not None and found.recipient == ""


def test_marks_of_other_vaults_are_none(vault: Vault, tmp_path: Path) -> None:
    remember(vault, "tea")
    (text,) = contents(vault)
    with Vault.open(tmp_path / "other") as other:
        assert trace(other, text) == {}
        other.add([MemCube.plaintext("x", owner="maya")], actor="maya")
        assert contents(other) and trace(other, text) == {}


def test_a_recipient_has_a_name(vault: Vault) -> None:
    with pytest.raises(BadInput):
        export(vault, "maya", recipient="", actor="maya")


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = str(tmp_path / "memory"), tmp_path / "maya.jsonl"
    with Vault.open(Path(folder)) as vault:
        for number in range(3):
            remember(vault, f"Tea {number} from maya@example.org.")
    words = ["export", folder, "maya", "--to", "doctor", "--output", str(file)]
    assert cli.main(words) == 0 and "3 memories" in capsys.readouterr().err
    cubes = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(cubes) == 3 and file.stat().st_mode & 0o077 == 0
    assert cli.main(words) == 2 and "File exists" in capsys.readouterr().err
    leak = tmp_path / "leak.txt"
    leak.write_text(cubes[1]["payload"]["content"])
    assert cli.main(["trace", folder, str(leak)]) == 0
    assert "memories of maya to doctor" in capsys.readouterr().out
    assert cli.main(["trace", folder, str(file)]) == 0
    leak.write_text("Tea.")
    assert cli.main(["trace", folder, str(leak)]) == 1
