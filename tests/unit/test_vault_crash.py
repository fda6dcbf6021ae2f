"""What a vault acknowledged survives the death of the process, at any moment of a stream of writes."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from memos_vllm.errors import NotFound
from memos_vllm.vault import Vault

ROUNDS = 20

# Waits for a line, then tells what a call will do, a line for each memory, and after the call that it is done.
WRITER = """
import sys
from pathlib import Path
from memos_vllm.cube import MemCube
from memos_vllm.vault import Vault
def tell(*words):
    print(*words, flush=True)
sys.stdin.readline()
vault = Vault.open(Path(sys.argv[1]), map_bytes=65536)
for n in range(1_000_000):
    cubes = [MemCube.plaintext(f"{n}.{i} " + "x" * 700, owner="maya", access=["bo"]) for i in range(3)]
    for cube in cubes:
        tell("write", cube.id, cube.text)
    vault.add(cubes, actor="maya")
    tell("done")
    tell("write", cubes[0].id, f"{n} changed")
    vault.update(cubes[0].id, f"{n} changed", actor="maya")
    tell("done")
    tell("delete", cubes[1].id)
    vault.delete(cubes[1].id, actor="maya")
    tell("done")
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


Texts = dict[str, str | None]


def writer(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def killed_after(process: subprocess.Popen[str], seconds: float) -> list[str]:
    """The lines which a writer, set off now, had printed when it was killed."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    first = process.stdout.readline()
    time.sleep(seconds)
    process.kill()
    lines = [first, *process.stdout]
    assert process.wait() == -signal.SIGKILL
    return [line for line in lines if line.endswith("\n")]


def acknowledged(lines: list[str]) -> tuple[Texts, Texts]:
    """Text of each memory (None: deleted) as acknowledged, and as the call that was cut short would have left it."""
    texts: Texts = {}
    pending: Texts = {}
    for line in lines:
        operation, *rest = line.rstrip("\n").split(" ", 2)
        if operation == "done":
            texts |= pending
            pending = {}
        else:
            pending[rest[0]] = rest[1] if operation == "write" else None
    return texts, pending


def text_in(vault: Vault, cube_id: str) -> str | None:
    try:
        return vault.get(cube_id).text
    except NotFound:
        return None


def test_acknowledged_writes_survive_sigkill(tmp_path: Path, stack: ExitStack) -> None:
    path = tmp_path / "memory"
    rng = random.Random(0)
    texts: Texts = {}
    for process in [stack.enter_context(writer(path)) for _ in range(ROUNDS)]:
        written, pending = acknowledged(killed_after(process, rng.uniform(0, 0.08)))
        texts |= written
        with Vault.open(path) as vault:
            assert vault.check() == []
            before = {cube_id: texts.get(cube_id) for cube_id in pending}
            after = {cube_id: text_in(vault, cube_id) for cube_id in pending}
            assert after in (before, pending)
            texts |= after
            assert {cube_id: text_in(vault, cube_id) for cube_id in texts} == texts
            assert {cube.id for cube in vault.list("maya")} == {i for i, text in texts.items() if text is not None}
            assert vault.readable("bo") == vault.list("maya")
    assert sum(text is not None for text in texts.values()) > 2 * ROUNDS


def test_a_killed_writer_does_not_block_the_next(tmp_path: Path) -> None:
    """Killed while it holds LMDB's writer lock; a process that was waiting for the lock goes on."""
    path = tmp_path / "memory"
    Vault.open(path).close()
    script = """
import sys, time
from pathlib import Path
from memos_vllm.vault import Vault
vault = Vault.open(Path(sys.argv[1]))
def work(txn):
    print("holding", flush=True)
    time.sleep(60)
vault._env.write(work)
"""
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holding\n"
        with writer(path) as waiter:
            assert waiter.stdin is not None and waiter.stdout is not None
            waiter.stdin.write("\n")
            waiter.stdin.flush()
            time.sleep(0.3)
            holder.kill()
            while waiter.stdout.readline() != "done\n":
                assert waiter.poll() is None
            waiter.kill()
    with Vault.open(path) as vault:
        assert vault.check() == []
