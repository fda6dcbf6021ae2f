"""Registry and folders agree after kill -9, at any moment; nothing half written is ever served.

MEMOS_KILL_ROUNDS: how often two processes are killed, and at how many moments of a fixed script (default 2).
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

from memos_vllm.governance.identity import Caller
from memos_vllm.parameter.registry import AdapterRegistry
from memos_vllm.vault import Vault
from tests.unit.adapter_cases import registry_of
from tests.unit.adapter_child import Seen, seen

ROUNDS = int(os.environ.get("MEMOS_KILL_ROUNDS", "2"))
NAMES = ("a", "b")
ROOT = Path(__file__).resolve().parents[2]
MANY = 10_000
"""More than the script touches the file system."""


def child(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", "tests.unit.adapter_child", *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def killed_after(running: list[subprocess.Popen[str]], seconds: float) -> list[list[str]]:
    """The whole lines which the children, set off now, had printed when they were killed together."""
    for process in running:
        print("", file=process.stdin, flush=True)
    first = [process.stdout.readline() if process.stdout else "" for process in running]
    assert all(first), "a child failed"
    time.sleep(seconds)
    for process in running:
        process.kill()
    lines = [[line, *(process.stdout or [])] for line, process in zip(first, running, strict=True)]
    assert [process.wait() for process in running] == [-signal.SIGKILL] * len(running)
    return [[line for line in told if line.endswith("\n")] for told in lines]


def heard(before: dict[str, Seen], lines: list[str]) -> tuple[dict[str, Seen], dict[str, Seen], int]:
    """What was acknowledged, what the call that was cut short would have left, and the number of calls."""
    told = pending = before
    calls = 0
    for line in lines:
        if line == "done\n":
            told, calls = pending, calls + 1
        else:
            after: dict[str, Any] = told | json.loads(line)
            pending = {name: held for name, held in after.items() if held is not None}
    return told, pending, calls


def check_whole(registry: AdapterRegistry, scratch: Path) -> dict[int, tuple[str, int]]:
    """The vault is sound, its folders are those that versions name, each can be staged. Returns versions by number."""
    vault = registry.vault
    assert vault.check() == []
    versions = [version for entry in registry.all() for version in entry.versions]
    folders = {path.name for path in (vault.path / "adapters").glob("*")}
    assert folders == {registry.folder(version).name for version in versions}
    for number, version in enumerate(versions):
        registry.stage(version, scratch / str(number))
    return {version.int_id: (version.cube_id, version.version) for version in versions}


def test_acknowledged_writes_survive_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    rng = random.Random(0)
    told: dict[str, dict[str, Seen]] = {name: {} for name in NAMES}
    numbers: dict[int, tuple[str, int]] = {}
    calls = 0
    for number in range(1, ROUNDS + 1):
        with ExitStack() as stack:
            running = [stack.enter_context(child("traffic", path, name, number)) for name in NAMES]
            printed = killed_after(running, rng.uniform(0, 0.6))
        scratch = tmp_path / f"staged-{number}"
        scratch.mkdir()
        with Vault.open(path) as vault:
            registry = registry_of(vault)
            found = check_whole(registry, scratch)
            assert all(numbers.get(given, version) == version for given, version in found.items())
            numbers |= found
            for name, lines in zip(NAMES, printed, strict=True):
                acknowledged, pending, done = heard(told[name], lines)
                held = {entry.name: seen(entry) for entry in registry.list(Caller(name, bound=True))}
                assert held in (acknowledged, pending), (number, lines[-1:], held, acknowledged)
                told[name], calls = held, calls + done
    assert calls > 2 * ROUNDS


def test_every_moment_of_a_write_can_be_the_last(tmp_path: Path) -> None:
    """A process dies before the Nth time that it touches a file or folder, and leaves a vault that is whole."""
    with child("moments", tmp_path) as runs:
        assert runs.stdin is not None and runs.stdout is not None

        def ended(number: int) -> int:
            print(number, file=runs.stdin, flush=True)
            assert runs.stdout is not None
            return int(runs.stdout.readline())

        assert ended(MANY) == 0
        last = next(number for number in (2**power for power in range(14)) if ended(number) == 0)
        moments = random.Random(0).sample(range(1, last), min(ROUNDS, last - 1))
        died = sum(ended(number) == -signal.SIGKILL for number in moments)
        runs.stdin.close()
    assert died > len(moments) // 3
    for number in [*moments, MANY]:
        scratch = tmp_path / f"staged-{number}"
        scratch.mkdir()
        with Vault.open(tmp_path / str(number)) as vault:
            check_whole(registry_of(vault), scratch)
            if number == MANY:
                assert vault.list("maya") == [] and vault.traces_of("maya") == {}
