"""Requests that the server itself sends to the engine: captures, comparisons, drops, timings. They answer nobody."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence
from typing import Any

from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind

from memos_vllm.activation.plan import PARAMS_KEY, SplicePlan, prompt_hash, sign
from memos_vllm.server.injection import Adapter

MAX_DROPS = 1000
"""Keys in one request."""


class PrivateRequests:
    """Prefills of one API server. `engine_client` must not be hooked into yet: these are no chat requests."""

    def __init__(self, engine_client: Any, secret: bytes) -> None:
        self.engine_client, self.secret = engine_client, secret
        self.generate = engine_client.generate
        config = engine_client.vllm_config
        self.max_tokens = int(config.model_config.max_model_len) - 1
        self.busy_at = max(1, int(config.scheduler_config.max_num_seqs) // 4)
        self.engines = int(config.parallel_config.data_parallel_size)

    def has_room(self) -> bool:
        """Whether the engine is doing little enough for work that can wait."""
        return int(self.engine_client.output_processor.get_num_unfinished_requests()) < self.busy_at

    async def run(
        self,
        token_ids: Sequence[int],
        plan: SplicePlan | None,
        *,
        tenant: str,
        adapter: Adapter | None = None,
        engine: int | None = None,
    ) -> dict[str, Any]:
        """Prefill a prompt under a plan; what the connector tells of it.

        `tenant` keeps its prefix-cache blocks apart; `engine` is the data-parallel rank.
        """
        params = {"kv_transfer_params": sign(plan, self.secret)} if plan else {}
        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=params,
        )
        salt = hmac.new(self.secret, f"private\0{tenant}".encode(), hashlib.sha256).hexdigest()
        told: dict[str, Any] = {}
        async for output in self.generate(
            tokens_input([*token_ids], cache_salt=salt),
            sampling,
            f"memos-private-{salt[:8]}-{time.monotonic_ns():x}",
            lora_request=adapter.request if adapter else None,
            data_parallel_rank=engine,
        ):
            told = (output.kv_transfer_params or {}).get(PARAMS_KEY) or told
        return told

    async def drop(self, kv_keys: Sequence[str]) -> None:
        """Have every engine forget K/V that were deleted."""
        for start in range(0, len(kv_keys), MAX_DROPS):
            plan = SplicePlan(drops=tuple(kv_keys[start : start + MAX_DROPS]), prompt=prompt_hash(()))
            for engine in range(self.engines):
                await self.run([0], plan, tenant="", engine=engine if self.engines > 1 else None)

    async def seconds(self, token_ids: Sequence[int]) -> float:
        """Time of a prefill that finds nothing in the prefix cache."""
        began = time.perf_counter()
        await self.run(token_ids, None, tenant=f"timing {time.monotonic_ns()}")
        return time.perf_counter() - began
