"""The splicer of an API server: prompts with cubes in, signed splice plans out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memos_vllm.activation.compose import Part, compose
from memos_vllm.activation.files import all_written, sweep_temporaries
from memos_vllm.activation.identity import KVIdentity, identity_of, kv_key, with_adapter
from memos_vllm.activation.plan import sign
from memos_vllm.activation.repair import RepairPolicy, parse_policy, unpack
from memos_vllm.cube import MemCube
from memos_vllm.scheduler.promotion import Verdict
from memos_vllm.server import metrics
from memos_vllm.server.capture import CaptureJob, CaptureQueue
from memos_vllm.server.injection import ActivationState, Adapter, Asked, Spans, SplicePrompt
from memos_vllm.server.pieces import Piece
from memos_vllm.server.private import PrivateRequests
from memos_vllm.server.promoter import Promoter
from memos_vllm.server.upkeep import Upkeep
from memos_vllm.vault import KVRecord

if TYPE_CHECKING:
    from memos_vllm.config import MemoryConfig
    from memos_vllm.server.uses import UseBook
    from memos_vllm.vault import Vault

logger = logging.getLogger(__name__)

SHARED = ""
"""Owner of the scaffold's K/V: the chat template's own tokens. Behind any other scaffold nothing is kept."""
WEIGHTS = {"low": 0.25, "high": 4.0}
"""How dear K/V are to the tiers by their cube's priority; pinned ones are not evicted, the others weigh 1."""
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class KVSplicer:
    """Plans with the KV cubes that exist and has those captured that are worth it. Thread-safe."""

    def __init__(
        self,
        vault: Vault,
        identity: KVIdentity,
        policy: RepairPolicy,
        secret: bytes,
        queue: CaptureQueue,
        promoter: Promoter,
        upkeep: Upkeep,
    ) -> None:
        self.vault, self.identity = vault, identity
        self.policy, self.secret = policy, secret
        self.queue, self.promoter, self.upkeep = queue, promoter, upkeep
        self.takes_pieces = promoter.mode == "auto"

    def prepare(
        self,
        asked: Asked,
        cubes: Sequence[MemCube],
        scaffold_ids: Sequence[int],
        cube_ids: Sequence[Sequence[int]],
        rest: Sequence[Piece] = (),
        relevance: Sequence[Spans] | None = None,
    ) -> SplicePrompt:
        """See `Splicer.prepare`. A cube is keyed by its own owner, so that readers of a shared cube share its K/V.

        Raises OSError for an adapter whose folder cannot be read.
        """
        policy = parse_policy(asked.repair) if asked.repair else self.policy
        jobs = self._jobs(cubes, scaffold_ids, cube_ids, asked.adapter)
        records = [self._record(job.cube_key) for job in jobs]
        lacking = [index for index, record in enumerate(records) if record is None]
        missing = self._promote([cubes[index] for index in lacking], [jobs[index] for index in lacking])
        spans: Sequence[Spans | None] = relevance if relevance is not None else [None] * len(jobs)
        parts = [
            _part(ids, record, span, WEIGHTS.get(cube.header.priority, 1.0))
            for cube, ids, record, span in zip(cubes, cube_ids, records, spans, strict=True)
        ]
        parts += [self._piece(asked, scaffold_ids, piece, jobs[0]) for piece in rest]
        scaffold = Part(scaffold_ids, jobs[0].scaffold_key if self._record(jobs[0].scaffold_key) else None)
        plan = compose(scaffold, parts, policy)
        if plan is None:
            return SplicePrompt(fallback="kv-missing" if missing else None)
        return SplicePrompt(sign(plan, self.secret), plan.digest(), "kv-partial" if missing else None)

    def capture(self, cubes: Sequence[MemCube], scaffold_ids: Sequence[int], cube_ids: Sequence[Sequence[int]]) -> None:
        """See `Splicer.capture`."""
        jobs = zip(cubes, self._jobs(cubes, scaffold_ids, cube_ids), strict=True)
        lacking = [(cube, job) for cube, job in jobs if not self._has_row(job)]
        self._promote([cube for cube, _ in lacking], [job for _, job in lacking])

    def describe(
        self, cubes: Sequence[MemCube], scaffold_ids: Sequence[int], cube_ids: Sequence[Sequence[int]]
    ) -> list[ActivationState]:
        """See `Splicer.describe`."""
        jobs = self._jobs(cubes, scaffold_ids, cube_ids)
        verdicts = self.promoter.verdicts(cubes, [len(ids) for ids in cube_ids], len(scaffold_ids))
        counts = self.promoter.uses.counts([cube.id for cube in cubes])
        records = (self._record(job.cube_key) for job in jobs)
        return [
            self._state(job, record, verdict, counts[job.cube_id])
            for job, record, verdict in zip(jobs, records, verdicts, strict=True)
        ]

    def needs_relevance(self, repair: str | None) -> bool:
        """See `Splicer.needs_relevance`."""
        return (parse_policy(repair) if repair else self.policy).needs_relevance

    def forget(self, kv_keys: Sequence[str], owner: str = "") -> None:
        """See `Splicer.forget`."""
        self.queue.drop(kv_keys, owner)

    def _promote(self, cubes: Sequence[MemCube], jobs: Sequence[CaptureJob]) -> bool:
        """Queue the jobs that are worth it; whether there are any."""
        if not jobs:
            return False
        verdicts = self.promoter.verdicts(cubes, [len(job.cube_ids) for job in jobs], len(jobs[0].scaffold_ids))
        causes = {job: verdict.cause for job, verdict in zip(jobs, verdicts, strict=True) if verdict.promote}
        submitted = self.queue.submit([*causes])
        for job, cause in causes.items():
            if job.cube_key in submitted:
                metrics.promotions().labels(cause).inc()
        return bool(causes)

    def _piece(self, asked: Asked, scaffold_ids: Sequence[int], piece: Piece, beside: CaptureJob) -> Part:
        """A piece of the rest; one that its caller has sent often is K/V, or becomes it. `beside`: a cube's job."""
        if not piece.sights:
            return Part(piece.ids)
        key = kv_key(self._identity(asked.adapter), asked.caller, scaffold_ids, piece.ids)
        if record := self._record(key):
            return _part(piece.ids, record)
        verdict = self.promoter.verdict(len(piece.ids), len(scaffold_ids), float(piece.sights))
        job = replace(
            beside, owner=asked.caller, cube_id="", cube_version=0, cube_key=key, cube_ids=piece.ids, kind="piece",
            pinned=False,
        )  # fmt: skip
        if verdict.promote and self.queue.submit([job]):
            metrics.promotions().labels("piece").inc()
        return Part(piece.ids)

    def _identity(self, adapter: Adapter | None) -> KVIdentity:
        return with_adapter(self.identity, adapter.name, adapter.path) if adapter else self.identity

    def _state(self, job: CaptureJob, record: KVRecord | None, verdict: Verdict, uses: int) -> ActivationState:
        waits = record is None and job.cube_key in self.queue.pending
        return ActivationState(
            state="kv" if record else "building" if waits else "text",
            reason=verdict.reason,
            tokens=len(job.cube_ids),
            bytes=record.bytes if record else 0,
            uses=uses,
            saves_ms=round(verdict.saves * 1e3, 3),
            pinned=job.pinned,
        )

    def _jobs(
        self,
        cubes: Sequence[MemCube],
        scaffold_ids: Sequence[int],
        cube_ids: Sequence[Sequence[int]],
        adapter: Adapter | None = None,
    ) -> list[CaptureJob]:
        identity = self._identity(adapter)
        scaffold_key = kv_key(identity, SHARED, (), scaffold_ids)
        return [
            CaptureJob(
                owner=cube.owner,
                cube_id=cube.id,
                cube_version=cube.version,
                cube_key=kv_key(identity, cube.owner, scaffold_ids, ids),
                scaffold_key=scaffold_key,
                scaffold_ids=tuple(scaffold_ids),
                cube_ids=tuple(ids),
                adapter=adapter,
                pinned=cube.header.priority == "pinned",
            )
            for cube, ids in zip(cubes, cube_ids, strict=True)
        ]

    def _has_row(self, job: CaptureJob) -> bool:
        """Whether the cube's K/V are entered under its own id; those of another cube with the same text are not."""
        record = self._record(job.cube_key)
        return record is not None and record.cube_id == job.cube_id

    def _record(self, key: str) -> KVRecord | None:
        """In the manifest and on disk: a file that the engine found unusable is gone and will be made again."""
        record = self.vault.get_kv(key)
        queue = self.queue
        return record if record and all_written(queue.memory_dir, queue.identity, key, queue.world) else None


def _part(ids: Sequence[int], record: KVRecord | None, relevance: Spans | None = None, weight: float = 1.0) -> Part:
    if record is None:
        return Part(ids)
    return Part(ids, record.key, unpack(record.deviation) if record.deviation else None, relevance, weight)


def make_splicer(
    engine_client: Any, config: MemoryConfig, vault: Vault, secret: bytes, uses: UseBook, decoy_ids: Sequence[int]
) -> KVSplicer:
    """The splicer for this API server's engine, with its background work begun."""
    assert config.memory_dir is not None
    identity = identity_of(engine_client.vllm_config)
    policy = parse_policy(config.repair)
    per_token = 2 * identity.layers * identity.kv_heads * identity.head_dim * DTYPE_BYTES.get(identity.dtype, 2)
    sweep_temporaries(config.memory_dir)
    requests = PrivateRequests(engine_client, secret)
    world = engine_client.vllm_config.parallel_config.tensor_parallel_size
    compared = decoy_ids if policy.needs_deviation else ()
    queue = CaptureQueue(requests, config.memory_dir, vault, identity.digest(), world, compared)
    promoter = Promoter(config.promote, policy, uses, per_token)
    upkeep = Upkeep(vault, queue.drop, promoter.learn)
    upkeep.start()
    queue.tasks.append(asyncio.get_running_loop().create_task(_begin(promoter, requests, queue, decoy_ids)))
    return KVSplicer(vault, identity, policy, secret, queue, promoter, upkeep)


async def _begin(promoter: Promoter, requests: PrivateRequests, queue: CaptureQueue, token_ids: Sequence[int]) -> None:
    """Measure the engine while nobody uses it yet, then capture."""
    if promoter.mode != "off":
        try:
            await promoter.measure(requests, token_ids)
        except Exception:  # captures must run all the same
            logger.exception("the engine's speed was not measured; promotion goes by guesses")
    queue.start()
