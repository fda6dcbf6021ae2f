"""Trainings that the scheduler begins by itself: for whom, when, and which adapters may answer afterwards."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from transformers import AutoTokenizer

from memos_vllm.cube import MemCube
from memos_vllm.errors import AdapterInactive, Conflict
from memos_vllm.governance.consent import allow, allows, willing
from memos_vllm.parameter.job import Jobs, finish
from memos_vllm.parameter.learned import LEARNED, PROPOSED
from memos_vllm.parameter.registry import AdapterVersion, Caller
from memos_vllm.scheduler.clock import DAY
from memos_vllm.server import consolidating, consolidator, metrics
from memos_vllm.server.claims import claimed
from memos_vllm.server.consolidating import CLAIM, EVERY, Consolidating
from memos_vllm.server.consolidator import AGAIN, NAME, Consolidator, Mode
from memos_vllm.server.knowledge import Knowledge
from memos_vllm.server.prompt import PromptBuilder
from memos_vllm.server.uses import UseBook
from memos_vllm.vault import Vault
from tests.unit import adapter_cases
from tests.unit.adapter_cases import MAYA, TINY, registry_of
from tests.unit.job_cases import turn_taken
from tests.unit.test_ageing import count

TEXTS = tuple(
    f"My {thing} is the one that stands beside the old red {place} near the river."
    for thing, place in zip(("boat", "shed", "bicycle"), ("barn", "mill", "bridge"), strict=True)
)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault
        Jobs(vault.path).forget("maya")
        Jobs(vault.path).forget("tom")
        assert vault.check() == []


def consolidator_of(vault: Vault, mode: Mode = "auto") -> Consolidator:
    uses, prompts = UseBook(vault), PromptBuilder(AutoTokenizer.from_pretrained(TINY))
    knowledge = Knowledge(registry_of(vault), uses, prompts, auto=True, leave_out=True)
    return Consolidator(knowledge, Jobs(vault.path), uses, prompts, model=str(TINY), mode=mode)


def later() -> float:
    """When memories of now are stable."""
    return time.time() + 9 * DAY


def used(vault: Vault, owner: str, *texts: str, times: int = 12) -> list[MemCube]:
    """Memories that are used often, `later`."""
    made = vault.add([MemCube.plaintext(text, owner=owner) for text in texts], actor=owner)
    vault.transition_all([cube.id for cube in made], "activated", actor=owner)
    vault.add_uses({cube.id: times for cube in made}, later())
    return [vault.get(cube.id) for cube in made]


def adapter(vault: Vault, tmp_path: Path, cubes: Sequence[MemCube], marks: str, **more: Any) -> AdapterVersion:
    """An adapter of maya's, as a training leaves it."""
    parents = [f"{cube.id}@{cube.version}" for cube in cubes]
    given: dict[str, Any] = {"metadata": {LEARNED: marks, PROPOSED: True}, "activate": True, "parents": parents} | more
    return adapter_cases.add(registry_of(vault), tmp_path, given.pop("name", NAME), **given)


def test_the_owner_who_saves_most_and_allows_it_gets_a_training(vault: Vault) -> None:
    metrics.create()
    began = count("memos_consolidations_total", outcome="started")
    mine = used(vault, "maya", *TEXTS)
    used(vault, "tom", *TEXTS, "My lamp is the green one of all that stand in the hall.")
    runner = Consolidating(consolidator_of(vault))
    with turn_taken(runner.consolidator.jobs):
        assert asyncio.run(runner.round(later()))
        assert runner.consolidator.jobs.unfinished() == [], "nobody has allowed it"
        allow(vault, "maya", True, actor="maya")
        assert asyncio.run(runner.round(later() + EVERY + 1))
        (status,) = runner.consolidator.jobs.list("maya")
        ((spec, _),) = runner.consolidator.jobs.specs("maya")
        assert (status.proposed, status.name, status.memories, spec.activate) == (True, NAME, 3, True)
        assert {*spec.cubes} == {f"{cube.id}@1" for cube in mine}
        assert "one that stands" not in (runner.consolidator.jobs.folder / status.id / "spec.json").read_text()
        assert count("memos_consolidations_total", outcome="started") == began + 1
        allow(vault, "tom", True, actor="tom")
        assert asyncio.run(runner.round(later() + 2 * EVERY + 2))
        assert runner.consolidator.jobs.list("tom") == [], "one at a time, however much it would save"
        cancelled = count("memos_consolidations_total", outcome="cancelled")
        runner.note_ends()
        runner.consolidator.withdrawn("maya")
        while runner.consolidator.jobs.unfinished():
            time.sleep(0.05)
        runner.note_ends()
        assert count("memos_consolidations_total", outcome="cancelled") == cancelled + 1
        assert asyncio.run(runner.round(later() + 3 * EVERY + 3))
        assert [status.memories for status in runner.consolidator.jobs.list("tom")] == [4]


def test_nobody_looks_more_than_once_an_hour(vault: Vault) -> None:
    first, second = Consolidating(consolidator_of(vault)), Consolidating(consolidator_of(vault))
    now = time.time()
    assert asyncio.run(first.round(now))
    assert not asyncio.run(first.round(now + EVERY - 1))
    assert not asyncio.run(second.round(now + EVERY - 1)), "another server of the same directory"
    with claimed(vault.path, CLAIM) as mine:
        assert mine and not asyncio.run(second.round(now + EVERY + 1))
    assert asyncio.run(second.round(now + EVERY + 1))


def test_it_rests_longer_than_it_works(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(vault, "maya", True, actor="maya")
    vault.add([MemCube.plaintext(f"Fact {n}.", owner="maya") for n in range(2000)], actor="maya")
    monkeypatch.setattr(consolidating, "REST", 3.0)
    rests: list[float] = []
    sleep = asyncio.sleep

    async def counted(seconds: float) -> None:
        rests.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", counted)
    runner, began = Consolidating(consolidator_of(vault)), time.perf_counter()
    asyncio.run(runner.round(later()))
    assert len(rests) >= 30 and sum(rests) > 0.4 * (time.perf_counter() - began)


def test_it_works_by_itself_once_started(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consolidating, "TICK", 0.02)
    monkeypatch.setattr(consolidating, "time", SimpleNamespace(time=later, perf_counter=time.perf_counter))
    used(vault, "maya", *TEXTS)
    allow(vault, "maya", True, actor="maya")
    runner = Consolidating(consolidator_of(vault))

    async def run() -> None:
        runner.start()
        deadline = time.monotonic() + 30
        while not runner.consolidator.jobs.list("maya"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    with turn_taken(runner.consolidator.jobs):
        asyncio.run(run())


def why_not(vault: Vault, now: float | None = None, mode: Mode = "auto") -> str:
    return consolidator_of(vault, mode).offer("maya", now or later()).why_not


def test_what_stands_against_a_training_is_said(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cubes = used(vault, "maya", *TEXTS)
    assert why_not(vault, mode="propose") == "--memory-consolidate is propose"
    assert why_not(vault).startswith("not allowed")
    allow(vault, "maya", True, actor="maya")
    assert why_not(vault) == ""
    monkeypatch.setattr(consolidator, "MOST_SECONDS", 1.0)
    assert "hours" in why_not(vault)
    monkeypatch.undo()
    own = adapter(vault, tmp_path, [], "", name="style", metadata={})
    assert why_not(vault) == "'style' is the default adapter"
    vault.drop_adapter(own.cube_id, actor="maya")
    mine = adapter(vault, tmp_path, [], "", metadata={})
    assert "the name of another adapter" in why_not(vault)
    vault.drop_adapter(mine.cube_id, actor="maya")
    adapter(vault, tmp_path, cubes[:1], "1")
    assert why_not(vault) == "", "two more are worth it"
    registry_of(vault).deactivate(MAYA, NAME)
    assert "taken out of use" in why_not(vault)
    registry_of(vault).activate(MAYA, NAME)
    adapter(vault, tmp_path, cubes, "111")
    assert why_not(vault) == "it would save 0 more tokens of a prompt, 32 are wanted"
    allow(vault, "maya", False, actor="maya")
    assert not allows(vault, "maya") and willing(vault) == []


def test_nothing_is_trained_on_twice_nor_too_often(vault: Vault) -> None:
    used(vault, "maya", *TEXTS)
    allow(vault, "maya", True, actor="maya")
    made = consolidator_of(vault)
    with turn_taken(made.jobs):
        job = made.start("maya", made.offer("maya", later()).proposal)
        assert why_not(vault) == "these memories were trained on already", "it waits"
        made.withdrawn("maya")
        while made.jobs.unfinished():
            time.sleep(0.05)
        finish(made.jobs.folder / job.id, "refused", problems=("too little is known",))
    offer = made.offer("maya", later())
    assert offer.why_not == "these memories were trained on already", "and was refused"
    assert offer.training is not None and offer.training.state == "refused"
    used(vault, "maya", "My kettle is the one that whistles in the kitchen of the old house.")
    assert why_not(vault) == "", "other memories, days later"
    soon = time.time() + AGAIN - 60
    proposal = made.offer("maya", later()).proposal
    assert made.why_not("maya", proposal, soon) == "there was a training in the last day"


def test_the_time_of_a_training_is_guessed_and_then_known(vault: Vault) -> None:
    made = consolidator_of(vault)
    assert made.registry.base is not None
    weights = sum(math.prod(shape) for shape in made.registry.base.modules.values())
    passes = 24 * 3 * (32 + 24) / 32  # over each memory, replays among them
    assert made.seconds_for(10) == pytest.approx(10 * passes * 64 * 6 * weights / 2e10)
    used(vault, "maya", *TEXTS)
    allow(vault, "maya", True, actor="maya")
    job = made.jobs.create(_spec(made))
    finish(made.jobs.folder / job.id, "done", seconds=60.0)
    assert made.seconds_for(10) == pytest.approx(200)


def _spec(made: Consolidator) -> Any:
    with turn_taken(made.jobs):
        job = made.start("maya", made.offer("maya", later()).proposal)
        ((spec, _),) = made.jobs.specs("maya")
        made.jobs.forget("maya")
    assert job.proposed
    return msgspec.structs.replace(spec, proposed=False)


def test_one_look_at_a_time(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consolidator, "LOOKING_SECONDS", 0.05)
    made = consolidator_of(vault)
    with consolidator._looking, pytest.raises(Conflict, match="try again"):
        made.offer("maya", time.time())
    assert made.offer("maya", time.time()).proposal.learn == ()


def test_what_is_known_is_left_out_and_counts_as_used(vault: Vault, tmp_path: Path) -> None:
    cubes = used(vault, "maya", *TEXTS)
    version = adapter(vault, tmp_path, cubes, "101")
    knowledge = consolidator_of(vault).knowledge
    assert knowledge.of_default(MAYA) == {f"{cubes[0].id}@1", f"{cubes[2].id}@1"}
    assert knowledge.of(version, Caller("tom", bound=True)) == frozenset()
    knowledge.leave_out = False
    assert knowledge.of(version, MAYA) == frozenset()
    knowledge.leave_out, knowledge.auto = True, False
    assert knowledge.of_default(MAYA) == frozenset(), "it does not answer by itself"
    metrics.create()
    before = [count("memos_learned_total", unit=unit) for unit in ("memories", "tokens")]
    knowledge.left_out(cubes[:2])
    after = [count("memos_learned_total", unit=unit) for unit in ("memories", "tokens")]
    assert after[0] - before[0] == 2 and after[1] - before[1] > 20
    assert knowledge._uses.of([cubes[0].id])[cubes[0].id].count == 13


@pytest.mark.parametrize("change", ["update", "archive", "delete", "mark"])
def test_an_adapter_rests_once_a_memory_it_was_made_of_changes(vault: Vault, tmp_path: Path, change: str) -> None:
    cubes = used(vault, "maya", *TEXTS)
    version = adapter(vault, tmp_path, cubes, "111")
    by_hand = adapter(vault, tmp_path, cubes, "111", name="own", metadata={LEARNED: "111"})
    made = consolidator_of(vault)
    assert made.knowledge.checked(version) is version and made.knowledge.default_of(MAYA) is not None
    used(vault, "maya", "Something else.")
    assert made.knowledge.checked(version) is version, "what it was made of is as it was"
    match change:
        case "update":
            vault.update(cubes[1].id, "My shed burnt down.", actor="maya")
        case "archive":
            vault.transition(cubes[1].id, "archived", actor="maya")
        case "delete":
            vault.delete(cubes[1].id, actor="maya")
        case "mark":
            vault.edit(cubes[1].id, actor="maya", expires="2099-01-01")
    with pytest.raises(AdapterInactive, match="made anew"):
        made.knowledge.checked(version)
    assert made.knowledge.of_default(MAYA) == frozenset()
    assert made.knowledge.checked(by_hand) is by_hand, "that is its owner's own affair"
    allow(vault, "maya", True, actor="maya")
    proposal = made.offer("maya", later()).proposal
    assert proposal.lost == (f"{cubes[1].id}@1",)
