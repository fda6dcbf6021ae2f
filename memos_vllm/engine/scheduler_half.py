"""The connector's scheduler half: from verified plans to loads, repair rows and captures of each step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.request import Request

from memos_vllm.activation.files import all_written
from memos_vllm.activation.plan import PARAMS_KEY, Segment, SplicePlan, Window, prompt_hash, verify
from memos_vllm.engine.messages import Capture, Load, LoadResult, RequestWork, StepWork
from memos_vllm.errors import PlanRefused

logger = init_logger("vllm.memos.scheduler")

LOOK_AHEAD = 64
"""Waiting requests for whose repair windows room is reserved before a step."""


@dataclass
class Room:
    """What a step has for repair rows: tokens that are left, and rows that are taken."""

    tokens: int = 0
    rows_used: int = 0


@dataclass
class Grant:
    """What a request gets in the step that admits it: `[local, cover)` is loaded, but for the windows."""

    local: int
    cover: int
    windows: list[Window]


@dataclass
class Tracked:
    """A request with a plan, from its arrival to its end."""

    request: Request
    plan: SplicePlan
    grant: Grant | None = None
    captured: bool = False
    failed: bool = False
    block_ids: list[int] = field(default_factory=list)
    reported: bool = False
    report: dict[str, Any] = field(default_factory=dict)


def clip(start: int, end: int, low: int, high: int) -> tuple[int, int]:
    return max(start, low), min(end, high)


def tokens_of(tracked: Tracked, segment: Segment) -> str:
    """The hash of a segment's token ids."""
    return prompt_hash((tracked.request.prompt_token_ids or [])[segment.start : segment.end])


def block_ids(request_id: str, output: SchedulerOutput) -> list[int]:
    """All blocks of a request that is scheduled in this step (one KV cache group: others are refused at start)."""
    assert output.kv_connector_block_state is not None
    (ids,) = output.kv_connector_block_state.resolve_block_ids(request_id)
    return list(ids)


def computed_ends(output: SchedulerOutput) -> Iterator[tuple[str, int]]:
    """For each request of the step, the number of its tokens whose K/V are there once the step is done."""
    cached = output.scheduled_cached_reqs
    starts = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    starts |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    for request_id, start in starts.items():
        yield request_id, start + output.num_scheduled_tokens.get(request_id, 0)


class SchedulerHalf:
    """Lives in the engine-core process, owned by one scheduler thread."""

    def __init__(self, memory_dir: Path, identity: str, secret: bytes, world: int) -> None:
        self.memory_dir, self.identity, self.secret, self.world = memory_dir, identity, secret, world
        self.tracked: dict[str, Tracked] = {}
        self.finished: set[str] = set()
        self.admitted: list[str] = []
        self.room = Room()

    def on_new_request(self, request: Request) -> None:
        """Verify the plan that the request carries; a refused plan leaves a plain request."""
        try:
            plan = verify(request.kv_transfer_params, self.secret, request.prompt_token_ids or [])
        except PlanRefused as error:
            logger.warning("request %s runs without its splice plan: %s", request.request_id, error)
            self.tracked[request.request_id] = Tracked(request, SplicePlan(), report={"fallback": "plan-refused"})
            return
        if plan is not None:
            self.tracked[request.request_id] = Tracked(request, plan)

    def wanted_tokens(self, waiting: Iterable[Request]) -> int:
        """Tokens in the repair windows of the requests that may be admitted next."""
        plans = (self.tracked.get(request.request_id) for request in islice(waiting, LOOK_AHEAD))
        return sum(window.length for tracked in plans if tracked for window in tracked.plan.windows)

    def begin_step(self, tokens: int) -> None:
        self.room = Room(tokens)
        self.admitted = []

    def matched_tokens(self, request: Request, local: int, rows: int) -> int:
        """Tokens behind the `local` cached ones that this step can splice and repair with `rows` more rows."""
        tracked = self.tracked.get(request.request_id)
        if tracked is None:
            return 0
        cover = 0 if tracked.failed else min(tracked.plan.cover, request.num_prompt_tokens - 1)
        cover = self._available(tracked, local, cover)
        windows: list[Window] = []
        tokens = self.room.tokens
        for window in tracked.plan.windows:
            start, end = clip(window.start, window.end, local, cover)
            if start >= end:
                continue
            if not rows or not tokens:
                cover = start
                break
            if end - start > tokens:
                cover = end = start + tokens
            windows.append(Window(start, end - start))
            tokens, rows = tokens - (end - start), rows - 1
        tracked.grant = Grant(local, max(cover, local), windows)
        return tracked.grant.cover - local

    def _available(self, tracked: Tracked, local: int, cover: int) -> int:
        """The cover, cut where the first KV file is missing: from there on the prompt is prefilled plainly."""
        for segment in tracked.plan.segments:
            if segment.end > local and segment.start < cover and not self._on_disk(segment):
                tracked.report["fallback"] = "kv-missing"
                return segment.start
        return cover

    def _on_disk(self, segment: Segment) -> bool:
        return all_written(self.memory_dir, self.identity, segment.key, self.world)

    def allocated(self, request: Request, external: int) -> None:
        """The step admits the request with `external` tokens from us; 0 means without."""
        tracked = self.tracked.get(request.request_id)
        if tracked is None or tracked.grant is None:
            return
        if external == 0:  # nothing left to splice, or vLLM takes no external tokens for this request
            tracked.grant.windows, tracked.grant.cover = [], tracked.grant.local
        else:
            assert external == tracked.grant.cover - tracked.grant.local
        self.room.tokens -= sum(window.length for window in tracked.grant.windows)
        self.room.rows_used += len(tracked.grant.windows)
        self.admitted.append(request.request_id)
        self._account(tracked.grant, tracked)

    def _account(self, grant: Grant, tracked: Tracked) -> None:
        """Note what becomes of the prompt's tokens."""
        repaired = sum(window.length for window in grant.windows)
        tracked.report |= {
            "cached": grant.local,
            "spliced": grant.cover - grant.local - repaired,
            "repaired": repaired,
            "computed": tracked.request.num_prompt_tokens - grant.cover,
        }

    def windows_of_step(self) -> Iterator[tuple[Request, Window]]:
        """Every repair window that must ride in this step."""
        for request_id in self.admitted:
            tracked = self.tracked[request_id]
            for window in tracked.grant.windows if tracked.grant else ():
                yield tracked.request, window

    def build_work(self, output: SchedulerOutput) -> StepWork:
        """This step's loads and captures for the workers."""
        work = StepWork()
        for request_id in self.admitted:
            admitted = self.tracked[request_id]
            if loads := self._loads(admitted):
                admitted.block_ids = block_ids(request_id, output)
                work.loads.append(RequestWork(request_id, admitted.block_ids, loads=loads))
        for request_id, end in computed_ends(output):
            tracked = self.tracked.get(request_id)
            if tracked and tracked.plan.captures and not tracked.captured and end >= tracked.plan.extent:
                tracked.captured = True
                captures = self._captures(tracked)
                work.captures.append(RequestWork(request_id, block_ids(request_id, output), captures=captures))
        return work

    def _loads(self, tracked: Tracked) -> list[Load]:
        grant, loads = tracked.grant, []
        assert grant is not None
        for segment in tracked.plan.segments:
            start, end = clip(segment.start, segment.end, grant.local, grant.cover)
            if start < end:
                loads.append(Load(segment.key, tokens_of(tracked, segment), segment.start, segment.length, start, end))
        return loads

    def _captures(self, tracked: Tracked) -> list[Capture]:
        return [
            Capture(segment.key, tokens_of(tracked, segment), segment.start, segment.length)
            for segment in tracked.plan.captures
        ]

    def news(self, results: dict[str, LoadResult]) -> None:
        """Take in the workers' load results. A request with a failed load starts anew, as a plain one."""
        for request_id, result in results.items():
            if tracked := self.tracked.get(request_id):
                tracked.report |= {"ram": result.ram, "disk": result.disk}
                if result.failed:
                    tracked.failed = True
                    tracked.report["fallback"] = "load-failed"

    def blocks_of_loads(self) -> Iterator[list[int]]:
        """The blocks of every request that was spliced, ended ones of this step included."""
        for tracked in self.tracked.values():
            yield tracked.block_ids

    def request_finished(self, request_id: str) -> None:
        if request_id in self.tracked:
            self.finished.add(request_id)

    def report_for(self, output: EngineCoreOutput) -> dict[str, Any] | None:
        """`kv_transfer_params` for a request's first and last output; None for the others and for plain requests."""
        tracked = self.tracked.get(output.request_id)
        if tracked is None or not tracked.report or (tracked.reported and output.finish_reason is None):
            return None
        tracked.reported = True
        return {PARAMS_KEY: tracked.report}

    def purge(self) -> None:
        """Forget the requests that have ended."""
        for request_id in self.finished:
            self.tracked.pop(request_id, None)
        self.finished.clear()
