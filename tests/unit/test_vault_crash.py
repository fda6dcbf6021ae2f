"""What a vault acknowledged survives the death of its processes, at any moment of mixed traffic.

MEMOS_KILL_ROUNDS: how often two processes are killed (default 6).
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from memos_vllm.cube import MemCube
from memos_vllm.retrieval import MemOperator
from memos_vllm.retrieval.embedders import QueryEmbedder
from memos_vllm.retrieval.embedding import EmbeddingWorker
from memos_vllm.vault import Vault
from memos_vllm.vault.env import Txn
from memos_vllm.vault.postings import is_searched
from memos_vllm.vault.snapshots import cubes_in, named
from memos_vllm.vault.words import spoken_text
from tests.unit.crash_child import Seen, label_of, seen
from tests.unit.embed_cases import WordEmbedder

ROUNDS = int(os.environ.get("MEMOS_KILL_ROUNDS", "6"))
NAMES = (("a", "b", "c"), ("d", "e", "f"))
"""Of the threads of each process."""
ROOT = Path(__file__).resolve().parents[2]


class Told:
    """What one child announced and acknowledged: cubes by label, texts of snapshots by owner and name."""

    def __init__(self) -> None:
        self.cubes: dict[str, Seen] = {}
        self.snapshots: dict[str, list[str]] = {}
        self.head = ""
        self.forgotten = ""
        self.calls = 0

    def with_call(self, call: dict[str, Any]) -> "Told":
        after = Told()
        after.cubes = _without_none(self.cubes | call["cubes"])
        after.snapshots = _without_none(self.snapshots | call.get("snapshots", {}))
        after.head, after.calls = self.head, self.calls
        after.forgotten = call.get("forgotten", "")
        return after

    def differs_from(self, other: "Told") -> dict[str, Any]:
        """What is here and there, where that is not the same."""
        pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (self.cubes, other.cubes),
            (self.snapshots, other.snapshots),
        ]
        return {
            name: (mine.get(name), theirs.get(name))
            for mine, theirs in pairs
            for name in mine.keys() | theirs.keys()
            if mine.get(name) != theirs.get(name)
        }


def _without_none(held: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in held.items() if value is not None}


def heard(before: Told, lines: list[str]) -> tuple[Told, Told]:
    """What was acknowledged, and what the call that was cut short would have left."""
    told = pending = before
    for line in lines:
        if line.startswith("done "):
            told = pending
            told.head, told.calls = line.split()[1], told.calls + 1
        else:
            pending = told.with_call(json.loads(line))
    return told, pending


def held_by(vault: Vault, name: str) -> Told:
    """What the vault holds of a child's."""

    def texts(txn: Txn, owner: str, snapshot: str) -> list[str]:
        return sorted(cube.text for cube in cubes_in(txn, named(txn, owner, snapshot)))

    found = Told()
    for cube in vault.walk(limit=100_000):
        if cube.owner.startswith(f"{name}-"):
            found.cubes[label_of(cube.text)] = seen(cube, len(vault.versions(cube.id)))
    for owner in (f"{name}-{n}" for n in range(3)):
        for snapshot in vault.snapshots(owner):
            kept = vault._env.read(lambda txn, owner=owner, held=snapshot.name: texts(txn, owner, held))  # type: ignore[misc]
            found.snapshots[f"{owner}/{snapshot.name}"] = kept
    return found


def child(path: Path, name: str, seed: int, program: str = "crash_child") -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", f"tests.unit.{program}", str(path), name, str(seed)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def killed_after(running: list[subprocess.Popen[str]], seconds: float) -> list[list[str]]:
    """The whole lines which the children, set off now, had printed when they were killed together."""
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    first = [process.stdout.readline() if process.stdout else "" for process in running]
    assert all(first), "a child failed"
    time.sleep(seconds)
    for process in running:
        process.kill()
    lines = [[line, *(process.stdout or [])] for line, process in zip(first, running, strict=True)]
    assert [process.wait() for process in running] == [-signal.SIGKILL] * len(running)
    return [[line for line in told if line.endswith("\n")] for told in lines]


def said_by(name: str, printed: list[list[str]]) -> list[str]:
    """The lines of one thread."""
    return [line.removeprefix(f"{name} ") for lines in printed for line in lines if line.startswith(f"{name} ")]


def test_acknowledged_writes_survive_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    rng = random.Random(0)
    told = {name: Told() for names in NAMES for name in names}
    calls = 0
    for number in range(1, ROUNDS + 1):
        with ExitStack() as stack:
            running = [stack.enter_context(child(path, ",".join(names), number)) for names in NAMES]
            printed = killed_after(running, rng.uniform(0, 0.6))
        with Vault.open(path) as vault:
            assert vault.check() == []
            for name, lines in ((name, said_by(name, printed)) for name in told):
                acknowledged, pending = heard(told[name], lines)
                held = held_by(vault, name)
                differences = [held.differs_from(one) for one in (acknowledged, pending)]
                assert {} in differences, (number, lines[-1:], differences)
                assert vault.verify_log(acknowledged.head) == []
                if acknowledged.forgotten and pending is acknowledged:
                    assert vault.traces_anywhere(acknowledged.forgotten) == {}
                calls += acknowledged.calls - told[name].calls
                held.head, held.calls = acknowledged.head, acknowledged.calls
                told[name] = held
    assert calls > 5 * ROUNDS


def test_vectors_and_index_survive_sigkill(tmp_path: Path) -> None:
    """Killed while an embedder works: every vector is of the present text, every other text is awaited, and searches
    find what they find in an index made anew.
    """
    path, embedder, rng = tmp_path / "memory", WordEmbedder(), random.Random(1)
    cut_short = 0
    for number in range(1, ROUNDS + 1):
        with child(path, "a,b", number, "embed_child") as running:
            killed_after([running], rng.uniform(0.1, 0.6))
        with Vault.open(path) as vault:
            assert vault.check() == []
            cubes = [cube for cube in vault.walk(limit=100_000) if is_searched(cube)]
            with_vector, waiting = vault.vector_counts()
            assert with_vector + waiting == len(cubes)
            assert_vectors_are_of(vault, [cube for cube in cubes if cube.id in vault.vectors_of([cube.id])], embedder)
            cut_short += with_vector > 0 and waiting > 0
    assert cut_short
    with Vault.open(path) as vault:
        while EmbeddingWorker(vault, embedder).round():
            pass
        assert vault.vector_counts() == (len(cubes), 0)
        assert_vectors_are_of(vault, cubes, embedder)
        before = answers(vault, embedder)
        assert len(before) > 3 and vault.reindex() == len(cubes)
        assert answers(vault, embedder) == before and vault.check() == []


def assert_vectors_are_of(vault: Vault, cubes: list[MemCube], embedder: WordEmbedder) -> None:
    """Of the present texts."""
    made = embedder.embed([spoken_text(cube) for cube in cubes]).astype(np.float16)
    kept = vault.vectors_of([cube.id for cube in cubes])
    assert len(kept) == len(cubes)
    for cube, vector in zip(cubes, made, strict=True):
        assert np.array_equal(kept[cube.id], vector), cube.text


def answers(vault: Vault, embedder: WordEmbedder) -> dict[str, list[tuple[str, float]]]:
    """What searches of each owner find, by words and by meaning, with its scores."""
    operator = MemOperator(vault, QueryEmbedder(embedder))
    owners = [f"{name}-{number}" for name in "ab" for number in range(3)]
    return {
        owner: [(hit.cube.id, round(hit.score, 5)) for hit in operator.search(owner, "tea with milk changed", top_k=50)]
        for owner in owners
    }


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
        with child(path, "a", 1) as waiter:
            assert waiter.stdin is not None and waiter.stdout is not None
            waiter.stdin.write("\n")
            waiter.stdin.flush()
            time.sleep(0.3)
            holder.kill()
            while not waiter.stdout.readline().startswith("a done"):
                assert waiter.poll() is None
            waiter.kill()
    with Vault.open(path) as vault:
        assert vault.check() == []
