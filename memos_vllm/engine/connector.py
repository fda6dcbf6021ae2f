"""MemosConnector: vLLM's KV connector interface, in front of the two halves."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from memos_kernels import cpu
from memos_kernels.layout import CpuVecLayout, Layout, StridedLayout
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.logger import init_logger
from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT
from vllm.platforms import current_platform

from memos_vllm.activation.disk import DiskTier
from memos_vllm.activation.identity import identity_of, with_adapter
from memos_vllm.activation.payload import stored_nbytes
from memos_vllm.activation.policies import DISK_HALF_LIFE, FROM_PREFILL, parse_eviction
from memos_vllm.activation.quantize import StoreDtype
from memos_vllm.activation.store import KVStore
from memos_vllm.activation.tiers import KVTiers
from memos_vllm.engine.compat import check_engine
from memos_vllm.engine.messages import StepNews, StepWork
from memos_vllm.engine.metrics import MemosPromMetrics, MemosStats
from memos_vllm.engine.residency import Residency
from memos_vllm.engine.rope import check_rotation, model_rotation
from memos_vllm.engine.scheduler_half import SchedulerHalf
from memos_vllm.engine.worker_half import WorkerHalf
from memos_vllm.errors import MemosError, StartError
from memos_vllm.vault import Vault

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger("vllm.memos.connector")

SECRET_ENV = "MEMOS_PLAN_SECRET"
"""Hex; made afresh by every server start, inherited by the engine processes."""
STRIDED_BACKENDS = ("FLASH_ATTN", "TRITON_ATTN", "FLASHINFER")


def plan_secret() -> bytes:
    secret = os.environ.get(SECRET_ENV, "")
    if len(secret) < 32:
        raise StartError(f"{SECRET_ENV} is not set: start the server with 'memos-vllm serve'")
    return bytes.fromhex(secret)


def cache_layout(layers: dict[str, Any], head_dim: int) -> Layout:
    """The layout of the attention layers' caches. Raises StartError for a backend that has no test here."""
    layer = next(iter(layers.values()))
    backend = layer.get_attn_backend().get_name()
    if backend == "CPU_ATTN":
        if (isa := getattr(layer, "isa", None)) not in ("vec", "vec16"):
            raise StartError(f"the CPU attention layout '{isa}' is not supported; start with --memory-splice off")
        return CpuVecLayout(head_dim)
    if backend in STRIDED_BACKENDS:
        return StridedLayout(head_dim)
    raise StartError(f"the attention backend {backend} is not supported; start with --memory-splice off")


@dataclass(frozen=True)
class Settings:
    """`kv_connector_extra_config`. Budgets in bytes, all ranks together; `disk_bytes` None: no limit.

    `kv_dtype`: auto (as computed), int8 or fp8; `eviction`: a policy's name.
    """

    memory_dir: Path
    ram_bytes: int
    disk_bytes: int | None = None
    eviction: str = "lru"
    kv_dtype: StoreDtype = "auto"

    @classmethod
    def read(cls, extra: dict[str, Any]) -> Settings:
        return cls(
            Path(extra["memory_dir"]),
            int(extra["ram_bytes"]),
            int(extra.get("disk_bytes", 0)) or None,
            extra.get("eviction", cls.eviction),
            extra.get("kv_dtype", cls.kv_dtype),
        )


def make_scheduler_half(vllm_config: VllmConfig, settings: Settings) -> SchedulerHalf:
    """The scheduler half with its tiers."""
    identity = identity_of(vllm_config)
    world = vllm_config.parallel_config.tensor_parallel_size
    tiers = KVTiers(settings.ram_bytes // world, parse_eviction(settings.eviction))
    disk = DiskTier(
        settings.memory_dir,
        identity.digest(),
        world,
        settings.disk_bytes,
        parse_eviction(settings.eviction, FROM_PREFILL, DISK_HALF_LIFE),
        in_use=tiers.in_use,
    )

    def nbytes(tokens: int) -> int:
        return stored_nbytes(cube_shape(vllm_config, tokens), vllm_config.model_config.dtype, settings.kv_dtype)

    versions: dict[int, str] = {}

    def adapter_of(request: Request) -> str:
        """As of the adapter's first request: files that change later are not what the workers have loaded."""
        if (lora := request.lora_request) is None:
            return ""
        if lora.lora_int_id not in versions:
            versions[lora.lora_int_id] = with_adapter(identity, lora.lora_name, lora.lora_path).adapter
        return versions[lora.lora_int_id]

    pins = pins_of(settings.memory_dir)
    return SchedulerHalf(Residency(tiers, disk, nbytes, world), adapter_of, plan_secret(), pins)


def pins_of(memory_dir: Path) -> Callable[[], set[str]]:
    """What the vault says is pinned, as of when it could last be read; without a vault nothing is."""
    try:
        vault = Vault.open(memory_dir, readonly=True)
    except MemosError as error:
        logger.warning("no KV cube is pinned: %s", error)
        return set

    known: set[str] = set()

    def pinned_keys() -> set[str]:
        nonlocal known
        try:
            known = vault.pinned_keys()
        except MemosError as error:
            logger.warning("pins stay as they were: %s", error)
        return known

    return pinned_keys


def cube_shape(vllm_config: VllmConfig, tokens: int) -> tuple[int, int, int, int]:
    """Of one rank's k (and v): `[layers, tokens, kv_heads, head_dim]`."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    layers, heads = model.get_total_num_hidden_layers(), model.get_num_kv_heads(parallel)
    return layers, tokens, heads, model.get_head_size()


class MemosConnector(KVConnectorBase_V1):
    """Splices and captures KV cubes; `kv_connector_extra_config` is described by `Settings`."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        check_engine(vllm_config)
        settings = Settings.read(self._kv_transfer_config.kv_connector_extra_config)
        self.head_dim = vllm_config.model_config.get_head_size()
        if role == KVConnectorRole.SCHEDULER:
            self.scheduler_half = make_scheduler_half(vllm_config, settings)
            self.rows_left: Callable[[], int] = lambda: 0  # the splice scheduler puts its own count here
        else:
            self.rotation = model_rotation(vllm_config.model_config.hf_text_config, self.head_dim)
            rank, world = get_tensor_model_parallel_rank(), vllm_config.parallel_config.tensor_parallel_size
            store = KVStore(settings.memory_dir, rank, world, dtype=settings.kv_dtype, pin_memory=True)
            digest = identity_of(vllm_config).digest()
            if current_platform.is_cpu() and (problem := cpu.problem()):
                logger.info("KV cubes are moved by torch, which is slower than the C++ kernels: %s", problem)
            self.worker_half = WorkerHalf(store, digest, cube_shape(vllm_config, 0), self.rotation)

    # worker half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self.kv_caches = kv_caches
        check_rotation(self.rotation, _ROPE_DICT.values())

    def _learn_layout(self, forward_context: ForwardContext) -> None:
        """The CPU backend names its layout only once attention metadata has been built."""
        if self.worker_half.layout is None:
            layers = {name: forward_context.no_compile_layers[name] for name in self.kv_caches}
            self.worker_half.register(self.kv_caches, cache_layout(layers, self.head_dim))

    def _work(self) -> StepWork:
        work = self._get_connector_metadata()
        assert isinstance(work, StepWork)
        return work

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        work = self._work()
        if work.loads or work.builds:
            self._learn_layout(forward_context)
        self.worker_half.begin(work)
        if forward_context.attn_metadata is None and not kwargs:  # the V2 runner names the requests of a forward
            self.worker_half.rest()

    def has_connector_metadata(self) -> bool:
        """vLLM asks in every layer, to wait for the layer's K/V or to hand them over: ours do not come by layers."""
        return False

    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        return

    def wait_for_save(self) -> None:
        self.worker_half.build(self._work())

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self.worker_half.take_failed_blocks()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return self.worker_half.take_news()

    def get_kv_connector_stats(self) -> MemosStats | None:
        if self.role == KVConnectorRole.SCHEDULER:
            return self.scheduler_half.residency.take_stats()
        return self.worker_half.take_stats()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> MemosStats:
        return MemosStats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, *args: Any, **kwargs: Any) -> MemosPromMetrics:
        return MemosPromMetrics(*args, **kwargs)

    def shutdown(self) -> None:
        if self.role == KVConnectorRole.WORKER:
            self.worker_half.shutdown()
        else:
            self.scheduler_half.residency.disk.close()

    # scheduler half

    def on_new_request(self, request: Request) -> None:
        self.scheduler_half.on_new_request(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        return self.scheduler_half.matched_tokens(request, num_computed_tokens, self.rows_left())

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        self.scheduler_half.allocated(request, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self.scheduler_half.build_work(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        news = connector_output.kv_connector_worker_meta
        if isinstance(news, StepNews):
            self.scheduler_half.news(news)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        self.scheduler_half.request_finished(request.request_id)
        return False, None
