"""Real servers, started the way a person starts them; one without keys and one with keys for the whole run."""

from __future__ import annotations

import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
import openai
import pytest

import memos_vllm
from tests import forked

MODEL_NAME = "tiny"
START_TIMEOUT = 300.0
"""Seconds; a start on two busy cores takes one to two minutes."""

SERVE = ("-m", "memos_vllm.cli", "serve")
API_ONLY = (str(Path(__file__).with_name("api_server.py")),)
"""The same server without its engine: up in seconds, for tests of the memory routes."""

KEYS = {"maya": "sk-maya", "tom": "sk-tom"}
SERVICE_KEY = "sk-service"


def model_path() -> Path:
    """The bundled model, or the one that MEMOS_TEST_MODEL names."""
    bundled = Path(memos_vllm.__file__).parent / "assets" / "tiny"
    return Path(os.environ.get("MEMOS_TEST_MODEL", bundled))


@dataclass(frozen=True)
class Server:
    """A running server. pid: of its first process, and of its process group."""

    url: str
    memory_dir: Path
    log: Path
    pid: int

    def http(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def openai(self, key: str = "none", **headers: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, default_headers=headers, max_retries=0)

    def remember(self, user: str, *texts: str) -> list[str]:
        """Add memories for a user of a server without keys; returns their ids."""
        messages = [{"role": "user", "content": text} for text in texts]
        with self.http() as client:
            answer = client.post("/v1/memories", json={"messages": messages, "user_id": user})
        answer.raise_for_status()
        return [memory["id"] for memory in answer.json()["results"]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(
    folder: Path, *flags: str, environ: Mapping[str, str] | None = None, program: Sequence[str] = SERVE
) -> Iterator[Server]:
    """`memos-vllm serve` on the test model, or another program like it, with its log in `folder/server.log`."""
    port, memory_dir, log = free_port(), folder / "memory", folder / "server.log"
    words = [
        *(*program, str(model_path())),
        *("--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--max-model-len", "2048", "--enforce-eager"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--memory-dir", str(memory_dir), *flags),
    ]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", **(environ or {})}
    process = forked.start_program(words, log, os.environ | settings)
    assert process.pid is not None
    server = Server(f"http://127.0.0.1:{port}", memory_dir, log, process.pid)
    try:
        _wait(server, process)
        yield server
    finally:
        _stop(process)


def _wait(server: Server, process: BaseProcess) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.is_alive():
        try:
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start; the end of its log:\n{server.log.read_text(errors='replace')[-4000:]}")


def _stop(process: BaseProcess) -> None:
    """End the whole process group: API server, engine core, workers."""
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.join(30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    process.close()


def key_file(folder: Path) -> Path:
    """A key file with a key for each of two users and a service key."""
    path = folder / "keys.toml"
    bound = [f'[[key]]\nkey = "{key}"\nuser = "{user}"\n' for user, key in KEYS.items()]
    path.write_text("\n".join([*bound, f'[[key]]\nkey = "{SERVICE_KEY}"\n']))
    return path


@pytest.fixture(scope="session")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without keys that puts memories into prompts as text."""
    with running_server(tmp_path_factory.mktemp("open"), "--memory-splice", "off") as server:
        yield server


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key for each of two users and a service key; memories are spliced, however short they are."""
    folder = tmp_path_factory.mktemp("keyed")
    with running_server(folder, "--memory-keys", str(key_file(folder)), "--memory-promote", "all") as server:
        yield server


@pytest.fixture(scope="session")
def open_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The memory routes of a server without keys and without engine."""
    flags = ("--memory-consolidate", "propose")
    with running_server(tmp_path_factory.mktemp("open-api"), *flags, program=API_ONLY) as server:
        yield server


@pytest.fixture(scope="session")
def keyed_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The memory routes of a server with a key for each of two users and a service key, without engine."""
    folder = tmp_path_factory.mktemp("keyed-api")
    with running_server(folder, "--memory-keys", str(key_file(folder)), program=API_ONLY) as server:
        yield server


@pytest.fixture
def user() -> str:
    """A user nobody else has."""
    return f"user-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def other() -> str:
    """Another such user."""
    return f"other-{uuid.uuid4().hex[:12]}"
