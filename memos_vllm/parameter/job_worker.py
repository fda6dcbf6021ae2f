"""The process of one training job: `python -m memos_vllm.parameter.job_worker FOLDER`."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from memos_vllm.errors import Conflict, MemosError, NotFound
from memos_vllm.parameter.base_model import BaseModel
from memos_vllm.parameter.job import (
    CANCEL,
    FINAL,
    LOCK,
    RUNNING,
    SPEC,
    WORK,
    JobSpec,
    JobStatus,
    alone,
    finish,
    locked,
    seen,
    update,
)
from memos_vllm.parameter.learned import LEARNED, PROPOSED, learned_in
from memos_vllm.parameter.progress import no_tell
from memos_vllm.parameter.registry import MAX_RANK, AdapterFiles, AdapterRegistry, Caller
from memos_vllm.vault import Vault

if TYPE_CHECKING:
    from memos_vllm.parameter.consolidate import Memory, Report
    from memos_vllm.parameter.progress import Tell

JOB = "job"
"""The key of an adapter's metadata that names the job which made it."""
NICE = 19
LOCK_SECONDS = 1.0
POLL_SECONDS = 0.2
TELL_SECONDS = 0.5
logger = logging.getLogger(__name__)


class Cancelled(Exception):
    """Somebody wants this job stopped, or its folder is gone."""


def main(folder: Path) -> int:
    """Run the job of a folder to its end. Does nothing where another process has it, it has ended, or it is gone."""
    os.nice(NICE)
    with contextlib.suppress(FileNotFoundError), job_lock(folder) as mine:
        if mine and seen(folder).state not in FINAL:
            run(folder, no_tell)
    return 0


@contextlib.contextmanager
def job_lock(folder: Path) -> Iterator[bool]:
    """Whether this process is the job's; the lock file tells its id. Those who only look hold it for moments."""
    with alone(folder / LOCK, LOCK_SECONDS) as lock:
        if lock:
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
        yield lock is not None


def run(folder: Path, tell: Tell) -> JobStatus:
    """Wait for other jobs, do what `spec.json` says, and write how it ended. tell: also hears of progress."""
    spec = msgspec.json.decode((folder / SPEC).read_bytes(), type=JobSpec)
    told = _Watch(folder, tell)
    try:
        with (folder.parent / RUNNING).open("a+") as turn:
            while not locked(turn):
                told("waiting for another training", 0, 0)
                time.sleep(POLL_SECONDS)
            update(folder, state="running")
            told.begin()
            with Vault.open(folder.parent.parent) as vault:
                _made(vault, spec, folder, told)
                return update(folder, seconds=told.seconds)
    except Cancelled:
        return finish(folder, "cancelled")
    except MemosError as error:
        return finish(folder, "failed", error=str(error))
    except Exception as error:
        logger.exception("the training failed")
        return finish(folder, "failed", error=f"{type(error).__name__}: {error}")


class _Watch:
    """Writes progress into the status now and then, and stops the job once it is cancelled."""

    def __init__(self, folder: Path, tell: Tell) -> None:
        self.folder, self.tell, self.last = folder, tell, 0.0
        self.shown = ("", 0, 0)
        self.began, self.before = 0.0, 0.0

    def begin(self) -> None:
        """The waiting is over; what a process that was killed worked counts too."""
        self.began, self.before = time.monotonic(), seen(self.folder).seconds

    def __call__(self, phase: str, done: int, total: int) -> None:
        self.tell(phase, done, total)
        if (self.folder / CANCEL).exists():
            raise Cancelled
        if (phase, done, total) != self.shown and time.monotonic() - self.last >= TELL_SECONDS:
            self.last, self.shown = time.monotonic(), (phase, done, total)
            update(self.folder, phase=phase, done=done, total=total, seconds=self.seconds)

    @property
    def seconds(self) -> float:
        return round(self.before + time.monotonic() - self.began, 1) if self.began else 0.0


def _made(vault: Vault, spec: JobSpec, folder: Path, tell: Tell) -> None:
    """Train, and store the adapter if it passes."""
    from memos_vllm.parameter.consolidate import consolidate
    from memos_vllm.parameter.forgetting import retrain
    from memos_vllm.parameter.model import Model

    recipe = spec.checked_recipe()
    if known := _stored(vault, spec, folder.name):
        finish(folder, "done", adapter=known)
        return
    memories = _memories(vault, spec.cubes)
    base = BaseModel.read(spec.model)
    model = Model.load(spec.model, recipe.device)
    if spec.forgotten:
        everything = [*memories, *_memories(vault, spec.forgotten, gone_too=True)]
        forgotten = retrain(model, everything, spec.forgotten, recipe, folder / WORK, tell=tell)
        report, problems = forgotten.report, forgotten.problems
        figures = figures_of(report) | {"forgotten_accuracy": forgotten.proof.accuracy_after}
    else:
        report = consolidate(model, memories, recipe, folder / WORK, tell=tell)
        figures, problems = figures_of(report), report.problems
    if problems:
        finish(folder, "refused", problems=problems, figures=figures)
        return
    tell("storing", 0, 0)
    _memories(vault, spec.cubes)  # what was deleted meanwhile must not live on in an adapter
    files = AdapterFiles.read(report.folder, base=base.fingerprint)
    version = AdapterRegistry(vault, base=base, max_rank=max(MAX_RANK, recipe.rank)).add(
        spec.owner,
        spec.name,
        files,
        author=spec.author,
        parents=spec.cubes,
        tags=spec.tags,
        metadata={
            **figures,
            JOB: folder.name,
            LEARNED: learned_in(report, memories),
            "recipe": msgspec.json.encode(recipe).decode(),
            **({PROPOSED: True} if spec.proposed else {}),
        },
        activate=spec.activate,
    )
    finish(folder, "done", adapter=version.served, figures=figures)


def figures_of(report: Report) -> dict[str, float]:
    """What an adapter's metadata say of its exam."""
    figures = report.figures
    return {
        "facts": figures.facts,
        "accuracy": round(figures.accuracy, 4),
        "recall_loss": round(figures.recall_loss, 4),
        "perplexity_rise": round(figures.perplexity_rise, 4),
        "tokens_saved": round(figures.tokens_saved, 1),
    }


def _stored(vault: Vault, spec: JobSpec, job_id: str) -> str:
    """The adapter that this job stored before it was killed; empty where it did not."""
    for entry in AdapterRegistry(vault).list(Caller(spec.owner, bound=True)):
        for version in entry.versions:
            if entry.owner == spec.owner and version.metadata.get(JOB) == job_id:
                return version.served
    return ""


def _memories(vault: Vault, cubes: Sequence[str], *, gone_too: bool = False) -> list[Memory]:
    """The texts of `id@version` cubes. gone_too: leave out what is deleted. Raises NotFound, BadInput."""
    from memos_vllm.parameter.consolidate import Memory

    found = []
    for source in cubes:
        cube_id, _, version = source.partition("@")
        try:
            found.append(Memory(source, vault.get(cube_id, version=int(version)).text))
        except NotFound as error:
            if not gone_too:
                raise Conflict(f"Memory {source} is gone, so nothing is made of it: choose memories anew.") from error
    return found


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sys.exit(main(Path(sys.argv[1])))
