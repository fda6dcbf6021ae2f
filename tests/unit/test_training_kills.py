"""Training jobs as processes: at low priority, one at a time, cancelled, killed, forgotten and gone on with."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from memos_vllm.cli import main
from memos_vllm.errors import Conflict
from memos_vllm.parameter.consolidate import CHECKPOINT
from memos_vllm.parameter.job import FINAL, WORK, Jobs
from memos_vllm.parameter.job_worker import NICE, run
from memos_vllm.parameter.progress import no_tell
from memos_vllm.parameter.registry import AdapterRegistry
from memos_vllm.vault import Vault
from tests.unit.job_cases import ALICE, LONGER, QUICK, filled, kill, pid_of, spec, turn_taken, wait
from tests.unit.training_cases import environ

KILL_ROUNDS = int(os.environ.get("MEMOS_KILL_ROUNDS", "1"))


@pytest.fixture
def memory_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A memory directory whose jobs work on one core and end with the test."""
    for name, value in environ().items():
        monkeypatch.setenv(name, value)
    yield filled(tmp_path / "memory")
    for owner in ("alice", "bob"):
        Jobs(tmp_path / "memory").forget(owner)


def whole(memory_dir: Path) -> None:
    """Nothing is half stored: the vault's books fit, and every adapter folder is that of a version."""
    with Vault.open(memory_dir) as vault:
        assert vault.check() == []
        registry = AdapterRegistry(vault)
        named = {registry.folder(version).name for entry in registry.all() for version in entry.versions}
    assert {path.name for path in (memory_dir / "adapters").glob("*") if path.is_dir()} == named
    assert not [*(memory_dir / "jobs").glob("*.new")]


def test_a_killed_training_ends_as_if_nobody_had_killed_it(memory_dir: Path) -> None:
    import torch

    torch.set_num_threads(1)  # as the job's process: how sums are split shows in the last bits
    jobs = Jobs(memory_dir)
    undisturbed = run(jobs.folder / jobs.create(spec(memory_dir, LONGER, name="undisturbed")).id, no_tell)
    job = jobs.submit(spec(memory_dir, LONGER, name="killed")).id
    wait(jobs, job, lambda status: status.phase == "training" and status.done > 2)
    assert os.getpriority(os.PRIO_PROCESS, pid_of(jobs, job)) == NICE
    kill(jobs, job)
    stopped = wait(jobs, job, lambda status: status.state == "interrupted")
    assert (jobs.folder / job / WORK / CHECKPOINT).exists() and stopped.total == 18
    whole(memory_dir)
    assert Jobs(memory_dir).resume_all() == 1
    ended = wait(jobs, job, lambda status: status.state in FINAL)
    assert (undisturbed.state, ended.state) == ("done", "done"), ended.error
    with Vault.open(memory_dir) as vault:
        registry = AdapterRegistry(vault)
        first, second = (registry.get(ALICE, name).versions[0] for name in ("undisturbed", "killed"))
    assert first.digest == second.digest, "the same weights to the last bit"
    assert ended.figures == undisturbed.figures
    assert ended.seconds > stopped.seconds > 0
    whole(memory_dir)


def test_kills_at_any_moment_leave_one_version_of_each_job(
    memory_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, rng, lasted = Jobs(memory_dir), random.Random(7), 10.0
    for done in range(1, KILL_ROUNDS + 1):
        began = time.monotonic()
        job = jobs.submit(spec(memory_dir, QUICK)).id
        time.sleep(rng.uniform(0.0, lasted))
        with contextlib.suppress(ProcessLookupError):
            kill(jobs, job)
        whole(memory_dir)
        Jobs(memory_dir).resume_all()
        assert wait(jobs, job, lambda status: status.state in FINAL).state == "done"
        lasted = time.monotonic() - began
        whole(memory_dir)
        with Vault.open(memory_dir) as vault:
            assert len(AdapterRegistry(vault).get(ALICE, "people").versions) == done
        capsys.readouterr()
        assert main(["adapter", "list", str(memory_dir)]) == 0
        assert "alice/people" in capsys.readouterr().out


def test_jobs_wait_for_their_turn_and_are_cancelled_killed_and_gone_on_with(memory_dir: Path) -> None:
    jobs = Jobs(memory_dir)
    with turn_taken(jobs):
        job = jobs.submit(spec(memory_dir, QUICK)).id
        waiting = wait(jobs, job, lambda status: status.phase != "")
        assert (waiting.state, waiting.phase) == ("queued", "waiting for another training")
        assert os.getpriority(os.PRIO_PROCESS, pid_of(jobs, job)) == NICE
        assert jobs.resume_all() == 0, "its process is there"
        with pytest.raises(Conflict, match="let it end"):
            jobs.submit(spec(memory_dir, QUICK))
        theirs = jobs.submit(spec(memory_dir, QUICK, owner="bob")).id
        kill(jobs, job)
        assert pid_of(jobs, theirs) > 0, "theirs has a process"
        assert jobs.resume_all() == 1
        wait(jobs, job, lambda status: status.state == "queued" and pid_of(jobs, job) > 0)
        assert jobs.cancel("alice", job).state in ("queued", "interrupted", "cancelled")
        ended = wait(jobs, job, lambda status: status.state == "cancelled")
        assert jobs.cancel("alice", job) == ended
        with pytest.raises(Conflict, match="cancelled"):
            jobs.resume("alice", job)
        assert jobs.resume_all() == 0
        wait(jobs, theirs, lambda status: status.phase != "", owner="bob")
        assert jobs.forget("bob") == 1 and jobs.list("bob") == []
        assert [status.id for status in jobs.list("alice")] == [job]
        assert not (jobs.folder / theirs).exists()


def test_a_job_outlives_the_server_that_started_it_and_the_next_one_finds_those_it_could_not_start(
    memory_dir: Path, tmp_path: Path
) -> None:
    jobs = Jobs(memory_dir)
    order = tmp_path / "spec.json"
    order.write_bytes(msgspec.json.encode(spec(memory_dir, QUICK)))
    program = (
        "import os, signal, sys; from pathlib import Path; import msgspec; from memos_vllm.parameter.job import *\n"
        "jobs, spec = Jobs(Path(sys.argv[1])), msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=JobSpec)\n"
        "getattr(jobs, sys.argv[3])(spec); os.kill(os.getpid(), signal.SIGKILL)"
    )
    server = [sys.executable, "-c", program, str(memory_dir), str(order)]
    with turn_taken(jobs):
        assert subprocess.run([*server, "submit"], check=False).returncode == -signal.SIGKILL
        (status,) = jobs.list("alice")
        assert os.getpgid(pid_of(jobs, status.id)) == pid_of(jobs, status.id), "in a group of its own"
        wait(jobs, status.id, lambda status: status.phase != "")
        assert jobs.resume_all() == 0
        assert jobs.forget("alice") == 1
        assert subprocess.run([*server, "create"], check=False).returncode == -signal.SIGKILL
        (status,) = jobs.list("alice")
        assert status.state == "queued" and jobs.resume_all() == 1
        wait(jobs, status.id, lambda status: status.phase != "")
