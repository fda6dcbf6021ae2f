"""Training jobs on a real vault, in this process: what they store, what they refuse, who sees them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from memos_vllm.errors import BadInput, Conflict, NotFound
from memos_vllm.parameter import job as job_module
from memos_vllm.parameter.choosing import choose, decoded_cubes, parted
from memos_vllm.parameter.decode import Decoded
from memos_vllm.parameter.job import MAX_KEPT, WORK, Jobs
from memos_vllm.parameter.job_worker import job_lock, run
from memos_vllm.parameter.learned import is_proposed, sources_of
from memos_vllm.parameter.progress import no_tell
from memos_vllm.parameter.registry import AdapterRegistry
from memos_vllm.vault import Vault
from tests.unit.job_cases import ALICE, ENDLESS, QUICK, filled, spec
from tests.unit.training_cases import TEXTS


@pytest.fixture
def memory_dir(tmp_path: Path) -> Iterator[Path]:
    """A memory directory whose jobs end with the test."""
    yield filled(tmp_path / "memory")
    Jobs(tmp_path / "memory").forget("alice")


def test_a_job_stores_an_adapter_with_where_it_comes_from(memory_dir: Path) -> None:
    jobs = Jobs(memory_dir)
    wanted = spec(memory_dir, QUICK, activate=True, tags=("people",))
    made = run(jobs.folder / jobs.create(wanted).id, no_tell)
    assert (made.state, made.adapter) == ("done", "people@v1")
    assert not (jobs.folder / made.id / WORK).exists()
    with Vault.open(memory_dir) as vault:
        version = AdapterRegistry(vault).resolve(ALICE, "people")
    assert version.parents == wanted.cubes
    assert version.tags == ("people",)
    assert version.metadata["facts"] == len(TEXTS)
    assert version.metadata["job"] == made.id
    assert {*sources_of(version)} < {*wanted.cubes}, "three steps teach next to nothing"
    assert is_proposed(version) is False
    assert (made.memories, made.seconds > 0) == (len(TEXTS), True)
    assert jobs.seconds_each() == pytest.approx(made.seconds / len(TEXTS))
    assert '"epochs":1' in str(version.metadata["recipe"])
    assert run(jobs.folder / made.id, no_tell).adapter == "people@v1"  # killed before it said so: not made twice


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
        version = AdapterRegistry(vault).get(ALICE, "people").versions[-1]
        gone = version.parents[0].partition("@")[0]
        kept, forgotten = parted(vault, version, [gone])
        with pytest.raises(BadInput, match="was not made of"):
            parted(vault, version, ["0" * 32])
    made = run(jobs.folder / jobs.create(spec(memory_dir, QUICK, cubes=kept, forgotten=forgotten)).id, no_tell)
    assert made.adapter == "people@v2"
    assert made.figures["forgotten_accuracy"] <= 0.1
    with Vault.open(memory_dir) as vault:
        version = AdapterRegistry(vault).get(ALICE, "people").versions[-1]
        assert gone not in str(version.parents)
        assert parted(vault, version, []) == (kept, ()), "an older version is no memory"


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


def test_what_cannot_be_done_is_refused_at_once(memory_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(memory_dir)
    with pytest.raises(BadInput, match="Not a recipe"):
        jobs.submit(spec(memory_dir, {"epochs": 0}))
    with pytest.raises(BadInput):
        jobs.submit(spec(memory_dir, QUICK, name="a/b"))
    with pytest.raises(BadInput, match="no memories"):
        jobs.submit(msgspec.structs.replace(spec(memory_dir, QUICK), cubes=()))
    jobs.create(spec(memory_dir, QUICK))
    with pytest.raises(Conflict, match="let it end, go on with it"):
        jobs.create(spec(memory_dir, QUICK))
    jobs.create(spec(memory_dir, QUICK, owner="bob"))
    monkeypatch.setattr(job_module, "MAX_WAITING", 2)
    with pytest.raises(Conflict, match="try again later"):
        jobs.create(spec(memory_dir, QUICK, owner="carol", cubes=("0" * 32 + "@1",)))
    assert len(jobs.unfinished()) == 2 and len([*jobs.folder.iterdir()]) == 3, "two jobs and a lock"


def test_one_owner_starts_one_job_however_many_ask_at_once(memory_dir: Path) -> None:
    jobs, wanted, refused = Jobs(memory_dir), spec(memory_dir, QUICK), []

    def ask() -> None:
        try:
            jobs.create(wanted)
        except Conflict as error:
            refused.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5 and len(jobs.list("alice")) == 1


def test_few_ended_jobs_are_kept(memory_dir: Path) -> None:
    jobs, made = Jobs(memory_dir), []
    (memory_dir / "jobs").mkdir()
    (memory_dir / "jobs" / "left-by-a-crash.new").mkdir()
    theirs = jobs.create(spec(memory_dir, QUICK, owner="bob")).id
    for _ in range(MAX_KEPT + 3):
        made.append(jobs.create(spec(memory_dir, QUICK)).id)
        jobs.cancel("alice", made[-1])
    assert [status.id for status in jobs.list("alice")] == made[-MAX_KEPT:]
    assert [status.id for status in jobs.list("bob")] == [theirs]
    assert not [*jobs.folder.glob("*.new")]


def test_who_is_forgotten_while_training_leaves_nothing(memory_dir: Path) -> None:
    jobs = Jobs(memory_dir)
    folder = jobs.folder / jobs.create(spec(memory_dir, ENDLESS)).id
    began, ended = threading.Event(), []

    def tell(what: str, done: int, total: int) -> None:
        if done > 2 and what == "training":
            began.set()

    def work() -> None:
        with job_lock(folder) as mine:
            assert mine
            try:
                run(folder, tell)
            finally:
                ended.append(folder.exists())

    thread = threading.Thread(target=work)
    thread.start()
    assert began.wait(120)
    assert jobs.forget("alice") == 1
    thread.join(60)
    assert ended and jobs.list("alice") == []
    assert [path.name for path in jobs.folder.iterdir() if path.is_dir()] == []
    assert not [*(memory_dir / "adapters").glob("*")]


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
        version = AdapterRegistry(vault).get(ALICE, "people").versions[-1]
        (stored,) = vault.add(decoded_cubes(found, version), actor="alice")
    assert stored.header.parents == (f"{version.cube_id}@1",)
    assert (stored.header.origin, stored.header.metadata["confidence"]) == ("parameter_fine_tuning", 0.9)
    assert (stored.owner, stored.text) == ("alice", "Maya plays the cello.")
