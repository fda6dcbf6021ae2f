"""What `kill -9` would leave at any moment of captures, loads and evictions, and what the next start makes of it.

A stopped process has done as much to its files as a killed one, so the server is stopped at random moments and its
memory directory copied; each copy is what a kill at that moment would leave. At the end the server is killed indeed.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch

from memos_vllm.activation.files import KVLabel, read_header, read_kv
from memos_vllm.activation.payload import KVCube
from memos_vllm.vault import Vault
from tests.server.conftest import MODEL_NAME, Server, running_server
from tests.server.test_restart import USER
from tests.server.test_splice_http import ask, text_of

pytestmark = pytest.mark.server

MOMENTS = int(os.environ.get("MEMOS_KILL_MOMENTS", "6"))
FLAGS = ("--memory-promote", "all", "--memory-kv-disk-gib", "0.001", "--memory-kv-ram-gib", "0.0005")
"""Room for about a dozen cubes on disk and half as many in RAM."""
PLACES = ("hall", "shed", "attic", "cellar", "garage", "kitchen")
MOST_NAMED = 5
LONGEST_S = 60.0
"""How long the moments may go on until a capture falls between two of them; a busy machine captures seldom."""


class Traffic:
    """One user who adds memories and asks about old ones, without end."""

    def __init__(self, server: Server) -> None:
        self.ids: list[str] = []
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._add, self._ask)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _add(self) -> None:
        rng, numbers = random.Random(1), itertools.count()
        with self._server.http(**USER) as client:
            while not self._stop.wait(0.05):
                text = f"Lantern {next(numbers)} is in the {rng.choice(PLACES)}, beside ladder {rng.randrange(99)}."
                answer = client.post("/v1/memories", json={"text": text})
                self.ids.append(answer.raise_for_status().json()["results"][0]["id"])

    def _ask(self) -> None:
        rng = random.Random(2)
        messages = [{"role": "user", "content": "Where is the lantern?"}]
        body = {"model": MODEL_NAME, "messages": messages, "max_tokens": 2}
        with self._server.http(**USER) as client:
            while not self._stop.wait(0.05):
                named = rng.sample(self.ids[-30:], min(MOST_NAMED, len(self.ids[-30:])))
                headers = {"x-memos-cubes": ",".join(named)}
                client.post("/v1/chat/completions", json=body, headers=headers).raise_for_status()


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    group = server.pid
    os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(group, signal.SIGCONT)


def check_copy(folder: Path, known: dict[str, KVCube]) -> int:
    """The vault is sound and every KV file whole and right; returns how many there are.

    `known`: K/V by key as they were first seen; the same tokens must have the same K/V in every copy.
    """
    files = sorted((folder / "kv").rglob("*.safetensors"))
    for path in files:
        said = read_header(path)
        cube = read_kv(path, KVLabel(said["key"], said["identity"], said["tokens"]))
        assert path.name.startswith(said["key"])
        first = known.setdefault(said["key"], cube)
        torch.testing.assert_close(cube.k, first.k, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cube.v, first.v, rtol=1e-4, atol=1e-4)
    with Vault.open(folder) as vault:
        vault.prune_kv()  # a file that was evicted right before leaves its row until the next start
        assert vault.check() == []
    return len(files)


def check_answers(server: Server, ids: list[str]) -> int:
    """A cube that stands where it was captured answers as its text does; returns how many came from disk."""
    from_disk = 0
    for cube in ids:
        headers = USER | {"x-memos-cubes": cube}
        question = "Where is the lantern?"
        spliced = ask(server, question, headers | {"x-memos-repair": "none"})
        assert text_of(spliced) == text_of(ask(server, question, headers | {"x-memos-repair": "off"}))
        from_disk += spliced.headers["x-memos-kv-source"] in ("disk", "mixed")
    return from_disk


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_no_moment_of_a_kill_leaves_wrong_or_half_kv(tmp_path: Path) -> None:
    rng, known, copies = random.Random(), dict[str, KVCube](), list[int]()
    with running_server(tmp_path, *FLAGS) as server:
        with Traffic(server):
            time.sleep(3.0)
            deadline = time.monotonic() + LONGEST_S
            while len(copies) < MOMENTS or (len(known) <= max(copies) and time.monotonic() < deadline):
                time.sleep(rng.uniform(0.05, 0.4))
                copy = tmp_path / f"moment-{len(copies)}"
                with stopped(server):
                    shutil.copytree(server.memory_dir, copy)
                copies.append(check_copy(copy, known))
                shutil.rmtree(copy)
        with server.http() as client:
            evicted = metric(client, "memos_kv_evictions_total")
        os.killpg(server.pid, signal.SIGKILL)
    assert sum(copies) > 0
    assert evicted > 0, "the budgets were to be too small"
    assert len(known) > max(copies), "captures went on between the moments"
    with Vault.open(server.memory_dir) as vault:
        left = [row.cube_id for row in vault.iter_kv() if row.cube_id and (server.memory_dir / row.path).exists()]
    with running_server(tmp_path, *FLAGS) as server:
        assert check_answers(server, left) > 0
