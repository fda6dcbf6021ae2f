"""Servers as child processes: started, waited for, and ended with all that they started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import httpx

from memos_vllm.errors import StartError

START_SECONDS = 900.0
"""A large model's weights take minutes; a server that fails ends by itself long before."""
STOP_SECONDS = 20.0
LOG_LINES = 25
SERVED_NAME = "model"
"""Name of the model in requests to servers started here."""
IDLE_SECONDS = 2.0
"""After which a connection is not used again: uvicorn closes it after 5, maybe just when a request is on its way."""


def connections(count: int) -> httpx.Limits:
    """For a client with so many connections to a server."""
    return httpx.Limits(max_connections=count, max_keepalive_connections=count, keepalive_expiry=IDLE_SECONDS)


class ServerFailed(StartError):
    """A server did not start, or died; `log_tail` holds the last lines of its log."""

    def __init__(self, message: str, log_tail: str) -> None:
        super().__init__(message)
        self.log_tail = log_tail


@dataclass(frozen=True)
class Server:
    """A started server; `process` leads a process group of its own."""

    name: str
    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def failure(self, what: str) -> ServerFailed:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        tail = "\n".join([f"The end of the log of '{self.name}':", *(f"  | {line}" for line in lines)])
        return ServerFailed(f"the server '{self.name}' {what}; the end of its log is printed above", tail)


@contextmanager
def running(
    model: str,
    flags: Mapping[str, Sequence[str]],
    folder: Path,
    *,
    environ: Mapping[str, str],
    own: Mapping[str, Mapping[str, str]] | None = None,
    one_by_one: bool = False,
    on_ready: Callable[[str], None] = lambda name: None,
) -> Iterator[dict[str, Server]]:
    """A `memos-vllm serve` for each name in `flags`, on free loopback ports, logs in `folder`; all end with the block.

    `own`: variables of single servers, beside those of `environ`.
    `one_by_one`: each waits until the one before is up, for servers that measure what memory a GPU has left.
    `on_ready(name)` is called whenever one is up. Raises ServerFailed.
    """
    servers: dict[str, Server] = {}
    with ExitStack() as stack:
        stack.enter_context(_signals_raise())
        stack.callback(_stop_all, servers)
        for (name, words), port in zip(flags.items(), free_ports(len(flags)), strict=True):
            variables = {**environ, **(own or {}).get(name, {})}
            servers[name] = _launch(name, [model, *words], port, folder / f"{name}.log", variables)
            if one_by_one:
                _wait([servers[name]], on_ready)
        if not one_by_one:
            _wait(list(servers.values()), on_ready)
        yield servers


def free_ports(count: int) -> list[int]:
    """Different TCP ports that are free on the loopback interface now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def server_environ(model: str, gpu: bool) -> dict[str, str]:
    """Environment of a server: /reset_prefix_cache is there, and no memory setting of the caller's shell applies."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MEMOS_")}
    environ["VLLM_SERVER_DEV_MODE"] = "1"
    if Path(model).is_dir():
        environ["HF_HUB_OFFLINE"] = "1"
    if not gpu:
        environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        # vLLM chooses fewer compute threads without a KV connector than with one; all servers get the same.
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores)
    return environ


def _launch(name: str, words: Sequence[str], port: int, log: Path, environ: Mapping[str, str]) -> Server:
    command = [sys.executable, "-m", "memos_vllm.cli", "serve", *words]
    command += ["--served-model-name", SERVED_NAME, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            start_new_session=True,
        )
    return Server(name, f"http://127.0.0.1:{port}", log, process)


def _wait(servers: list[Server], on_ready: Callable[[str], None]) -> None:
    deadline, waiting = time.monotonic() + START_SECONDS, list(servers)
    while waiting:
        for server in list(waiting):
            if _is_up(server):
                waiting.remove(server)
                on_ready(server.name)
        if waiting and time.monotonic() > deadline:
            raise waiting[0].failure(f"was not up after {START_SECONDS:.0f} s")
        if waiting:
            time.sleep(0.5)


def _is_up(server: Server) -> bool:
    if (code := server.process.poll()) is not None:
        raise server.failure(f"did not start (exit code {code})")
    with suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/health", timeout=5).status_code == httpx.codes.OK
    return False


def _stop_all(servers: Mapping[str, Server]) -> None:
    """End every process group: asked first, then killed, engine processes that lost their leader included."""
    try:
        for server in servers.values():
            _signal(server, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for server in servers.values():
            with suppress(subprocess.TimeoutExpired):
                server.process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for server in servers.values():
            _signal(server, signal.SIGKILL)
            server.process.wait()


def _signal(server: Server, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.process.pid, number)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end this process as an exception does, so that servers are stopped."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
