"""SpliceScheduler: vLLM's scheduler, with repair windows as extra rows of the step that splices.

A repair window is a row of the batch with its own id whose block table aliases the request's blocks. To the model
runner it looks like an unfinished chunk of a prefill: its K/V are written, nothing is sampled. Every layer writes the
K/V of all rows before attention reads them, so windows and the prompt's tail are right in one step.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from memos_vllm.activation.plan import Window
from memos_vllm.engine.connector import MemosConnector
from memos_vllm.engine.scheduler_half import SchedulerHalf
from memos_vllm.errors import StartError

TAIL_TOKENS = 256
"""Left of a step's budget, beside the running requests, for what follows the memories in a prompt."""

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request


class SplicingMixin(Scheduler):
    """What both schedulers below add to vLLM's."""

    _max_active: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.connector, MemosConnector):
            raise StartError("SpliceScheduler needs the MemosConnector: start the server with 'memos-vllm serve'")
        self.connector.rows_left = self.rows_left
        # vLLM holds freed blocks back from connectors that copy outside the stream; ours copy in it, in order of steps.
        # And steps that are rows alone would upset its count of steps.
        self.defer_block_free = False
        self.full_budget: int = self.max_num_scheduled_tokens
        self.row_sampling = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)

    @property
    def half(self) -> SchedulerHalf:
        assert isinstance(self.connector, MemosConnector)
        return self.connector.scheduler_half

    def rows_left(self) -> int:
        """Rows of this step's batch that are free once the request now being admitted has its own."""
        rows: int = self.max_num_running_reqs - len(self.running) - self.num_waiting_for_streaming_input
        return rows - self.half.room.rows_used - 1

    @property
    def max_num_active_reqs(self) -> int:
        """Rows that requests may take: those of this step's repair windows are already gone."""
        if getattr(self, "connector", None) is None:
            return self._max_active
        kept = min(self.half.staged_rows(), max(1, self._max_active // 8))  # else requests would take every row
        return self._max_active - self.half.room.rows_used - kept

    @max_num_active_reqs.setter
    def max_num_active_reqs(self, limit: int) -> None:
        self._max_active: int = limit

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        half = self.half
        if not half.tracked:  # then there is nothing to load or to repair, and the step is vLLM's own
            half.begin_step(0, users_wait=False)
            return super().schedule(throttle_prefills)
        reserved = min(half.wanted_tokens(self.waiting), self._reservable())
        half.begin_step(reserved, half.users_wait(self.waiting))
        self.max_num_scheduled_tokens = self.full_budget - reserved
        try:
            output = super().schedule(throttle_prefills)
        finally:
            self.max_num_scheduled_tokens = self.full_budget
        windows = list(half.windows_of_step())
        if not throttle_prefills:
            windows += self._staged_windows(output)
        half.room.rows_used = 0
        for number, (request, window) in enumerate(windows):
            self._append_row(output, request, window, number)
        if output.kv_connector_metadata.loads:
            output.has_sync_kv_loads = True  # else the workers would load after the forward
        self.finished_recving_kv_req_ids.update(half.take_staged_done())
        return output

    def _reservable(self) -> int:
        """Most tokens that a step gives to repair rows: all that running requests leave, half where one of them is
        still being prefilled.
        """
        half = self.full_budget // 2
        if any(request.is_prefill_chunk for request in self.running):
            return half
        return max(half, self.full_budget - len(self.running) - TAIL_TOKENS)

    def _staged_windows(self, output: SchedulerOutput) -> list[tuple[Request, Window]]:
        """The rows of staged requests that the step has tokens, rows and LoRA slots for."""
        rows = self.rows_left() + 1
        tokens = (
            self.full_budget
            - output.total_num_scheduled_tokens
            - sum(window.length for _, window in self.half.windows_of_step())
        )
        loras = {self._lora_id(self.requests[request_id]) for request_id in output.num_scheduled_tokens} - {0}

        def may_run(request: Request) -> bool:
            lora = self._lora_id(request)
            if lora and self.lora_config and len(loras | {lora}) > self.lora_config.max_loras:
                return False
            loras.update({lora} - {0})
            return True

        return self.half.staged_windows(tokens, rows, may_run)

    @staticmethod
    def _lora_id(request: Request) -> int:
        return request.lora_request.lora_int_id if request.lora_request else 0

    def _append_row(self, output: SchedulerOutput, request: Request, window: Window, number: int) -> None:
        row_id = f"{request.request_id}#repair{self.current_step}.{number}"
        num_blocks = -(-window.end // self.block_size)
        tokens = (request.prompt_token_ids or [])[: window.end + 1]
        row = NewRequestData(
            req_id=row_id,
            prompt_token_ids=tokens,
            mm_features=[],
            sampling_params=self.row_sampling,
            pooling_params=None,
            block_ids=tuple(ids[:num_blocks] for ids in self.kv_cache_manager.get_block_ids(request.request_id)),
            num_computed_tokens=window.start,
            lora_request=request.lora_request,
            prefill_token_ids=tokens if self.use_v2_model_runner else None,
        )
        output.scheduled_new_reqs.append(row)
        output.num_scheduled_tokens[row_id] = window.length
        output.total_num_scheduled_tokens += window.length
        self.finished_req_ids.add(row_id)

    def _handle_invalid_blocks(self, invalid_block_ids: set[int], num_scheduled_tokens: dict[str, int]) -> set[str]:
        """Start requests with a failed load anew, as preempted ones: vLLM's own rewind leaves blocks that were never
        filled in the prefix cache, and with async scheduling a token computed from them on its way.

        Returns the ids whose output of this step is dropped.
        """
        tables = {request: self._blocks(request) for request in self.running}
        spoiled = set(invalid_block_ids)
        for table in (*tables.values(), *self.half.blocks_of_loads()):
            first = next((place for place, block in enumerate(table) if block in invalid_block_ids), len(table))
            spoiled.update(table[first:])
        self.kv_cache_manager.evict_blocks(spoiled)
        for request in list(self.kv_holding_waiting):
            if not invalid_block_ids.isdisjoint(self._blocks(request)):
                self._restart_waiting(request)
        failed = [request for request, table in tables.items() if not invalid_block_ids.isdisjoint(table)]
        for request in failed:
            self.running.remove(request)
            self._preempt_request(request, time.monotonic(), drop_stale_output=True)
        return {request.request_id for request in failed} | self._drop_stale(invalid_block_ids)

    def _drop_stale(self, invalid_block_ids: set[int]) -> set[str]:
        """Requests that were preempted since their load failed: what the failed step made of them must not be told."""
        preempted = [
            tracked.request
            for tracked in self.half.tracked.values()
            if tracked.request.status == RequestStatus.PREEMPTED
            and not invalid_block_ids.isdisjoint(tracked.block_ids)
            and tracked.request.num_stale_output_tokens
        ]
        for request in preempted:
            request.drop_stale_output = True
        return {request.request_id for request in preempted}

    def _restart_waiting(self, request: Request) -> None:
        """A staged request with a failed load gives its blocks back when vLLM next looks at it, and starts anew."""
        request.num_computed_tokens = 0
        self.half.staged.pop(request.request_id, None)
        if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
            self.failed_recving_kv_req_ids.add(request.request_id)
            self.finished_recving_kv_req_ids.add(request.request_id)
        else:
            self.kv_cache_manager.free(request)

    def finish_requests(self, request_ids: Any, finished_status: RequestStatus) -> list[Request]:
        """Staged requests that are aborted give their blocks back at once: steps run in order, so no row of theirs can
        write after the next owner.
        """
        if request_ids is not None:
            request_ids = {request_ids} if isinstance(request_ids, str) else set(request_ids)
        loading = RequestStatus.WAITING_FOR_REMOTE_KVS
        staged = {request.request_id for request in self.kv_holding_waiting if request.status == loading}
        self.finished_recving_kv_req_ids |= staged if request_ids is None else staged & request_ids
        aborted: list[Request] = super().finish_requests(request_ids, finished_status)
        return aborted

    def _blocks(self, request: Request) -> list[int]:
        (ids,) = self.kv_cache_manager.get_block_ids(request.request_id)
        return list(ids)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        for batch in outputs.values():
            for output in batch.outputs:
                if report := self.half.report_for(output):
                    output.kv_transfer_params = report
        self.half.purge()
        return outputs


class SpliceScheduler(SplicingMixin):
    """For engines without async scheduling."""


class AsyncSpliceScheduler(SplicingMixin, AsyncScheduler):
    """For engines with async scheduling."""


def make_scheduler(*, vllm_config: VllmConfig, **kwargs: Any) -> Scheduler:
    """What `--scheduler-cls` names: the scheduler that fits the engine's scheduling mode."""
    kind = AsyncSpliceScheduler if vllm_config.scheduler_config.async_scheduling else SpliceScheduler
    return kind(vllm_config=vllm_config, **kwargs)
