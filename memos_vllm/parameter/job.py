"""Training jobs: processes of their own at low priority, outside the one that serves, that outlive its restarts.

    <memory dir>/jobs/
    ├── running.lock        held by the job that works: one at a time
    ├── making.lock         held while a job is written down
    └── <id>/
        ├── spec.json       what to do; names cubes, holds no text
        ├── status.json     how far it is
        ├── lock            held by the job's process; free where it died
        ├── cancel          is there once somebody wants it stopped
        ├── log             what the process printed
        └── work/           lessons, checkpoint, adapter; removed when the job ends

This module loads neither torch nor PEFT: the job's process does (`job_worker`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from memos_vllm.cube import is_id, new_id, now
from memos_vllm.errors import BadInput, Conflict, NotFound
from memos_vllm.parameter.names import checked_name
from memos_vllm.parameter.recipe import Recipe, recipe_from

JOBS = "jobs"
SPEC, STATUS, LOCK, CANCEL, LOG, WORK = "spec.json", "status.json", "lock", "cancel", "log", "work"
RUNNING, MAKING = "running.lock", "making.lock"
MAX_WAITING = 16
"""Jobs of all owners that may wait or run, each of them a process; of an owner, one."""
MAX_KEPT = 8
"""Jobs of an owner that have ended and can still be looked at."""
MAKING_SECONDS = 10.0
START_SECONDS = 60.0
"""How long a new job's process may take to start."""
STOP_SECONDS = 10.0
"""How long a job that must go has time to notice, before it is killed."""

State = Literal["queued", "running", "done", "refused", "failed", "cancelled", "interrupted"]
FINAL: frozenset[State] = frozenset(("done", "refused", "failed", "cancelled"))


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a job does. Whoever submits it has checked that `owner` may read the cubes.

    owner, name: of the adapter, whose next version is made; author: who asked for it
    model: the base, as the server was given it; cubes: what is learned, as `id@version`
    forgotten: cubes, as `id@version`, that the adapter knew and the new version must not know
    recipe: fields of `recipe.Recipe`; activate: let the new version serve at once
    proposed: the scheduler's own idea, not its owner's
    """

    owner: str
    author: str
    name: str
    model: str
    cubes: tuple[str, ...]
    forgotten: tuple[str, ...] = ()
    recipe: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    activate: bool = False
    proposed: bool = False

    def checked_recipe(self) -> Recipe:
        """The recipe with its defaults. Raises BadInput."""
        return recipe_from(self.recipe, forgets=bool(self.forgotten))


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job is. phase: what it does now, `done` of `total` of it; problems: why an adapter was refused.

    interrupted: its process died; `Jobs.resume` goes on from its last checkpoint. memories: that it learns; seconds:
    that it worked, waiting not counted.
    """

    id: str
    owner: str
    name: str
    state: State
    created: str
    updated: str
    phase: str = ""
    done: int = 0
    total: int = 0
    memories: int = 0
    seconds: float = 0.0
    proposed: bool = False
    adapter: str = ""
    figures: dict[str, float] = {}
    problems: tuple[str, ...] = ()
    error: str = ""


Statuses = list[JobStatus]  # `Jobs.list` hides the builtin from annotations in the class body
Specs = list[tuple[JobSpec, JobStatus]]


class Jobs:
    """The jobs of a memory directory. Several processes may have one each. Another's job is not found."""

    def __init__(self, memory_dir: Path) -> None:
        self.folder = memory_dir / JOBS

    def submit(self, spec: JobSpec) -> JobStatus:
        """Start a job. Raises BadInput, Conflict where its owner has too many."""
        status = self.create(spec)
        self._spawn(status.id)
        return status

    def create(self, spec: JobSpec) -> JobStatus:
        """Write a job down without starting it. Raises BadInput, Conflict where too many wait."""
        checked_name(spec.name)
        spec.checked_recipe()
        if not spec.cubes:
            raise BadInput("There are no memories to learn: choose others.")
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with alone(self.folder / MAKING, MAKING_SECONDS) as mine:
            if not mine:
                raise Conflict("Another training is being started; try again in a moment.")
            self._make_room(spec.owner)
            return self._written(spec)

    def _make_room(self, owner: str) -> None:
        """Refuse one job too many, and drop what ended long ago and what a crash left. Raises Conflict."""
        every = [*self._all()]
        waiting = [status for status in every if status.state not in FINAL]
        if mine := next((status for status in waiting if status.owner == owner), None):
            raise Conflict(f"Training {mine.id} is {mine.state}: let it end, go on with it, or cancel it.")
        if len(waiting) >= MAX_WAITING:
            raise Conflict("As many trainings as this server takes are waiting: try again later.")
        ended = [status.id for status in every if status.owner == owner and status.state in FINAL]
        for job_id in ended[: max(0, len(ended) - MAX_KEPT + 1)]:
            shutil.rmtree(self.folder / job_id, ignore_errors=True)
        for left in self.folder.glob("*.new"):
            shutil.rmtree(left, ignore_errors=True)

    def _written(self, spec: JobSpec) -> JobStatus:
        moment = now()
        status = JobStatus(
            id=new_id(),
            owner=spec.owner,
            name=spec.name,
            state="queued",
            created=moment,
            updated=moment,
            memories=len(spec.cubes),
            proposed=spec.proposed,
        )
        aside = self.folder / f"{status.id}.new"
        aside.mkdir(mode=0o700)
        write(aside / SPEC, spec)
        write(aside / STATUS, status)
        aside.rename(self.folder / status.id)
        return status

    def status(self, owner: str, job_id: str) -> JobStatus:
        """Raises NotFound, also for a job of somebody else."""
        return seen(self._of(owner, job_id))

    def list(self, owner: str) -> Statuses:
        """An owner's jobs, oldest first."""
        return [status for status in self._all() if status.owner == owner]

    def specs(self, owner: str) -> Specs:
        """An owner's jobs with what they do, oldest first."""
        found = []
        for status in self.list(owner):
            with contextlib.suppress(FileNotFoundError):
                spec = msgspec.json.decode((self.folder / status.id / SPEC).read_bytes(), type=JobSpec)
                found.append((spec, status))
        return found

    def seconds_each(self) -> float:
        """What a memory took in the trainings here that ended last, of whomever; 0 where none has."""
        ended = [status for status in self._all() if status.state in ("done", "refused") and status.memories][-8:]
        return sum(status.seconds for status in ended) / max(1, sum(status.memories for status in ended))

    def unfinished(self) -> Statuses:
        """The jobs of everybody that wait or run, or did when their process died."""
        return [status for status in self._all() if status.state not in FINAL]

    def cancel(self, owner: str, job_id: str) -> JobStatus:
        """Stop a job at its next step; one that has ended stays as it is. Raises NotFound."""
        path = self._of(owner, job_id)
        if seen(path).state not in FINAL:
            (path / CANCEL).touch()
            with alone(path / LOCK) as lock:
                if lock:
                    finish(path, "cancelled")
        return seen(path)

    def resume(self, owner: str, job_id: str) -> JobStatus:
        """Go on with an interrupted job. Raises NotFound, Conflict where it runs or has ended."""
        status = self.status(owner, job_id)
        if status.state not in ("interrupted", "queued"):
            raise Conflict(f"This training is {status.state}: there is nothing to go on with.")
        self._spawn(job_id)
        return status

    def resume_all(self) -> int:
        """At a start: go on with every job that has no process; how many there are.

        One that another server has just written down may get two processes. The second ends at once.
        """
        dead = [status.id for status in self.unfinished() if _is_free(self.folder / status.id / LOCK)]
        for job_id in dead:
            self._spawn(job_id)
        return len(dead)

    def forget(self, owner: str) -> int:
        """Stop and remove all jobs of an owner, with everything they wrote; how many there were."""
        mine = [self.folder / status.id for status in self.list(owner)]
        for path in mine:
            (path / CANCEL).touch()
        for path in mine:
            _stop(path)
            shutil.rmtree(path, ignore_errors=True)
        return len(mine)

    def _all(self) -> Iterator[JobStatus]:
        """Jobs of everybody; those that are removed meanwhile are left out."""
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if is_id(path.name):
                with contextlib.suppress(NotFound):
                    yield seen(path)

    def _of(self, owner: str, job_id: str) -> Path:
        path = self.folder / job_id
        if not is_id(job_id) or not (path / STATUS).exists() or seen(path).owner != owner:
            raise NotFound(f"There is no training {job_id[:64]!r}.")
        return path

    def _spawn(self, job_id: str) -> None:
        path = self.folder / job_id
        with (path / LOG).open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "memos_vllm.parameter.job_worker", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        threading.Thread(target=process.wait, name=f"training {job_id}", daemon=True).start()  # leaves no zombie


def seen(path: Path) -> JobStatus:
    """The status in a job's folder, with `interrupted` where its process is gone. Raises NotFound."""
    try:
        status = _read(path)
        if status.state in FINAL or not _is_free(path / LOCK):
            return status
        status = _read(path)  # it may have ended in between
        starting = status.state == "queued" and _age(path / STATUS) < START_SECONDS
    except FileNotFoundError as error:
        raise NotFound(f"There is no training {path.name!r}.") from error
    return status if status.state in FINAL or starting else msgspec.structs.replace(status, state="interrupted")


def _read(path: Path) -> JobStatus:
    return msgspec.json.decode((path / STATUS).read_bytes(), type=JobStatus)


def _age(file: Path) -> float:
    """Seconds since it was written."""
    return time.time() - file.stat().st_mtime


def update(path: Path, **fields: Any) -> JobStatus:
    """Write fields of a job's status."""
    changed = msgspec.structs.replace(_read(path), updated=now(), **fields)
    write(path / STATUS, changed)
    return changed


def finish(path: Path, state: State, **fields: Any) -> JobStatus:
    """End a job: its work is removed, its status stays."""
    shutil.rmtree(path / WORK, ignore_errors=True)
    return update(path, state=state, **fields)


def write(path: Path, value: msgspec.Struct) -> None:
    """A file that is there whole or not at all."""
    aside = path.with_suffix(".new")
    with aside.open("wb") as file:
        file.write(msgspec.json.encode(value))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


@contextlib.contextmanager
def alone(path: Path, seconds: float = 0.0) -> Iterator[IO[str] | None]:
    """A lock file that is this process's within, or None where somebody else has it for longer than `seconds`."""
    until = time.monotonic() + seconds
    with path.open("a+") as file:
        while not (mine := locked(file)) and time.monotonic() < until:
            time.sleep(0.02)
        yield file if mine else None


def locked(file: IO[str], how: int = fcntl.LOCK_EX) -> bool:
    """Take a lock if nobody has it; the kernel frees it with its process."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_free(path: Path) -> bool:
    with path.open("a+") as file:
        return locked(file, fcntl.LOCK_SH)


def _stop(path: Path) -> None:
    """Wait for a job's process to see that it is cancelled, and kill it if it does not."""
    until = time.monotonic() + STOP_SECONDS
    while not _is_free(path / LOCK):
        if time.monotonic() > until:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((path / LOCK).read_text()), signal.SIGKILL)
            until = time.monotonic() + STOP_SECONDS
        time.sleep(0.05)
