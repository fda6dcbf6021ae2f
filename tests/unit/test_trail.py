"""Accesses on their way into the audit log of a real vault."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from memos_vllm.cube import MemCube
from memos_vllm.errors import VaultUnavailable
from memos_vllm.server import trail as trail_module
from memos_vllm.server.trail import AccessTrail
from memos_vllm.vault import LogQuery, Vault


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault


def remember(vault: Vault) -> MemCube:
    (cube,) = vault.add([MemCube.plaintext("Tea.", owner="maya", access=["bo"])], actor="maya")
    return cube


def accesses(vault: Vault) -> list[tuple[str, str, str, object]]:
    log = [entry for entry in vault.log(LogQuery()) if "times" in entry.detail]
    return [(entry.actor, entry.action, entry.owner, entry.detail["times"]) for entry in log]


def test_equal_accesses_are_one_entry(vault: Vault) -> None:
    cube, trail = remember(vault), AccessTrail(vault, "access")
    for _ in range(3):
        trail.note("bo", "read", target=cube.id, owner="maya")
    trail.note("bo", "search", target=cube.id, owner="maya")
    trail.note("maya", "read", target=cube.id, owner="maya")
    trail.note("", "refuse")
    assert accesses(vault) == []
    trail.flush()
    trail.flush()
    assert accesses(vault) == [("bo", "read", "maya", 3), ("bo", "search", "maya", 1)]
    assert vault.verify_log() == []


@pytest.mark.parametrize(
    ("policy", "recorded"), [("changes", []), ("refusals", ["refuse"]), ("access", ["read", "refuse"])]
)
def test_policies(vault: Vault, policy: str, recorded: list[str]) -> None:
    cube, trail = remember(vault), AccessTrail(vault, policy)  # type: ignore[arg-type]
    trail.note("bo", "read", target=cube.id, owner="maya")
    trail.note("bo", "refuse", target=cube.id)
    trail.flush()
    assert [action for _, action, _, _ in accesses(vault)] == recorded


def test_a_forgotten_users_accesses_are_not_written(vault: Vault) -> None:
    cube, trail = remember(vault), AccessTrail(vault, "access")
    trail.note("bo", "read", target=cube.id, owner="maya")
    trail.note("cy", "read", target=cube.id, owner="maya")
    with trail.forgetting("bo"):
        vault.forget("bo", actor="bo")
        trail.note("bo", "refuse")
    trail.flush()
    assert [actor for actor, *_ in accesses(vault)] == ["cy"]
    assert sum(vault.traces_of("bo").values()) == 0


def test_nor_are_those_of_a_user_whom_another_process_forgot(vault: Vault) -> None:
    cube, trail = remember(vault), AccessTrail(vault, "access")
    trail.note("bo", "read", target=cube.id, owner="maya")
    trail.note("cy", "read", target=cube.id, owner="maya")
    vault.forget("bo", actor="bo")
    trail.flush()
    assert [actor for actor, *_ in accesses(vault)] == ["cy"] and vault.traces_anywhere("bo") == {}


def test_what_cannot_be_written_waits(vault: Vault, tmp_path: Path) -> None:
    cube = remember(vault)
    closed = Vault.open(tmp_path / "memory", readonly=True)
    trail = AccessTrail(closed, "access")
    trail.note("bo", "read", target=cube.id, owner="maya")
    with pytest.raises(VaultUnavailable):
        trail.flush()
    trail._vault = vault
    trail.flush()
    assert len(accesses(vault)) == 1
    closed.close()


def test_many_accesses_share_a_transaction(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    write = vault.record_all

    def record_all(entries: Sequence[Any], **options: Any) -> None:
        calls.append(len(entries))
        write(entries, **options)

    monkeypatch.setattr(vault, "record_all", record_all)
    trail = AccessTrail(vault, "access")
    for number in range(trail_module.AT_ONCE + 1):
        trail.note(f"user-{number}", "refuse")
    trail.flush()
    assert calls == [trail_module.AT_ONCE, 1] and vault.verify_log() == []


def test_what_waits_at_an_orderly_stop_is_written(vault: Vault) -> None:
    async def run() -> None:
        trail = AccessTrail(vault, "access")
        trail.start()
        await asyncio.sleep(0)
        trail.note("bo", "refuse")

    asyncio.run(run())
    assert [actor for actor, *_ in accesses(vault)] == ["bo"]


def test_a_flood_is_counted(vault: Vault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(trail_module, "MAX_PENDING", 2)
    trail = AccessTrail(vault, "access")
    for number in range(5):
        trail.note(f"user-{number}", "refuse")
    with caplog.at_level(logging.ERROR):
        trail.flush()
    assert len(accesses(vault)) == 2 and "3 accesses are missing" in caplog.text
