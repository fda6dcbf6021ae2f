"""The door while memory is in trouble or busy: requests that need none of it go on."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from anyio import to_thread
from starlette.responses import PlainTextResponse
from starlette.types import Message

from memos_vllm.governance import keys
from memos_vllm.governance.directory import Directory
from memos_vllm.governance.ring import KeyRing
from memos_vllm.server.middleware import MemoryMiddleware
from memos_vllm.vault import Vault


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def service_of(vault: Vault, clock: Clock) -> Any:
    directory = Directory(vault, clock=clock)
    directory.refresh()
    return SimpleNamespace(directory=directory, ring=KeyRing(directory=directory), splicer=None, door=None, mode="read")


async def status_of(service: Any, key: str = "") -> int:
    """Of a request that names nobody."""
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    app = SimpleNamespace(state=SimpleNamespace(memos=service))
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers, "query_string": b"", "app": app}
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await MemoryMiddleware(PlainTextResponse("models"))(scope, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(("keyed", "status"), [(False, 200), (True, 503)])
def test_trouble_with_the_vault_stops_only_who_needs_a_key(tmp_path: Path, keyed: bool, status: int) -> None:
    """Without the registry nobody knows whether a key was revoked."""
    vault, clock = Vault.open(tmp_path / "memory"), Clock()
    key = keys.create(vault, actor="operator:test")[1] if keyed else ""
    service = service_of(vault, clock)
    assert asyncio.run(status_of(service, key)) == 200
    vault.close()
    clock.now += 60
    assert asyncio.run(status_of(service, key)) == status


def test_busy_threads_hold_nobody_up(tmp_path: Path) -> None:
    """Memory routes run in the loop's threads; the look at the registry waits for none of them."""
    release = threading.Event()

    async def run() -> int:
        busy = [asyncio.create_task(to_thread.run_sync(release.wait, 30)) for _ in range(50)]
        await asyncio.sleep(0.1)
        try:
            async with asyncio.timeout(10):
                return await status_of(service)
        finally:
            release.set()
            await asyncio.gather(*busy)

    clock = Clock()
    with Vault.open(tmp_path / "memory") as vault:
        service = service_of(vault, clock)
        clock.now += 60
        assert asyncio.run(run()) == 200
