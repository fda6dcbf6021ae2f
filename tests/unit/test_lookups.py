"""Reads on the event loop: at once where the vault is free, and never in the way of everybody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from memos_vllm.server.lookups import looked_up
from memos_vllm.vault import Vault
from tests.unit.vault_cases import add


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault


def held_up(vault: Vault) -> bool:
    return not vault.is_ready


def test_a_read_of_a_free_vault_takes_no_thread(vault: Vault) -> None:
    (cube,) = add(vault, "green tea")

    def read(cube_id: str, *, version: int) -> tuple[str, threading.Thread]:
        return vault.get(cube_id, version=version).text, threading.current_thread()

    found = asyncio.run(looked_up(vault, read, cube.id, version=1))
    assert found == ("green tea", threading.current_thread())


def test_while_the_map_grows_reads_wait_and_the_loop_does_not(vault: Vault) -> None:
    """A map grows once the reads that are under way have ended; new ones wait for it."""
    (cube,) = add(vault, "green tea")
    inside, end = threading.Event(), threading.Event()

    def long_read(_: object) -> None:
        inside.set()
        assert end.wait(30)

    async def run() -> str:
        reading = asyncio.create_task(asyncio.to_thread(vault.read, long_read))
        await asyncio.to_thread(inside.wait, 30)
        growing = asyncio.create_task(asyncio.to_thread(vault._env._resize, 2 * vault._env.sizes()["map_bytes"]))
        async with asyncio.timeout(30):
            while not held_up(vault):  # noqa: ASYNC110 - a lock of threads has no event
                await asyncio.sleep(0.01)
            asked = asyncio.create_task(looked_up(vault, vault.get, cube.id))
            await asyncio.sleep(0.2)  # the loop still turns
            assert not asked.done()
            end.set()
            found = await asked
            await asyncio.gather(reading, growing)
        assert not held_up(vault)
        return found.text

    try:
        assert asyncio.run(run()) == "green tea"
    finally:
        end.set()
