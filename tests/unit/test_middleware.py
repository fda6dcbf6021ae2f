"""The door: requests that need no memory go on while it is in trouble or busy; headers wait for what they tell."""

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
from memos_vllm.governance.identity import Caller
from memos_vllm.governance.ring import KeyRing
from memos_vllm.server.injection import EngineReport, RequestMemory
from memos_vllm.server.middleware import MAX_HELD, HeldSend, MemoryMiddleware
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


CALLER = Caller("maya", bound=True)
STARTS = {"type": "http.response.start", "status": 200, "headers": []}
REPORT = EngineReport.plain(cached=0, prompt_tokens=3)


def piece(text: str, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


class Sent:
    """What comes out of the door of the answer of one request."""

    def __init__(self, memory: RequestMemory) -> None:
        self.messages: list[Message] = []
        self._held = HeldSend(memory, self._take)

    async def _take(self, message: Message) -> None:
        self.messages.append(message)

    def after(self, *messages: Message) -> list[str]:
        """Of the answer so far: its pieces, and the names of its headers before them."""
        for message in messages:
            asyncio.run(self._held({**message, "headers": []} if message is STARTS else message))
        texts = [
            ",".join(name.decode() for name, _ in message["headers"]) if "headers" in message else message["body"]
            for message in self.messages
        ]
        return [text if isinstance(text, str) else text.decode() for text in texts]


@pytest.mark.parametrize(
    "memory",
    [
        RequestMemory(caller=CALLER, carries_memory=True, composed=True, adapter="style@v1"),
        RequestMemory(caller=CALLER, carries_memory=True, mode="off", adapter="style@v1"),
        RequestMemory(caller=CALLER, generates=True, adapter="style@v1"),
    ],
)
def test_headers_that_wait_for_nothing_do_not_wait_for_the_first_token(memory: RequestMemory) -> None:
    (names,) = Sent(memory).after(STARTS)
    assert "x-memos-adapter" in names


def test_headers_wait_for_the_prompt_and_for_the_engine() -> None:
    memory = RequestMemory(caller=CALLER, carries_memory=True)
    sent = Sent(memory)
    assert sent.after(STARTS) == []
    memory.composed, memory.prompt_ids = True, [1, 2, 3]
    assert sent.after(piece("early")) == []
    memory.report = REPORT
    names, *pieces = sent.after(piece("token"), piece("", more=False))
    assert "x-memos-computed-tokens" in names and pieces == ["early", "token", ""]


def test_headers_of_a_request_that_was_refused_come_with_its_end() -> None:
    names, text = Sent(RequestMemory(caller=CALLER, carries_memory=True)).after(STARTS, piece("no", more=False))
    assert "x-memos-cubes" in names and text == "no"


def test_headers_never_wait_for_ever() -> None:
    memory = RequestMemory(caller=CALLER, carries_memory=True, composed=True, prompt_ids=[1])
    found = Sent(memory).after(STARTS, *[piece(str(number)) for number in range(MAX_HELD)])
    assert found[1:] == [str(number) for number in range(MAX_HELD)]
