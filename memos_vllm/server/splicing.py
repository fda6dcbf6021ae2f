"""The splicer of an API server: prompts with cubes in, signed splice plans out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memos_vllm.activation.compose import Part, compose
from memos_vllm.activation.files import all_written, sweep_temporaries
from memos_vllm.activation.identity import KVIdentity, identity_of, kv_key
from memos_vllm.activation.plan import sign
from memos_vllm.activation.repair import RepairPolicy, parse_policy
from memos_vllm.cube import MemCube
from memos_vllm.server.capture import CaptureJob, CaptureQueue
from memos_vllm.server.injection import SplicePrompt

if TYPE_CHECKING:
    from memos_vllm.config import MemoryConfig
    from memos_vllm.vault import Vault

SHARED = ""
"""Owner of the scaffold's K/V: the chat template's own tokens. Behind any other scaffold nothing is kept."""


class KVSplicer:
    """Plans with the KV cubes that exist and has the others captured for next time. Thread-safe."""

    def __init__(
        self,
        memory_dir: Path,
        vault: Vault,
        identity: KVIdentity,
        policy: RepairPolicy,
        secret: bytes,
        queue: CaptureQueue,
    ) -> None:
        self.memory_dir, self.vault, self.identity = memory_dir, vault, identity
        self.policy, self.secret, self.queue = policy, secret, queue
        self.digest = identity.digest()

    def prepare(
        self,
        caller_user: str,
        cubes: Sequence[MemCube],
        scaffold_ids: Sequence[int],
        cube_ids: Sequence[Sequence[int]],
        rest_ids: Sequence[int],
        repair: str | None = None,
    ) -> SplicePrompt:
        """See `Splicer.prepare`. A cube is keyed by its own owner, so that readers of a shared cube share its K/V."""
        policy = parse_policy(repair) if repair else self.policy
        jobs = self._jobs(cubes, scaffold_ids, cube_ids)
        ready = [self._has_kv(job.cube_key) for job in jobs]
        self.queue.submit([job for job, has_kv in zip(jobs, ready, strict=True) if not has_kv])
        parts = [Part(job.cube_ids, job.cube_key if has_kv else None) for job, has_kv in zip(jobs, ready, strict=True)]
        plan = compose(Part(scaffold_ids, self._scaffold_key(scaffold_ids)), parts, policy) if any(ready) else None
        if plan is None:
            return SplicePrompt(fallback="kv-missing")
        return SplicePrompt(sign(plan, self.secret), plan.digest(), "kv-partial" if not all(ready) else None)

    def capture(
        self,
        caller_user: str,
        cubes: Sequence[MemCube],
        scaffold_ids: Sequence[int],
        cube_ids: Sequence[Sequence[int]],
    ) -> None:
        """See `Splicer.capture`."""
        self.queue.submit(self._jobs(cubes, scaffold_ids, cube_ids))

    def _jobs(
        self, cubes: Sequence[MemCube], scaffold_ids: Sequence[int], cube_ids: Sequence[Sequence[int]]
    ) -> list[CaptureJob]:
        scaffold_key = kv_key(self.identity, SHARED, (), scaffold_ids)
        return [
            CaptureJob(
                cube.owner, cube.id, cube.version, kv_key(self.identity, cube.owner, scaffold_ids, ids), scaffold_key,
                tuple(scaffold_ids), tuple(ids),
            )
            for cube, ids in zip(cubes, cube_ids, strict=True)
        ]  # fmt: skip

    def _scaffold_key(self, scaffold_ids: Sequence[int]) -> str | None:
        key = kv_key(self.identity, SHARED, (), scaffold_ids)
        return key if self._has_kv(key) else None

    def _has_kv(self, key: str) -> bool:
        """In the manifest and on disk: a file that the engine found unusable is gone and will be made again."""
        return self.vault.get_kv(key) is not None and all_written(self.memory_dir, self.digest, key, self.queue.world)


def make_splicer(engine_client: Any, state: Any, config: MemoryConfig, vault: Vault, secret: bytes) -> KVSplicer:
    """The splicer for this API server's engine; starts its background captures."""
    identity = identity_of(engine_client.vllm_config)
    world = engine_client.vllm_config.parallel_config.tensor_parallel_size
    assert config.memory_dir is not None
    memory_dir = config.memory_dir
    sweep_temporaries(memory_dir)
    queue = CaptureQueue(engine_client, memory_dir, vault, identity.digest(), secret, world)
    queue.start()
    return KVSplicer(memory_dir, vault, identity, parse_policy(config.repair), secret, queue)
