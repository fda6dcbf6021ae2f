"""The whole server is killed during a stream of adds, and started again on the same memory directory."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from memos_vllm.activation.files import read_header
from tests.server.conftest import Server, running_server
from tests.server.test_splice_http import ask, wait_for_kv

pytestmark = pytest.mark.server

ROUNDS = int(os.environ.get("MEMOS_KILL_ROUNDS", "1"))
"""Each round starts a server, half a minute or more."""
ADDERS = 4
USER = {"x-memos-user-id": "maya"}
QUESTION = "Where is the lantern?"


def add_until_killed(server: Server, numbers: itertools.count[int], acknowledged: dict[str, str]) -> None:
    with server.http(**USER) as client:
        while True:
            text = f"Note {next(numbers)}: the lantern is in box {next(numbers)}."
            try:
                answer = client.post("/v1/memories", json={"messages": [{"role": "user", "content": text}]})
            except httpx.TransportError:
                return
            if answer.status_code == 200:
                memory_id = answer.json()["results"][0]["id"]
                acknowledged[memory_id] = text
                with suppress(httpx.TransportError):  # refused, in a transaction that other adds may share
                    client.put(f"/v1/memories/{memory_id}", json={"text": "No.", "expect": 9})


def kill_during_adds(
    server: Server, numbers: itertools.count[int], acknowledged: dict[str, str], seconds: float
) -> None:
    adders = [threading.Thread(target=add_until_killed, args=(server, numbers, acknowledged)) for _ in range(ADDERS)]
    for adder in adders:
        adder.start()
    time.sleep(seconds)
    os.killpg(server.pid, signal.SIGKILL)
    for adder in adders:
        adder.join()


def check_everything(server: Server, acknowledged: dict[str, str]) -> None:
    """Every acknowledged memory is there, every KV file is whole, and the vault's own check agrees."""
    with server.http(**USER) as client:
        for memory_id, text in acknowledged.items():
            assert client.get(f"/v1/memories/{memory_id}").json()["memory"] == text
    for path in (server.memory_dir / "kv").rglob("*.safetensors"):
        assert read_header(path)["format"]
    command = [sys.executable, "-m", "memos_vllm.cli", "vault", "check", str(server.memory_dir)]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def check_kv_comes_from_disk(server: Server, cubes: str) -> None:
    """The first request after a start reads the known cubes' K/V from disk, the next one finds them in RAM."""
    chosen = USER | {"x-memos-cubes": cubes}
    first = ask(server, QUESTION, chosen, max_tokens=2)
    again = ask(server, QUESTION, chosen | {"x-memos-repair": "none"}, max_tokens=2)
    assert (first.headers["x-memos-kv-source"], again.headers["x-memos-kv-source"]) == ("disk", "ram")
    assert "x-memos-fallback" not in first.headers


def test_acknowledged_memories_survive_kill_nine_and_kv_comes_from_disk(tmp_path: Path) -> None:
    numbers, acknowledged = itertools.count(), dict[str, str]()
    with running_server(tmp_path, "--memory-promote", "all") as server:
        server.remember("maya", "The lantern is in the hall.", "The ladder is in the shed.")
        cubes = wait_for_kv(server, USER, QUESTION).headers["x-memos-cubes"]
        kill_during_adds(server, numbers, acknowledged, seconds=1.0)
    for round_number in range(1, ROUNDS + 1):
        with running_server(tmp_path, "--memory-promote", "all") as server:
            check_everything(server, acknowledged)
            check_kv_comes_from_disk(server, cubes)
            if round_number < ROUNDS:
                kill_during_adds(server, numbers, acknowledged, seconds=0.5 + 0.1 * round_number)
    assert len(acknowledged) >= ROUNDS
