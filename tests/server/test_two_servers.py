"""Two servers on one vault see each other's writes; it is backed up meanwhile, and compacted when both have stopped."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from memos_vllm.vault import Vault
from tests.server.conftest import API_ONLY, Server, running_server

pytestmark = pytest.mark.server


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def added(client: httpx.Client, text: str) -> str:
    body = {"messages": [{"role": "user", "content": text}], "user_id": "maya", "infer": False}
    answer = client.post("/v1/memories", json=body)
    answer.raise_for_status()
    return str(answer.json()["results"][0]["id"])


def found(client: httpx.Client, query: str) -> list[Any]:
    answer = client.post("/v1/memories/search", json={"query": query, "user_id": "maya"})
    answer.raise_for_status()
    return [hit["memory"] for hit in answer.json()["results"]]


def vault(action: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memos_vllm.cli", "vault", action, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def both_write(servers: list[httpx.Client]) -> set[str]:
    """Forty memories, added through both at once, without an error; their ids."""
    with ThreadPoolExecutor(4) as pool:
        return set(pool.map(lambda n: added(servers[n % 2], f"number {n}"), range(40)))


def test_two_servers_on_one_vault(tmp_path: Path, stack: ExitStack) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    memory = folders[0] / "memory"
    servers: list[Server] = [
        stack.enter_context(running_server(folder, "--memory-dir", str(memory), program=API_ONLY)) for folder in folders
    ]
    one, two = clients = [stack.enter_context(server.http(**{"x-memos-user-id": "maya"})) for server in servers]
    cube_id = added(one, "Maya keeps bees")
    assert found(two, "bees") == ["Maya keeps bees"]
    two.put(f"/v1/memories/{cube_id}", json={"text": "Maya keeps goats"}).raise_for_status()
    assert found(one, "goats") == ["Maya keeps goats"]
    one.delete(f"/v1/memories/{cube_id}").raise_for_status()
    assert two.get(f"/v1/memories/{cube_id}").status_code == 404 and found(two, "goats") == []
    ids = both_write(clients)

    copied = vault("backup", memory, tmp_path / "copy")
    assert copied.returncode == 0 and "40 memories" in copied.stdout, copied
    refused = vault("compact", memory)
    assert refused.returncode == 2 and "stop the server" in refused.stderr, refused
    assert vault("verify", memory).returncode == 0
    stack.close()

    assert vault("compact", memory).returncode == 0
    checked = vault("check", memory)
    assert checked.returncode == 0 and checked.stderr == "", checked
    for path in (memory, tmp_path / "copy"):
        with Vault.open(path, readonly=True) as opened:
            assert {cube.id for cube in opened.list("maya")} == ids
