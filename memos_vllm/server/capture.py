"""Background captures: prefill a cube behind its scaffold once, have its K/V kept, enter it in the manifest."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from memos_vllm.activation.compose import Part, capture_plan
from memos_vllm.activation.files import all_written, deviation_path, kv_path, read_header
from memos_vllm.activation.plan import Segment, SplicePlan, prompt_hash
from memos_vllm.errors import Forgotten, KVUnusable, MemosError, NotFound
from memos_vllm.server import metrics
from memos_vllm.server.claims import claimed
from memos_vllm.server.fair import FairQueue
from memos_vllm.server.injection import Adapter
from memos_vllm.server.private import PrivateRequests
from memos_vllm.vault import KVRecord
from memos_vllm.vault.records import KVKind

if TYPE_CHECKING:
    from memos_vllm.vault import Vault

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Captures that may wait; what comes on top is captured when it is used again."""
MAX_PER_TENANT = 2_500
FILE_TIMEOUT = 60.0
"""Seconds the workers have to write a captured cube's files."""
RETRY_AFTER = 60.0
"""Seconds after which a cube whose capture failed may be tried again."""
DEVIATION_TIMEOUT = 10.0
"""Seconds that a worker has to compare a cube with itself behind the decoy."""
PATIENCE = 30.0
"""Seconds that a capture waits for an engine with room; then it is sent, and the engine admits it as soon as no user's
request waits.
"""


@dataclass(frozen=True)
class CaptureJob:
    """K/V to capture behind one scaffold: of a cube, or of a piece of prompt text, whose cube_id is empty.

    The keys tell adapters apart. `pinned` ones go before others and are sent at once. since: Unix seconds.
    """

    owner: str
    cube_id: str
    cube_version: int
    cube_key: str
    scaffold_key: str
    scaffold_ids: tuple[int, ...]
    cube_ids: tuple[int, ...]
    adapter: Adapter | None = None
    kind: KVKind = "cube"
    pinned: bool = False
    since: float = field(default_factory=time.time, compare=False)

    def scaffold(self) -> CaptureJob:
        """The capture of the scaffold itself."""
        return CaptureJob("", "", 0, self.scaffold_key, "", (), self.scaffold_ids, self.adapter, "scaffold")


class CaptureQueue:
    """Captures one cube at a time on the server's event loop. Methods without a word on it are for any thread.

    `identity`: digest of the engine's, without an adapter; `decoy_ids`: an unrelated text, behind which cubes are
    compared with themselves unless it is empty.
    """

    def __init__(
        self,
        requests: PrivateRequests,
        memory_dir: Path,
        vault: Vault,
        identity: str,
        world: int,
        decoy_ids: Sequence[int] = (),
    ) -> None:
        self.requests, self.memory_dir, self.vault = requests, memory_dir, vault
        self.identity, self.world = identity, world
        self.decoy_ids = tuple(decoy_ids)
        self.loop = asyncio.get_running_loop()
        self.jobs: FairQueue[CaptureJob] = FairQueue(MAX_WAITING, MAX_PER_TENANT)
        self.arrived = asyncio.Event()
        self.lock = threading.Lock()
        self.pending: dict[str, str] = {}
        self.forgotten: set[str] = set()
        self.retry_at: dict[str, float] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to work; call it on the event loop."""
        self.tasks.append(self.loop.create_task(self._run(), name="memos-captures"))

    def submit(self, jobs: Sequence[CaptureJob]) -> set[str]:
        """Queue captures and return at once, with their keys; one that waits already is not queued twice."""
        with self.lock:
            now = time.monotonic()
            fresh = {
                job.cube_key: job
                for job in jobs
                if job.cube_key not in self.pending and now >= self.retry_at.get(job.cube_key, 0.0)
            }
            self.pending |= {key: job.owner for key, job in fresh.items()}
        if fresh:
            self.loop.call_soon_threadsafe(self._enqueue, [*fresh.values()])
        return {*fresh}

    def drop(self, kv_keys: Iterable[str], owner: str = "") -> None:
        """K/V that were deleted: have the engine forget them, and do not capture them any more. Returns at once.

        Of an `owner`, nothing that still waits is captured.
        """
        with self.lock:
            keys = {*kv_keys}
            self.forgotten |= {
                key for key, tenant in self.pending.items() if key in keys or (owner and tenant == owner)
            }
        if keys:
            self.loop.call_soon_threadsafe(self._start_drop, tuple(keys))

    def _enqueue(self, jobs: Sequence[CaptureJob]) -> None:
        for job in jobs:
            if not self.jobs.put(job.owner, job, urgent=job.pinned):
                self._done(job)
                metrics.captures().labels("dropped").inc()
        metrics.captures_waiting().set(len(self.jobs))
        self.arrived.set()

    def _start_drop(self, keys: tuple[str, ...]) -> None:
        self.tasks = [task for task in self.tasks if not task.done()]
        self.tasks.append(self.loop.create_task(self._drop(keys), name="memos-drops"))

    async def _drop(self, keys: tuple[str, ...]) -> None:
        try:
            await self.requests.drop(keys)
        except Exception:  # the files are gone already; what is in memory goes with time
            logger.exception("%d deleted KV cubes may stay in the engine's memory for a while", len(keys))

    async def _run(self) -> None:
        while True:
            while not len(self.jobs):
                self.arrived.clear()
                await self.arrived.wait()
            job = self.jobs.pop()
            metrics.captures_waiting().set(len(self.jobs))
            await self._one(job)
            self._done(job)

    def _done(self, job: CaptureJob) -> None:
        with self.lock:
            self.pending.pop(job.cube_key, None)
            self.forgotten.discard(job.cube_key)

    async def _one(self, job: CaptureJob) -> None:
        try:
            if not job.pinned:
                await _within(PATIENCE, self.requests.has_room)
            began = time.monotonic()
            if await self._capture(job):
                metrics.captures().labels("done").inc()
                metrics.capture_seconds().observe(time.monotonic() - began)
        except (MemosError, OSError) as error:
            self._postpone(job)
            metrics.captures().labels("failed").inc()
            logger.warning("cube %s was not captured and stays text: %s", job.cube_id, error)
        except Exception:  # the loop must outlive any one capture
            self._postpone(job)
            metrics.captures().labels("failed").inc()
            logger.exception("cube %s was not captured and stays text", job.cube_id)

    def _postpone(self, job: CaptureJob) -> None:
        """Leave a failed cube alone for a while, and forget the failures whose time is over."""
        now = time.monotonic()
        waiting = {key: at for key, at in self.retry_at.items() if at > now}
        with self.lock:
            self.retry_at = waiting | {job.cube_key: now + RETRY_AFTER}

    async def _capture(self, job: CaptureJob) -> bool:
        """Whether K/V were captured and entered; False where they are not wanted any more, or another server's work."""
        if job.cube_key in self.forgotten or not await asyncio.to_thread(self._wanted, job):
            return False
        with claimed(self.memory_dir, job.cube_key) as mine:
            if not mine:
                return False
            began = time.monotonic()
            if not self._written(job):
                ids = [*job.scaffold_ids, *job.cube_ids]
                await self.requests.run(ids, self._plan(job), tenant=f"capture {job.owner}", adapter=job.adapter)
                await self._files(job)
            seconds = time.monotonic() - began
            held = await asyncio.to_thread(self.vault.get_kv, job.cube_key)
            deviation = held.deviation if held and held.deviation else await self._deviation(job)
            await asyncio.to_thread(self._enter_all, job, seconds, deviation)
        return True

    def _wanted(self, job: CaptureJob) -> bool:
        """False where the cube is gone or changed, or has its K/V."""
        if job.cube_id:
            try:
                if self.vault.get(job.cube_id).version != job.cube_version:
                    return False
            except NotFound:
                return False
        record = self.vault.get_kv(job.cube_key)
        return record is None or record.cube_id != job.cube_id or not self._written(job)

    def _plan(self, job: CaptureJob) -> SplicePlan:
        scaffold = Part(job.scaffold_ids, None if self._written(job.scaffold()) else job.scaffold_key)
        return capture_plan(scaffold, Part(job.cube_ids, job.cube_key))

    async def _deviation(self, job: CaptureJob) -> bytes:
        """How far each token's K/V move behind the decoy; empty where that is not to be known."""
        ids = [*job.scaffold_ids, *self.decoy_ids, *job.cube_ids]
        if not self.decoy_ids or len(ids) > self.requests.max_tokens:
            return b""
        segment = Segment(job.cube_key, len(job.scaffold_ids) + len(self.decoy_ids), len(job.cube_ids))
        plan = SplicePlan(compare=(segment,), prompt=prompt_hash(ids))
        await self.requests.run(ids, plan, tenant=f"capture {job.owner}", adapter=job.adapter)
        path = deviation_path(self.memory_dir, self.identity, job.cube_key, self.world)
        if not await _within(DEVIATION_TIMEOUT, path.exists):
            logger.warning("the comparison of cube %s told nothing; its repair goes without", job.cube_id)
            return b""
        deviation = path.read_bytes()
        path.unlink(missing_ok=True)
        return deviation if len(deviation) == len(job.cube_ids) else b""

    def _enter_all(self, job: CaptureJob, seconds: float, deviation: bytes) -> None:
        scaffold = job.scaffold()
        if job.scaffold_ids and self.vault.get_kv(scaffold.cube_key) is None and self._written(scaffold):
            self._enter(scaffold, seconds, b"")
        self._enter(job, seconds, deviation)

    def _enter(self, job: CaptureJob, seconds: float, deviation: bytes) -> None:
        """Enter captured K/V in the manifest; those of a cube that was forgotten or changed meanwhile are removed."""
        try:
            if job.cube_key in self.forgotten:
                raise NotFound(f"K/V {job.cube_key} were deleted.")
            self.vault.put_kv(self._record(job, seconds, deviation), since=job.since)
        except (NotFound, Forgotten):
            if self.vault.get_kv(job.cube_key):  # another cube with the same text has the same K/V
                return
            for path in self._paths(job):
                path.unlink(missing_ok=True)
            self.drop([job.cube_key])

    def _paths(self, job: CaptureJob) -> list[Path]:
        return [kv_path(self.memory_dir, self.identity, job.cube_key, rank, self.world) for rank in range(self.world)]

    def _written(self, job: CaptureJob) -> bool:
        return all_written(self.memory_dir, self.identity, job.cube_key, self.world)

    async def _files(self, job: CaptureJob) -> None:
        """Wait for the workers' files. Raises KVUnusable when they do not come."""
        if not await _within(FILE_TIMEOUT, lambda: self._written(job)):
            raise KVUnusable(f"its KV file was not written within {FILE_TIMEOUT:.0f} s (is the disk full?)")

    def _record(self, job: CaptureJob, seconds: float, deviation: bytes) -> KVRecord:
        paths = self._paths(job)
        header = read_header(paths[0])
        return KVRecord(
            key=job.cube_key,
            owner=job.owner,
            cube_id=job.cube_id,
            cube_version=job.cube_version,
            path=str(paths[0].relative_to(self.memory_dir)),
            tokens=len(job.cube_ids),
            bytes=sum(path.stat().st_size for path in paths),
            checksum=header["checksum"],
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            build_seconds=seconds,
            deviation=deviation,
            kind=job.kind,
        )


async def _within(seconds: float, done: Callable[[], bool], pause: float = 0.002) -> bool:
    """Wait until something is done; False when it takes longer than that."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.1)
    return True
