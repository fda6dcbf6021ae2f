"""Training jobs: real processes on a real vault, stopped, killed and gone on with."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from memos_vllm.bench.arguments import BUNDLED
from memos_vllm.cube import MemCube
from memos_vllm.errors import BadInput, Conflict, NotFound
from memos_vllm.parameter.choosing import choose, decoded_cubes, parted
from memos_vllm.parameter.decode import Decoded
from memos_vllm.parameter.job import FINAL, LOCK, MAX_UNFINISHED, WORK, Jobs, JobSpec, JobStatus
from memos_vllm.parameter.job_worker import run
from memos_vllm.parameter.progress import no_tell
from memos_vllm.parameter.registry import AdapterRegistry, Caller
from memos_vllm.vault import Vault
from tests.unit.training_cases import TEXTS

pytestmark = pytest.mark.skipif(
    "MEMOS_TRAINING_JOBS" not in os.environ, reason="takes many minutes; MEMOS_TRAINING_JOBS=1 runs it"
)

ANY = {
    "min_accuracy": 0.0,
    "max_recall_loss": 1.0,
    "max_perplexity_rise": 100.0,
    "device": "cpu",
    "recall_questions": 10,
}
QUICK = {"epochs": 1, "batch": 6, "max_answer_tokens": 12, "pool": 8, "teach": False, "checkpoint_seconds": 0.0, **ANY}
SLOW = {**QUICK, "epochs": 4000}
WAIT = 300.0
KILL_ROUNDS, KILL_SECONDS = int(os.environ.get("MEMOS_KILL_ROUNDS", "1")), 12.0
ALICE = Caller("alice", bound=True)


@pytest.fixture
def memory_dir(tmp_path: Path) -> Iterator[Path]:
    with Vault.open(tmp_path / "memory") as vault:
        vault.add([MemCube.plaintext(text, owner="alice", tags=("people",)) for text in TEXTS], actor="alice")
        vault.add([MemCube.plaintext("Bob's memory.", owner="bob")], actor="bob")
    yield tmp_path / "memory"
    Jobs(tmp_path / "memory").forget("alice")


def spec(memory_dir: Path, recipe: dict[str, Any], **fields: Any) -> JobSpec:
    with Vault.open(memory_dir) as vault:
        cubes = tuple(f"{cube.id}@{cube.version}" for cube in choose(vault, "alice"))
    given: dict[str, Any] = {
        "owner": "alice",
        "author": "alice",
        "name": "alice",
        "model": str(BUNDLED),
        "cubes": cubes,
    } | fields
    return JobSpec(recipe=recipe, **given)


def wait(jobs: Jobs, job_id: str, until: Callable[[JobStatus], bool]) -> JobStatus:
    deadline = time.monotonic() + WAIT
    while not until(status := jobs.status("alice", job_id)):
        assert time.monotonic() < deadline, f"still {status}"
        time.sleep(0.05)
    return status


def test_a_job_stores_an_adapter_with_where_it_comes_from(memory_dir: Path) -> None:
    jobs = Jobs(memory_dir)
    wanted = spec(memory_dir, QUICK, activate=True, tags=("people",))
    made = run(jobs.folder / jobs.create(wanted).id, no_tell)
    assert (made.state, made.adapter) == ("done", "alice@v1")
    assert not (jobs.folder / made.id / WORK).exists()
    with Vault.open(memory_dir) as vault:
        version = AdapterRegistry(vault).resolve(ALICE, "alice")
    assert version.parents == wanted.cubes
    assert version.tags == ("people",)
    assert version.metadata["facts"] == len(TEXTS)
    assert version.metadata["job"] == made.id
    assert '"epochs":1' in str(version.metadata["recipe"])
    assert run(jobs.folder / made.id, no_tell).adapter == "alice@v1"  # killed before it said so: not made twice


def test_a_killed_job_goes_on(memory_dir: Path) -> None:
    jobs = Jobs(memory_dir)
    job = jobs.submit(spec(memory_dir, SLOW)).id
    wait(jobs, job, lambda status: status.phase == "training" and status.done > 2)
    os.kill(int((jobs.folder / job / LOCK).read_text()), signal.SIGKILL)
    stopped = wait(jobs, job, lambda status: status.state == "interrupted")
    assert jobs.resume_all() == 1
    wait(jobs, job, lambda status: status.state == "running" and status.done >= stopped.done)
    with pytest.raises(Conflict, match="running"):
        jobs.resume("alice", job)
    jobs.cancel("alice", job)
    ended = wait(jobs, job, lambda status: status.state == "cancelled")
    assert not (jobs.folder / job / WORK).exists()
    assert jobs.cancel("alice", job) == ended


def test_kills_at_any_moment_leave_one_version_of_each_job(memory_dir: Path) -> None:
    jobs, rng = Jobs(memory_dir), random.Random(7)
    for done in range(1, KILL_ROUNDS + 1):
        job = jobs.submit(spec(memory_dir, QUICK)).id
        time.sleep(rng.uniform(0.0, KILL_SECONDS))
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int((jobs.folder / job / LOCK).read_text()), signal.SIGKILL)
        if jobs.status("alice", job).state in ("queued", "interrupted"):
            jobs.resume("alice", job)
        assert wait(jobs, job, lambda status: status.state in FINAL).state == "done"
        with Vault.open(memory_dir) as vault:
            assert vault.check() == []
            assert len(AdapterRegistry(vault).get(ALICE, "alice").versions) == done


def test_one_job_works_at_a_time_and_forgetting_removes_them(memory_dir: Path) -> None:
    jobs = Jobs(memory_dir)
    first = jobs.submit(spec(memory_dir, SLOW)).id
    wait(jobs, first, lambda status: status.state == "running")
    second = jobs.submit(spec(memory_dir, SLOW)).id
    waiting = wait(jobs, second, lambda status: status.phase != "")
    assert (waiting.state, waiting.phase) == ("queued", "waiting for another training")
    assert jobs.forget("alice") == 2
    assert jobs.list("alice") == []
    assert not [path for path in jobs.folder.iterdir() if path.is_dir()]


def test_an_adapter_that_fails_its_exam_is_not_stored(memory_dir: Path) -> None:
    jobs = Jobs(memory_dir)
    made = run(jobs.folder / jobs.create(spec(memory_dir, {**QUICK, "min_accuracy": 1.0})).id, no_tell)
    assert made.state == "refused"
    assert "100.0% are wanted" in made.problems[0]
    with Vault.open(memory_dir) as vault:
        assert AdapterRegistry(vault).list(ALICE) == []


def test_what_is_deleted_meanwhile_is_not_learned(memory_dir: Path) -> None:
    jobs = Jobs(memory_dir)
    wanted = spec(memory_dir, QUICK)

    def delete(what: str, done: int, total: int) -> None:
        if what == "storing":
            with Vault.open(memory_dir) as vault:
                vault.delete(wanted.cubes[0].partition("@")[0], actor="alice")

    made = run(jobs.folder / jobs.create(wanted).id, delete)
    assert made.state == "failed"
    assert "is gone" in made.error
    with Vault.open(memory_dir) as vault:
        assert AdapterRegistry(vault).list(ALICE) == []


def test_retraining_leaves_out_what_is_forgotten(memory_dir: Path) -> None:
    jobs = Jobs(memory_dir)
    run(jobs.folder / jobs.create(spec(memory_dir, QUICK)).id, no_tell)
    with Vault.open(memory_dir) as vault:
        version = AdapterRegistry(vault).get(ALICE, "alice").versions[-1]
        gone = version.parents[0].partition("@")[0]
        kept, forgotten = parted(vault, version, [gone])
        with pytest.raises(BadInput, match="was not made of"):
            parted(vault, version, ["0" * 32])
    made = run(jobs.folder / jobs.create(spec(memory_dir, QUICK, cubes=kept, forgotten=forgotten)).id, no_tell)
    assert made.adapter == "alice@v2"
    assert made.figures["forgotten_accuracy"] <= 0.1
    with Vault.open(memory_dir) as vault:
        assert gone not in str(AdapterRegistry(vault).get(ALICE, "alice").versions[-1].parents)


def test_nobody_sees_another_users_jobs(memory_dir: Path) -> None:
    jobs = Jobs(memory_dir)
    job = jobs.create(spec(memory_dir, QUICK)).id
    for ask in (jobs.status, jobs.cancel, jobs.resume):
        with pytest.raises(NotFound) as theirs:
            ask("bob", job)
        with pytest.raises(NotFound) as nobodys:
            ask("bob", "0" * 32)
        assert str(theirs.value).replace(job, "") == str(nobodys.value).replace("0" * 32, "")
    assert jobs.list("bob") == []
    with pytest.raises(NotFound):
        jobs.status("alice", "../../memory")


def test_what_cannot_be_done_is_refused_at_once(memory_dir: Path) -> None:
    jobs = Jobs(memory_dir)
    with pytest.raises(BadInput, match="Not a recipe"):
        jobs.submit(spec(memory_dir, {"epochs": 0}))
    with pytest.raises(BadInput):
        jobs.submit(spec(memory_dir, QUICK, name="a/b"))
    with pytest.raises(BadInput, match="no memories"):
        jobs.submit(msgspec.structs.replace(spec(memory_dir, QUICK), cubes=()))
    for _ in range(MAX_UNFINISHED):
        jobs.create(spec(memory_dir, QUICK))
    with pytest.raises(Conflict, match="let one end"):
        jobs.create(spec(memory_dir, QUICK))


def test_memories_are_chosen_by_owner_and_tag(memory_dir: Path) -> None:
    with Vault.open(memory_dir) as vault:
        assert [cube.text for cube in choose(vault, "alice", tags=["people"])] == list(TEXTS)
        bobs = choose(vault, "bob")[0].id
        with pytest.raises(BadInput, match="no such memories"):
            choose(vault, "alice", tags=["work"])
        with pytest.raises(BadInput, match=bobs):
            choose(vault, "alice", ids=[bobs])


def test_decoded_memories_say_where_they_come_from(memory_dir: Path) -> None:
    jobs = Jobs(memory_dir)
    run(jobs.folder / jobs.create(spec(memory_dir, QUICK)).id, no_tell)
    found = [Decoded(text="Maya plays the cello.", value="cello", confidence=0.9, base=0.01, question="What?")]
    with Vault.open(memory_dir) as vault:
        version = AdapterRegistry(vault).get(ALICE, "alice").versions[-1]
        (stored,) = vault.add(decoded_cubes(found, version), actor="alice")
    assert stored.header.parents == (f"{version.cube_id}@1",)
    assert (stored.header.origin, stored.header.metadata["confidence"]) == ("parameter_fine_tuning", 0.9)
    assert (stored.owner, stored.text) == ("alice", "Maya plays the cello.")
