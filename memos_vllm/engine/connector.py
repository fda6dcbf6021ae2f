"""MemosConnector: vLLM's KV connector interface, in front of the two halves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from memos_kernels.layout import CpuVecLayout, Layout, StridedLayout
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

from memos_vllm.activation.identity import identity_of
from memos_vllm.engine.compat import check_engine
from memos_vllm.engine.messages import StepNews, StepWork
from memos_vllm.engine.rope import inverse_frequencies
from memos_vllm.engine.scheduler_half import SchedulerHalf
from memos_vllm.engine.worker_half import WorkerHalf
from memos_vllm.errors import StartError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

SECRET_ENV = "MEMOS_PLAN_SECRET"
"""Hex; made afresh by every server start, inherited by the engine processes."""
STRIDED_BACKENDS = ("FLASH_ATTN", "TRITON_ATTN")


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
        if (isa := getattr(layer, "isa", None)) != "vec":
            raise StartError(f"the CPU attention layout '{isa}' is not supported; start with --memory-splice off")
        return CpuVecLayout(head_dim)
    if backend in STRIDED_BACKENDS:
        return StridedLayout(head_dim)
    raise StartError(f"the attention backend {backend} is not supported; start with --memory-splice off")


class MemosConnector(KVConnectorBase_V1):
    """Splices and captures KV cubes; `kv_connector_extra_config`: memory_dir (path), ram_bytes (int)."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        check_engine(vllm_config)
        extra = self._kv_transfer_config.kv_connector_extra_config
        memory_dir = Path(extra["memory_dir"])
        identity = identity_of(vllm_config).digest()
        world = vllm_config.parallel_config.tensor_parallel_size
        self.head_dim = vllm_config.model_config.get_head_size()
        if role == KVConnectorRole.SCHEDULER:
            self.scheduler_half = SchedulerHalf(memory_dir, identity, plan_secret(), world)
            self.rows_left: Callable[[], int] = lambda: 0  # the splice scheduler puts its own count here
        else:
            inv_freq = inverse_frequencies(vllm_config.model_config.hf_text_config, self.head_dim)
            rank = get_tensor_model_parallel_rank()
            self.worker_half = WorkerHalf(memory_dir, identity, int(extra["ram_bytes"]), inv_freq, rank, world)

    # worker half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self.kv_caches = kv_caches

    def _worker(self, forward_context: ForwardContext) -> WorkerHalf:
        if self.worker_half.layout is None:  # the CPU backend names its layout only once metadata has been built
            layers = {name: forward_context.no_compile_layers[name] for name in self.kv_caches}
            self.worker_half.register(self.kv_caches, cache_layout(layers, self.head_dim))
        return self.worker_half

    def _work(self) -> StepWork:
        work = self._get_connector_metadata()
        assert isinstance(work, StepWork)
        return work

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        work = self._work()
        if work.loads or work.captures:
            self._worker(forward_context).load(work)

    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        return

    def wait_for_save(self) -> None:
        self.worker_half.save(self._work())

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self.worker_half.take_failed_blocks()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return self.worker_half.take_news()

    def shutdown(self) -> None:
        if self.role == KVConnectorRole.WORKER:
            self.worker_half.shutdown()

    # scheduler half

    def on_new_request(self, request: Request) -> None:
        self.scheduler_half.on_new_request(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        return self.scheduler_half.matched_tokens(request, num_computed_tokens, self.rows_left()), False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        self.scheduler_half.allocated(request, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self.scheduler_half.build_work(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        news = connector_output.kv_connector_worker_meta
        if isinstance(news, StepNews):
            self.scheduler_half.news(news.results)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        self.scheduler_half.request_finished(request.request_id)
        return False, None
