"""The lifecycle on a server: one at a time, with rests, and what it tells the metrics."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from memos_vllm.cube import MemCube
from memos_vllm.errors import VaultUnavailable
from memos_vllm.scheduler.clock import DAY, stamp_of
from memos_vllm.scheduler.lifecycle import CHANGES, Lifecycle, Step
from memos_vllm.server import ageing, metrics
from memos_vllm.server.ageing import CLAIM, FADE_EVERY, Ageing
from memos_vllm.server.claims import claimed
from memos_vllm.server.uses import UseBook
from memos_vllm.vault import LogQuery, Vault
from tests.unit.vault_cases import add, kv_for


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault
        assert vault.check() == []


def count(name: str, **labels: str) -> float:
    """The present value of one of our counters."""
    from prometheus_client import REGISTRY

    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_round_ages_the_vault_and_tells(vault: Vault) -> None:
    metrics.create()
    now = time.time()
    fleeting = MemCube.plaintext("tea", owner="maya", expires=stamp_of(now + DAY))
    vault.add([fleeting], actor="maya")
    (idle,) = add(vault, "coffee")
    vault.put_kv(kv_for(vault, vault.get(fleeting.id), "k1"))
    vault.put_kv(kv_for(vault, vault.get(idle.id), "k2"))
    before = [count("memos_transitions_total", state=state) for state in ("expired", "archived")]
    forgotten: list[str] = []
    runner = Ageing(Lifecycle(vault, half_life_days=1.0))
    runner.forget = forgotten.extend
    assert asyncio.run(runner.round(now + 9 * DAY))
    assert [vault.get(cube.id).header.state for cube in (fleeting, idle)] == ["expired", "archived"]
    assert sorted(forgotten) == ["k1", "k2"]
    after = [count("memos_transitions_total", state=state) for state in ("expired", "archived")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1]


def test_one_server_at_a_time(vault: Vault) -> None:
    runner = Ageing(Lifecycle(vault))
    with claimed(vault.path, CLAIM) as mine:
        assert mine and not asyncio.run(runner.round(time.time()))
    assert asyncio.run(runner.round(time.time()))


def test_all_memories_are_looked_at_once_an_hour(vault: Vault) -> None:
    (cube,) = add(vault, "tea")
    runner, now = Ageing(Lifecycle(vault, half_life_days=1.0)), time.time()
    asyncio.run(runner.round(now + 3.999 * DAY))
    assert vault.get(cube.id).header.state == "generated"
    asyncio.run(runner.round(now + 3.999 * DAY + FADE_EVERY - 1))
    assert vault.get(cube.id).header.state == "generated"
    asyncio.run(runner.round(now + 3.999 * DAY + FADE_EVERY))
    assert vault.get(cube.id).header.state == "archived"


def test_it_rests_longer_than_it_works(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(ageing, "REST", 3.0)
    add(vault, *(f"tea {n}" for n in range(100)))

    async def run() -> float:
        sleep = asyncio.sleep

        async def counted(seconds: float) -> None:
            rests.append(seconds)
            await sleep(seconds)

        monkeypatch.setattr(asyncio, "sleep", counted)
        began = time.perf_counter()
        await Ageing(Lifecycle(vault, half_life_days=1.0)).round(time.time() + 9 * DAY)
        return time.perf_counter() - began

    wall = asyncio.run(run())
    assert len(rests) >= 100 / 16
    assert sum(rests) > 0.4 * wall


def test_it_works_by_itself_once_started(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ageing, "EXPIRE_EVERY", 0.05)
    (cube,) = vault.add([MemCube.plaintext("tea", owner="maya", expires=stamp_of(time.time() + 0.1))], actor="maya")
    lifecycle, bugs = Lifecycle(vault), [ZeroDivisionError("a bug")]
    sweep = lifecycle.expire

    def expire(now: float) -> Iterator[Step]:
        if bugs:
            raise bugs.pop()
        return sweep(now)

    monkeypatch.setattr(lifecycle, "expire", expire)

    async def run() -> None:
        Ageing(lifecycle).start()
        deadline = time.monotonic() + 10
        while vault.get(cube.id).header.state != "expired":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    asyncio.run(run())


def test_written_uses_activate(vault: Vault) -> None:
    (cube,) = add(vault, "tea")
    book = UseBook(vault, Ageing(Lifecycle(vault)).used)
    book.note([cube.id])
    assert vault.get(cube.id).header.state == "generated"
    book.flush()
    assert vault.get(cube.id).header.state == "activated"


def test_uses_that_nobody_could_be_told_of_are_told_later(vault: Vault) -> None:
    (cube,) = add(vault, "tea")
    told: list[set[str]] = []

    def written(cube_ids: Collection[str]) -> None:
        told.append({*cube_ids})
        if len(told) == 1:
            raise VaultUnavailable("busy")

    book = UseBook(vault, written)
    book.note([cube.id])
    with pytest.raises(VaultUnavailable):
        book.flush()
    book.flush()
    book.flush()
    assert told == [{cube.id}, {cube.id}] and vault.uses_of([cube.id])[cube.id].count == 1


def test_uses_stand_in_the_headers_that_are_shown(vault: Vault) -> None:
    used, unused = add(vault, "tea", "coffee")
    book = UseBook(vault)
    book.note([used.id])
    book.flush()
    book.note([used.id])
    shown = [cube.header for cube in book.shown([used, unused])]
    assert [header.accesses for header in shown] == [2, 0]
    assert shown[0].last_access[:4] == stamp_of(time.time())[:4] and shown[1].last_access == ""
    assert vault.get(used.id).header.accesses == 0


SWEEP = """
import asyncio, sys, time
from pathlib import Path
from memos_vllm.scheduler.lifecycle import Lifecycle
from memos_vllm.server import ageing
from memos_vllm.vault import Vault

ageing.REST = 0.0
with Vault.open(Path(sys.argv[1])) as vault:
    print("open", flush=True)
    print(asyncio.run(ageing.Ageing(Lifecycle(vault, half_life_days=1.0)).round(time.time() + 9 * 86_400)), flush=True)
"""


def test_a_sweep_that_is_killed_leaves_whole_steps_and_no_lock(vault: Vault) -> None:
    cubes = add(vault, *(f"tea {n}" for n in range(1200)))
    command = [sys.executable, "-c", SWEEP, str(vault.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "open\n"
        deadline = time.monotonic() + 60
        while not any(vault.get(cube.id).header.state == "archived" for cube in cubes[:8]):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        child.kill()
    assert vault.check() == []
    states = [vault.get(cube.id).header.state for cube in cubes]
    done = states.count("archived")
    assert 0 < done < len(cubes) and states == ["archived"] * done + ["generated"] * (len(cubes) - done)
    assert done % CHANGES == 0
    assert asyncio.run(Ageing(Lifecycle(vault)).round(time.time()))


def test_of_two_servers_one_sweeps(vault: Vault) -> None:
    add(vault, *(f"tea {n}" for n in range(300)))
    command = [sys.executable, "-c", SWEEP, str(vault.path)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as one,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other,
    ):
        said = [child.communicate(timeout=120)[0].split() for child in (one, other)]
    assert all(words[0] == "open" for words in said) and "True" in said[0] + said[1]
    assert {cube.header.state for cube in vault.list("maya")} == {"archived"}
    transitions = [entry.target for entry in vault.log(LogQuery(action="transition", limit=1000))]
    assert len(transitions) == len(set(transitions)) == 300
