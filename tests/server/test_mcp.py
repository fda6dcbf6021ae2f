"""`memos-vllm mcp` as MCP's own client sees it, over stdio and over streamable HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from tests.server.conftest import KEYS, Server, free_port

pytestmark = pytest.mark.server
TOOLS = {
    *("add_memory", "search_memories", "get_memories", "get_memory", "update_memory"),
    *("delete_memory", "delete_all_memories"),
}


def stdio(server: Server, *arguments: str, key: str | None = None) -> StdioServerParameters:
    environ = {**os.environ, **({"MEMOS_API_KEY": key} if key else {})}
    command = ["-m", "memos_vllm.cli", "mcp", "--url", server.url, *arguments]
    return StdioServerParameters(command=sys.executable, args=command, env=environ)


@contextmanager
def over_http(server: Server, key: str | None = None) -> Iterator[str]:
    """The address of an MCP server over HTTP."""
    port = free_port()
    command = [sys.executable, "-m", "memos_vllm.cli", "mcp", "--url", server.url, "--http", "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **({"MEMOS_API_KEY": key} if key else {})})
    try:
        _wait(port, process)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail("the MCP server did not start")


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    return answer.structured_content


async def session(client: Client) -> None:
    """All tools on an empty memory."""
    tools = (await client.list_tools()).tools
    assert {tool.name for tool in tools} == TOOLS
    assert all(tool.description and tool.annotations for tool in tools)
    (tea,) = (await call(client, "add_memory", text="My favourite tea is oolong.", metadata={"topic": "tea"}))[
        "results"
    ]
    await call(client, "add_memory", text="I live in Lisbon.")
    found = (await call(client, "search_memories", query="tea", top_k=1, filters={"topic": "tea"}))["results"]
    assert [(memory["id"], memory["memory"]) for memory in found] == [(tea["id"], "My favourite tea is oolong.")]
    changed = await call(client, "update_memory", memory_id=tea["id"], text="My favourite tea is sencha.")
    assert changed["memory"] == "My favourite tea is sencha."
    assert (await call(client, "get_memory", memory_id=tea["id"])).items() <= changed.items()
    listed = (await call(client, "get_memories", limit=10))["results"]
    assert [memory["memory"] for memory in listed] == ["My favourite tea is sencha.", "I live in Lisbon."]
    assert (await call(client, "delete_memory", memory_id=tea["id"]))["deleted"] == 1
    refused = await client.call_tool("update_memory", {"memory_id": tea["id"], "text": "gone"})
    assert refused.is_error and "no memory" in str(refused.content)
    assert (await call(client, "delete_all_memories"))["deleted"] == 1


def test_the_tools_over_stdio(open_api: Server, user: str) -> None:
    async def run() -> None:
        async with Client(stdio(open_api, "--user", user)) as client:
            await session(client)

    anyio.run(run)


def test_stdio_speaks_for_the_keys_user_only(keyed_api: Server) -> None:
    async def run() -> None:
        async with Client(stdio(keyed_api, key=KEYS["tom"])) as client:
            await session(client)
            refused = await client.call_tool("get_memories", {"user_id": "maya"})
            assert refused.is_error and "may not speak for" in str(refused.content)

    anyio.run(run)


@asynccontextmanager
async def as_holder(url: str, key: str) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


def test_each_caller_over_http_is_known_by_their_own_key(keyed_api: Server) -> None:
    async def run(url: str) -> None:
        async with as_holder(url, KEYS["maya"]) as maya, as_holder(url, KEYS["tom"]) as tom:
            await call(maya, "add_memory", text="Maya's own tea.")
            assert (await call(tom, "search_memories", query="tea"))["results"] == []
            assert len((await call(maya, "search_memories", query="tea"))["results"]) == 1
            await call(maya, "delete_all_memories")
            await session(tom)
        async with Client(url) as stranger:
            refused = await stranger.call_tool("get_memories", {})
            assert refused.is_error and "API key" in str(refused.content)

    with over_http(keyed_api) as url:
        anyio.run(run, url)


def test_on_this_machine_the_servers_key_stands_in(keyed_api: Server) -> None:
    async def run(url: str) -> None:
        async with Client(url) as client:
            await session(client)

    with over_http(keyed_api, KEYS["tom"]) as url:
        anyio.run(run, url)


def test_a_url_that_is_none_is_refused() -> None:
    command = [sys.executable, "-m", "memos_vllm.cli", "mcp", "--url", "localhost:8000"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "--url must begin with http://" in ended.stderr
