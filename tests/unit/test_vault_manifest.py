"""The KV manifest of a vault: pins, pieces, superseded versions, totals, and the uses of cubes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_vllm.errors import NotFound
from memos_vllm.vault import KVRecord, Uses, Vault, keys
from memos_vllm.vault.records import USE_HALF_LIFE, decode, encode
from tests.unit.vault_cases import add, kv_for


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault
        assert vault.check() == []


class OldRecord(msgspec.Struct, frozen=True):
    """A row as version 0.1 wrote it."""

    key: str
    owner: str
    cube_id: str
    cube_version: int
    path: str
    tokens: int
    bytes: int
    checksum: str
    created: str
    build_seconds: float


def test_a_row_of_the_version_before_is_read() -> None:
    old = OldRecord("k", "maya", "", 1, "kv/k", 3, 10, "", "2026-01-01", 0.5)
    stored = encode(old, "kv", b"k")
    record = decode(stored, KVRecord, "kv", b"k")
    assert (record.deviation, record.pinned, record.kind) == (b"", False, "cube")
    assert msgspec.structs.asdict(record) | msgspec.structs.asdict(old) == msgspec.structs.asdict(record)


def test_an_update_takes_the_kv_of_the_old_text_along(vault: Vault) -> None:
    (cube,) = add(vault, "tea")
    record = kv_for(vault, cube, "k1")
    vault.put_kv(record)
    same = vault.update(cube.id, "tea", actor="maya", metadata={"topic": "drinks"})
    assert vault.kv_of(cube.id) == [msgspec.structs.replace(record, cube_version=same.version)]
    vault.update(cube.id, "coffee", actor="maya")
    assert vault.kv_of(cube.id) == [] and not (vault.path / record.path).exists()
    assert vault.stats()["kv_bytes"] == 0


def test_a_pin_is_of_the_cube_and_of_its_kv(vault: Vault) -> None:
    cube, other = add(vault, "tea", "milk")
    vault.put_kv(kv_for(vault, cube, "k1"))
    vault.put_kv(kv_for(vault, other, "k2"))
    assert vault.pinned_keys() == set()
    revision = vault.revision("maya")
    pinned = vault.prioritise(cube.id, "pinned")
    assert (pinned.version, pinned.header.priority, pinned.header.updated) == (1, "pinned", cube.header.updated)
    assert vault.get(cube.id) == pinned and vault.revision("maya") > revision
    assert vault.pinned_keys() == {"k1"} and vault.kv_of(cube.id)[0].pinned
    vault.put_kv(kv_for(vault, cube, "k3"))
    assert vault.pinned_keys() == {"k1", "k3"}
    vault.drop_kv("k3")
    vault.prioritise(cube.id, "mid")
    assert vault.pinned_keys() == set() and not vault.kv_of(cube.id)[0].pinned
    with pytest.raises(NotFound):
        vault.prioritise("0" * 32, "pinned")


def test_pieces_go_with_their_owner(vault: Vault) -> None:
    cube, other = add(vault, "tea"), add(vault, "milk", owner="tom")
    for key, owner in (("p1", "maya"), ("p2", "maya"), ("p3", "tom"), ("scaffold", "")):
        kind = "piece" if owner else "scaffold"
        record = msgspec.structs.replace(
            kv_for(vault, cube[0], key), cube_id="", cube_version=0, owner=owner, kind=kind
        )
        vault.put_kv(record)
    vault.put_kv(kv_for(vault, cube[0], "c1"))
    count, gone = vault.delete_owner("maya", actor="maya")
    assert (count, set(gone)) == (1, {"p1", "p2", "c1"})
    assert vault.known_keys() == {"p3", "scaffold"}
    assert vault.delete(other[0].id, actor="tom") == [] and vault.known_keys() == {"p3", "scaffold"}
    assert vault.delete_owner("tom", actor="tom") == (0, ["p3"])


def test_known_keys_follow_every_change(vault: Vault) -> None:
    first, second = add(vault, "tea", "milk")
    assert vault.known_keys() == frozenset()
    vault.put_kv(kv_for(vault, first, "k1"))
    assert vault.known_keys() is vault.known_keys() == {"k1"}
    with Vault.open(vault.path) as same:
        same.put_kv(kv_for(vault, second, "k2"))
    assert vault.known_keys() == {"k1", "k2"}
    vault.delete(first.id, actor="maya")
    assert vault.known_keys() == {"k2"}


def test_rows_without_their_file_are_pruned(vault: Vault) -> None:
    first, second = add(vault, "tea", "milk")
    lost = kv_for(vault, first, "k1")
    vault.put_kv(lost)
    vault.put_kv(kv_for(vault, second, "k2"))
    assert vault.prune_kv() == []
    (vault.path / lost.path).unlink()
    assert vault.prune_kv() == [lost]
    assert vault.known_keys() == {"k2"} and vault.stats()["kv_bytes"] == 10


def test_the_total_of_a_vault_that_kept_none(tmp_path: Path) -> None:
    with Vault.open(tmp_path) as vault:
        first, second = add(vault, "tea", "milk")
        vault.put_kv(kv_for(vault, first, "k1"))
        vault._env.write(lambda txn: txn.delete("revisions", keys.digest("\0bytes of the manifest")))
        assert vault.stats()["kv_bytes"] == 10
        vault.put_kv(kv_for(vault, second, "k2"))
        assert vault.stats()["kv_bytes"] == 20
        vault.drop_kv("k1")
        assert vault.stats()["kv_bytes"] == 10


def test_uses_add_up_cool_down_and_go_with_their_cube(vault: Vault) -> None:
    first, second = add(vault, "tea", "milk")
    vault.add_uses({first.id: 2, "0" * 32: 1}, 1000.0)
    vault.add_uses({first.id: 1}, 1000.0 + USE_HALF_LIFE)
    assert vault.uses_of([first.id, second.id]) == {first.id: Uses(3, 2.0, 1000.0 + USE_HALF_LIFE), second.id: Uses()}
    vault.delete(first.id, actor="maya")
    assert vault.uses_of([first.id]) == {first.id: Uses()}


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(1, 9))
def test_heat_never_grows_by_waiting(first: float, later: float, count: int) -> None:
    uses = Uses().more(count, first)
    assert uses.heat_at(first + later) <= count
    assert uses.heat_at(first - later) == count
    assert uses.heat_at(first + USE_HALF_LIFE) == pytest.approx(count / 2)
