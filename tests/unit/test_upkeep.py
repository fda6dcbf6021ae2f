"""Demotion in the background, the count of uses, and what the engine's metrics teach the cost model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from memos_vllm.errors import VaultUnavailable
from memos_vllm.server.metrics import engine_loads
from memos_vllm.server.upkeep import MAX_IDLE, Upkeep
from memos_vllm.server.uses import UseBook
from memos_vllm.vault import KVRecord, Vault
from tests.unit.vault_cases import add, kv_for


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault
        assert vault.check() == []


def test_lost_and_idle_kv_become_text_again(vault: Vault) -> None:
    forgotten: list[str] = []
    rounds: list[None] = []

    def forget(keys: Sequence[str]) -> None:
        forgotten.extend(keys)

    lost, idle, used, pinned, young = add(vault, "a", "b", "c", "d", "e")
    vault.prioritise(pinned.id, "pinned")
    now = time.time() + MAX_IDLE + 3600

    def record(of: str, key: str, **fields: Any) -> KVRecord:
        at = "2999-01-01T00:00:00+00:00" if of == young.id else "2020-01-01T00:00:00+00:00"
        return msgspec.structs.replace(kv_for(vault, vault.get(of), key), created=at, **fields)

    for cube in (lost, idle, used, pinned, young):
        vault.put_kv(record(cube.id, f"k-{cube.text}"))
    vault.put_kv(record(idle.id, "scaffold", cube_id="", owner="", kind="scaffold"))
    vault.put_kv(record(idle.id, "piece", cube_id="", kind="piece"))
    vault.add_uses({used.id: 1}, now - 60)
    (vault.path / "kv" / "k-a.safetensors").unlink()
    Upkeep(vault, forget, lambda: rounds.append(None)).round(now)
    assert vault.known_keys() == {"k-c", "k-d", "k-e", "scaffold"}
    assert sorted(forgotten) == ["k-b", "piece"] and len(rounds) == 1
    assert vault.get(idle.id).text == "b"


def test_uses_count_before_and_after_they_are_written(vault: Vault) -> None:
    (cube,) = add(vault, "tea")
    book = UseBook(vault)
    book.note([cube.id, cube.id])
    assert book.counts([cube.id]) == {cube.id: 2} and book.heats([cube.id]) == {cube.id: 2.0}
    book.flush()
    book.flush()
    assert vault.uses_of([cube.id])[cube.id].count == 2
    book.note([cube.id])
    assert book.counts([cube.id]) == {cube.id: 3}
    assert book.heats([cube.id])[cube.id] == pytest.approx(3, abs=1e-3)


def test_uses_that_cannot_be_written_wait_on(vault: Vault) -> None:
    (cube,) = add(vault, "tea")
    with Vault.open(vault.path, readonly=True) as closed:
        book = UseBook(closed)
        book.note([cube.id])
        with pytest.raises(VaultUnavailable):
            book.flush()
        assert book.counts([cube.id]) == {cube.id: 1}


def test_the_engines_loads_are_read_from_its_metrics() -> None:
    registry = CollectorRegistry()
    assert engine_loads(registry) == (0.0, 0.0, 0.0)
    loaded = Counter("memos_kv_loaded_bytes", "Bytes", ["engine", "tier"], registry=registry)
    seconds = Histogram("memos_kv_load_seconds", "Seconds", ["engine"], registry=registry)
    for engine in ("0", "1"):
        loaded.labels(engine, "ram").inc(100)
        loaded.labels(engine, "disk").inc(7)
        seconds.labels(engine).observe(0.25)
    assert engine_loads(registry) == (200.0, 0.5, 2.0)
