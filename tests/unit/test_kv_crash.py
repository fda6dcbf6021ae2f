"""`kill -9` at any moment of captures, loads and evictions: no wrong or half KV is ever read as good."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from memos_vllm.activation.disk import DiskTier
from memos_vllm.activation.files import KV_DIR, KVLabel, kv_path, read_kv
from memos_vllm.activation.payload import KVCube, stored_nbytes
from memos_vllm.activation.policies import LRUPolicy

ROUNDS = int(os.environ.get("MEMOS_KILL_ROUNDS", "4"))
IDENTITY = "b" * 32
SHAPE = (4, 64, 2, 64)
CUBE_BYTES = stored_nbytes(SHAPE, torch.bfloat16, "auto")
KEYS = 24
BUDGET = 8 * (CUBE_BYTES + 2048)

# Forks a child for each line on stdin, for `import torch` takes longer than a round; prints its pid.
NURSERY = """
import os, sys
from pathlib import Path
import torch
from tests.unit.test_kv_crash import captures_and_evictions
torch.set_num_threads(1)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        captures_and_evictions(Path(sys.argv[1]), int(line))
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("dead", flush=True)
"""


def key(number: int) -> str:
    return f"{number:032x}"


def label(number: int) -> KVLabel:
    return KVLabel(key(number), IDENTITY, f"{number:064x}")


def cube(number: int) -> KVCube:
    """K/V that the number alone decides."""
    k, v = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(number)).bfloat16()
    return KVCube(k, v, origin=number)


def captures_and_evictions(folder: Path, seed: int) -> None:
    """Without end: capture cubes anew, load others, with a budget that holds a third of them."""
    from memos_vllm.activation.store import KVStore

    rng = random.Random(seed)
    store = KVStore(folder, 0, 1)
    disk = DiskTier(folder, IDENTITY, 1, BUDGET, LRUPolicy(), rescan=0.02)
    cubes = [cube(number) for number in range(KEYS)]
    while True:
        number = rng.randrange(KEYS)
        if disk.present(key(number)) and rng.random() < 0.7:
            store.fetch(key(number), label(number), SHAPE)
            disk.used(key(number))
        elif store.pending < 3 and disk.make_room(key(number), CUBE_BYTES):
            store.keep(key(number), label(number), cubes[number])
        for written in store.written():
            assert written.ok, written.error
            disk.added(written.key)
            store.drop(written.key)
        for fetched in store.poll():
            if not fetched.ok:  # evicted between the question and the fetch
                assert "cannot be read" in fetched.error or "dropped" in fetched.error, fetched.error
                disk.gone(fetched.key)
            store.drop(fetched.key)
        time.sleep(0.001)


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", NURSERY, str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def kill_one(nursery: subprocess.Popen[str], seed: int, seconds: float) -> None:
    """Let a child run for a while and kill it."""
    assert nursery.stdin is not None and nursery.stdout is not None
    nursery.stdin.write(f"{seed}\n")
    nursery.stdin.flush()
    pid = int(nursery.stdout.readline())
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    assert nursery.stdout.readline() == "dead\n"


def read_all(folder: Path) -> int:
    """Read every KV file and compare it, byte for byte; returns how many there are."""
    found = 0
    for number in range(KEYS):
        path = kv_path(folder, IDENTITY, key(number))
        if path.exists():
            read, expected = read_kv(path, label(number), SHAPE), cube(number)
            assert torch.equal(read.k, expected.k)
            assert torch.equal(read.v, expected.v)
            assert read.origin == number
            found += 1
    return found


def test_what_a_kill_leaves_is_right_or_not_there(tmp_path: Path, nursery: subprocess.Popen[str]) -> None:
    rng = random.Random()
    cubes = unfinished = 0
    for seed in range(ROUNDS):
        kill_one(nursery, seed, rng.uniform(0.1, 0.5))
        cubes += read_all(tmp_path)
        files = [path for path in (tmp_path / KV_DIR).rglob("*") if path.is_file()]
        unfinished += sum(path.suffix == ".tmp" for path in files)
        assert all(path.suffix in (".safetensors", ".tmp") for path in files)
    assert cubes > 0
    tier = DiskTier(tmp_path, IDENTITY, 1, BUDGET, LRUPolicy(), rescan_pause=0.0)
    tier.rescan_now()
    assert tier.wait_idle()
    tier.check_integrity()
    tier.close()
    assert tier.stats().leftovers <= unfinished
    left = [path for path in (tmp_path / KV_DIR).rglob("*") if path.is_file()]
    assert all(path.suffix == ".safetensors" for path in left), "no unfinished file stays"
    assert sum(path.stat().st_size for path in left) <= BUDGET
    assert read_all(tmp_path) == len(left) == tier.stats().num_cubes
