"""Background captures: prefill a cube behind its scaffold once, have its K/V kept, enter it in the manifest."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind

from memos_vllm.activation.compose import Part, capture_plan
from memos_vllm.activation.files import all_written, kv_path, read_header
from memos_vllm.activation.plan import sign
from memos_vllm.errors import KVUnusable, MemosError, NotFound
from memos_vllm.server import metrics
from memos_vllm.vault import KVRecord

if TYPE_CHECKING:
    from memos_vllm.vault import Vault

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Captures that may wait; what comes on top is captured when it is first used."""
FILE_TIMEOUT = 60.0
"""Seconds the workers have to write a captured cube's files."""
RETRY_AFTER = 60.0
"""Seconds after which a cube whose capture failed may be tried again."""


@dataclass(frozen=True)
class CaptureJob:
    """One cube to capture behind one scaffold."""

    owner: str
    cube_id: str
    cube_version: int
    cube_key: str
    scaffold_key: str
    scaffold_ids: tuple[int, ...]
    cube_ids: tuple[int, ...]


class CaptureQueue:
    """Captures one cube at a time on the server's event loop; `submit` may be called from any thread."""

    def __init__(
        self, engine_client: Any, memory_dir: Path, vault: Vault, identity: str, secret: bytes, world: int
    ) -> None:
        self.engine_client, self.memory_dir, self.vault = engine_client, memory_dir, vault
        self.identity, self.secret, self.world = identity, secret, world
        self.generate = engine_client.generate  # the engine's own: captures are no chat requests
        self.loop = asyncio.get_running_loop()
        self.jobs: asyncio.Queue[CaptureJob] = asyncio.Queue(MAX_WAITING)
        self.pending: set[str] = set()
        self.retry_at: dict[str, float] = {}
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = self.loop.create_task(self._run(), name="memos-captures")

    def submit(self, jobs: Sequence[CaptureJob]) -> None:
        """Queue captures and return at once; one that waits already is not queued twice."""
        if jobs:
            self.loop.call_soon_threadsafe(self._enqueue, jobs)

    def _enqueue(self, jobs: Sequence[CaptureJob]) -> None:
        for job in jobs:
            if job.cube_key in self.pending or time.monotonic() < self.retry_at.get(job.cube_key, 0.0):
                continue
            if self.jobs.full():
                metrics.captures().labels("dropped").inc()
                continue
            self.pending.add(job.cube_key)
            self.jobs.put_nowait(job)

    async def _run(self) -> None:
        while True:
            job = await self.jobs.get()
            try:
                await self._capture(job)
                metrics.captures().labels("done").inc()
            except (MemosError, OSError) as error:
                self._postpone(job)
                metrics.captures().labels("failed").inc()
                logger.warning("cube %s was not captured and stays text: %s", job.cube_id, error)
            except Exception:  # the loop must outlive any one capture
                self._postpone(job)
                metrics.captures().labels("failed").inc()
                logger.exception("cube %s was not captured and stays text", job.cube_id)
            finally:
                self.pending.discard(job.cube_key)

    def _postpone(self, job: CaptureJob) -> None:
        """Leave a failed cube alone for a while, and forget the failures whose time is over."""
        now = time.monotonic()
        self.retry_at = {key: at for key, at in self.retry_at.items() if at > now} | {job.cube_key: now + RETRY_AFTER}

    async def _capture(self, job: CaptureJob) -> None:
        began = time.monotonic()
        if not self._written(job.cube_key):
            await self._prefill(job)
            await self._files(job.cube_key)
        seconds = time.monotonic() - began
        await asyncio.to_thread(self._enter_all, job, seconds)

    def _enter_all(self, job: CaptureJob, seconds: float) -> None:
        if self.vault.get_kv(job.scaffold_key) is None and self._written(job.scaffold_key):
            self._enter(CaptureJob("", "", 0, job.scaffold_key, "", (), job.scaffold_ids), seconds)
        self._enter(job, seconds)

    def _enter(self, job: CaptureJob, seconds: float) -> None:
        """Enter a captured cube in the manifest; one that was forgotten or changed meanwhile loses its files."""
        try:
            self.vault.put_kv(self._record(job, seconds))
        except NotFound:
            if self.vault.get_kv(job.cube_key):  # another cube with the same text has the same K/V
                return
            for path in self._paths(job.cube_key):
                path.unlink(missing_ok=True)

    def _paths(self, key: str) -> list[Path]:
        return [kv_path(self.memory_dir, self.identity, key, rank, self.world) for rank in range(self.world)]

    async def _prefill(self, job: CaptureJob) -> None:
        scaffold = Part(job.scaffold_ids, None if self._written(job.scaffold_key) else job.scaffold_key)
        params = sign(capture_plan(scaffold, Part(job.cube_ids, job.cube_key)), self.secret)
        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={"kv_transfer_params": params},
        )
        salt = hmac.new(self.secret, f"capture\0{job.owner}".encode(), hashlib.sha256).hexdigest()
        prompt = tokens_input([*job.scaffold_ids, *job.cube_ids], cache_salt=salt)
        async for _ in self.generate(prompt, sampling, f"memos-capture-{job.cube_key}-{time.monotonic_ns():x}"):
            pass

    def _written(self, key: str) -> bool:
        return all_written(self.memory_dir, self.identity, key, self.world)

    async def _files(self, key: str) -> None:
        """Wait for the workers' files. Raises KVUnusable when they do not come."""
        deadline, pause = time.monotonic() + FILE_TIMEOUT, 0.002
        while not self._written(key):
            if time.monotonic() > deadline:
                raise KVUnusable(f"its KV file was not written within {FILE_TIMEOUT:.0f} s (is the disk full?)")
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)

    def _record(self, job: CaptureJob, seconds: float) -> KVRecord:
        paths = self._paths(job.cube_key)
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
        )
