"""The registry: typed entries that are audited, forgotten with their owner, and refused when damaged."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from memos_vllm.errors import BadInput, VaultUnavailable
from memos_vllm.vault import LogQuery, Vault, registry
from memos_vllm.vault.env import Txn


class Quota(msgspec.Struct, frozen=True):
    cubes: int


class Group(msgspec.Struct, frozen=True):
    members: tuple[str, ...]
    roles: dict[str, str] = {}
    recipient: str = ""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory"


@pytest.fixture
def vault(path: Path) -> Iterator[Vault]:
    with Vault.open(path) as vault:
        yield vault
        assert vault.check() == []


def test_entries_come_back_after_a_restart(path: Path) -> None:
    with Vault.open(path) as vault:
        vault.put_entry("quota", "maya", Quota(5), actor="ops", owner="maya")
        vault.put_entry("quota", "bo", Quota(6), actor="ops", owner="bo")
        vault.put_entry("group", "group:team", Group(("maya", "bo")), actor="ops")
    with Vault.open(path, readonly=True) as vault:
        assert vault.get_entry("quota", "maya", Quota) == Quota(5)
        assert vault.get_entry("quota", "cy", Quota) is None
        assert vault.entries("quota", Quota) == {"maya": Quota(5), "bo": Quota(6)}
        assert vault.entries("key", Quota) == {}


def test_the_revision_grows_with_every_change(vault: Vault) -> None:
    seen = [vault.registry_revision()]
    vault.put_entry("quota", "maya", Quota(5), actor="ops")
    seen.append(vault.registry_revision())
    vault.put_entry("quota", "maya", Quota(6), actor="ops")
    seen.append(vault.registry_revision())
    assert not vault.delete_entry("quota", "bo", actor="ops") and vault.registry_revision() == seen[-1]
    assert vault.delete_entry("quota", "maya", actor="ops")
    seen.append(vault.registry_revision())
    assert seen == sorted(set(seen))
    assert vault.get_entry("quota", "maya", Quota) is None


def test_changes_are_in_the_log_without_their_values(vault: Vault) -> None:
    vault.put_entry("quota", "small", Quota(5), actor="ops", owner="maya")
    vault.delete_entry("quota", "small", actor="ops")
    put, delete = vault.log(LogQuery(owner="maya"))
    assert (put.action, delete.action) == ("quota.put", "quota.delete")
    assert put.actor == "ops" and put.target == delete.target == "small" and put.detail == {}


def test_an_entry_needs_a_kind_and_a_name(vault: Vault) -> None:
    for kind, name in (("", "a"), ("a", "")):
        with pytest.raises(BadInput):
            vault.put_entry(kind, name, Quota(1), actor="ops")


def test_forgetting_takes_entries_and_memberships(vault: Vault) -> None:
    vault.put_entry("quota", "1", Quota(5), actor="ops", owner="maya")
    vault.put_entry("quota", "maya", Quota(6), actor="ops")
    vault.put_entry("group", "a", Group(("maya", "bo"), {"maya": "kept"}, "maya"), actor="ops")
    vault.put_entry("group", "b", Group(("bo",)), actor="ops")

    def forget(txn: Txn) -> tuple[int, int, int]:
        before = registry.traces(txn, "maya")
        return before, registry.forget(txn, "maya"), registry.traces(txn, "maya")

    revision = vault.registry_revision()
    assert vault._env.write(forget) == (2, 2, 0)
    assert vault.entries("quota", Quota) == {"maya": Quota(6)}
    assert vault.entries("group", Group) == {"a": Group(("bo",), {"maya": "kept"}, ""), "b": Group(("bo",))}
    assert vault.registry_revision() > revision


def test_another_form_is_an_error(vault: Vault) -> None:
    vault.put_entry("quota", "maya", Group(("bo",)), actor="ops")
    with pytest.raises(VaultUnavailable, match="quota 'maya'"):
        vault.get_entry("quota", "maya", Quota)
    vault.delete_entry("quota", "maya", actor="ops")


def test_damage_is_named(path: Path) -> None:
    with Vault.open(path) as vault:
        vault.put_entry("quota", "maya", Quota(5), actor="ops")

        def damage(txn: Txn) -> bytes:
            key, stored = next(iter(txn.scan("registry")))
            txn.put("registry", key, stored[:-1] + b"?")
            return key

        key = vault._env.write(damage)
        assert vault.check() == [f"registry {key.hex()}: checksum mismatch"]
        with pytest.raises(VaultUnavailable, match="damaged"):
            vault.entries("quota", Quota)
