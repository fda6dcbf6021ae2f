"""Trainings that take seconds, of a vault with memories of two people."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memos_vllm.bench.arguments import BUNDLED
from memos_vllm.cube import MemCube
from memos_vllm.parameter.choosing import choose
from memos_vllm.parameter.job import LOCK, RUNNING, Jobs, JobSpec, JobStatus, alone
from memos_vllm.parameter.registry import Caller
from memos_vllm.vault import Vault
from tests.unit.training_cases import TEXTS

ANY = {
    "min_accuracy": 0.0,
    "max_recall_loss": 1.0,
    "max_perplexity_rise": 100.0,
    "device": "cpu",
    "recall_questions": 4,
}
QUICK = {"epochs": 1, "batch": 6, "max_answer_tokens": 8, "pool": 4, "teach": False, "checkpoint_seconds": 0.0, **ANY}
LONGER = {**QUICK, "epochs": 6, "phrasings": 2}
"""Eighteen steps: enough to be killed among them."""
ENDLESS = {**QUICK, "epochs": 4000}
WAIT = 900.0
"""Seconds after which a test gives up: on a busy machine a process of the lowest priority waits long."""
ALICE = Caller("alice", bound=True)


def filled(memory_dir: Path) -> Path:
    """A memory directory with memories of alice and bob."""
    with Vault.open(memory_dir) as vault:
        vault.add([MemCube.plaintext(text, owner="alice", tags=("people",)) for text in TEXTS], actor="alice")
        vault.add([MemCube.plaintext("Bob's memory.", owner="bob")], actor="bob")
    return memory_dir


def spec(memory_dir: Path, recipe: dict[str, Any], **fields: Any) -> JobSpec:
    """A training of all memories of an owner, alice where none is named."""
    owner = fields.get("owner", "alice")
    if "cubes" not in fields:
        with Vault.open(memory_dir) as vault:
            fields["cubes"] = tuple(f"{cube.id}@{cube.version}" for cube in choose(vault, owner))
    given = {"owner": owner, "author": owner, "name": "people", "model": str(BUNDLED)} | fields
    return JobSpec(recipe=recipe, **given)


def wait(jobs: Jobs, job_id: str, until: Callable[[JobStatus], bool], owner: str = "alice") -> JobStatus:
    deadline = time.monotonic() + WAIT
    while not until(status := jobs.status(owner, job_id)):
        assert time.monotonic() < deadline, f"still {status}; {(jobs.folder / job_id / 'log').read_text()[-2000:]}"
        time.sleep(0.02)
    return status


def pid_of(jobs: Jobs, job_id: str) -> int:
    """The process of a job, once it is there."""
    file, deadline = jobs.folder / job_id / LOCK, time.monotonic() + WAIT
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(file.read_text())


def kill(jobs: Jobs, job_id: str) -> None:
    """Kill a job's process; it is gone when this returns."""
    os.kill(pid_of(jobs, job_id), signal.SIGKILL)
    with alone(jobs.folder / job_id / LOCK, WAIT) as mine:
        assert mine


@contextmanager
def turn_taken(jobs: Jobs) -> Iterator[None]:
    """Within it jobs wait, and load no model."""
    jobs.folder.mkdir(mode=0o700, exist_ok=True)
    with alone(jobs.folder / RUNNING) as mine:
        assert mine
        yield
