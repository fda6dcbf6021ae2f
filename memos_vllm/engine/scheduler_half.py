"""The connector's scheduler half: from verified plans to loads, repair rows and captures of each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.request import Request

from memos_vllm.activation.plan import PARAMS_KEY, SplicePlan, Window, verify
from memos_vllm.engine.messages import Capture, Compare, Load, RequestWork, StepNews, StepWork
from memos_vllm.engine.requests import Grant, Tracked, block_ids, clip, computed_ends, take_windows
from memos_vllm.engine.residency import LOAD_FAILED, WAIT, Residency
from memos_vllm.errors import PlanRefused

logger = init_logger("vllm.memos.scheduler")

LOOK_AHEAD = 64
"""Waiting requests for whose repair windows room is reserved before a step."""


PIN_SECONDS = 1.0


@dataclass
class Room:
    """What a step has for repair rows: tokens that are left, rows that are taken, and whether users wait."""

    tokens: int = 0
    rows_used: int = 0
    users_wait: bool = False


class SchedulerHalf:
    """Lives in the engine-core process, owned by one scheduler thread.

    adapter_of: name and version of a request's LoRA adapter, empty without one. May raise OSError.
    pinned_keys: of the KV cubes that are never to be evicted; asked every PIN_SECONDS
    """

    def __init__(
        self,
        residency: Residency,
        adapter_of: Callable[[Request], str],
        secret: bytes,
        pinned_keys: Callable[[], set[str]] = set,
    ) -> None:
        self.residency, self.adapter_of, self.secret = residency, adapter_of, secret
        self.pinned_keys, self.ask_pins_at = pinned_keys, 0.0
        self.tracked: dict[str, Tracked] = {}
        self.finished: set[str] = set()
        self.ended: set[str] = set()
        self.admitted: list[str] = []
        self.staged: dict[str, list[Window]] = {}
        self.room = Room()

    def on_new_request(self, request: Request) -> None:
        """Verify the plan that the request carries; a refused plan leaves a plain request."""
        try:
            plan = verify(request.kv_transfer_params, self.secret, request.prompt_token_ids or [])
            if plan is None:
                return
            tracked = Tracked(request, plan, self.adapter_of(request))
        except (PlanRefused, OSError, ValueError, KeyError) as error:  # an adapter's files may be half written
            logger.warning("request %s runs without its splice plan: %s", request.request_id, error)
            tracked = Tracked(request, SplicePlan(), report={"fallback": "plan-refused"})
        self.tracked[tracked.request_id] = tracked
        self.residency.drop(tracked.plan.drops)
        self.residency.prefetch(tracked)

    # before a step

    def wanted_tokens(self, waiting: Iterable[Request]) -> int:
        """Tokens in the repair windows of the requests that may be admitted next, and of those that are staged."""
        plans = (self.tracked.get(request.request_id) for request in islice(waiting, LOOK_AHEAD))
        ready = (tracked for tracked in plans if tracked and not self.residency.pending(tracked))
        new = sum(window.length for tracked in ready for window in tracked.plan.windows)
        return new + self.staged_tokens()

    def staged_tokens(self) -> int:
        return sum(window.length for windows in self.staged.values() for window in windows)

    def staged_rows(self) -> int:
        return sum(len(windows) for windows in self.staged.values())

    def users_wait(self, waiting: Iterable[Request]) -> bool:
        """Whether a request that somebody waits for is not yet running."""
        tracked = (self.tracked.get(request.request_id) for request in waiting)
        return any(known is None or not known.builds for known in tracked)

    def begin_step(self, tokens: int, users_wait: bool) -> None:
        """`tokens`: the step's budget for repair rows; what is staged already goes first."""
        if (now := time.monotonic()) >= self.ask_pins_at:
            self.residency.pin(self.pinned_keys())
            self.ask_pins_at = now + PIN_SECONDS
        self.room = Room(max(0, tokens - self.staged_tokens()), users_wait=users_wait)
        self.admitted = []

    # while vLLM schedules

    def matched_tokens(self, request: Request, local: int, rows: int) -> tuple[int | None, bool]:
        """Tokens behind the `local` cached ones that we provide, and whether their windows take several steps.

        None: ask again in a later step, because a KV cube is on its way to RAM, or because the request is run for its
        K/V alone and others are waiting. `rows`: free rows in this step's batch.
        """
        tracked = self.tracked.get(request.request_id)
        if tracked is None:
            return 0, False
        if tracked.builds:
            self.residency.prefetch(tracked)  # a user's request may have taken the room of what it compares with
            if self.room.users_wait:
                return None, False
        cover = self._cover(tracked, local, min(tracked.plan.cover, request.num_prompt_tokens - 1))
        if cover is None or self.residency.pending(tracked):
            return None, False
        clipped = (clip(window, local, cover) for window in tracked.plan.windows)
        windows = [window for window in clipped if window]
        fits = sum(window.length for window in windows) <= self.room.tokens and len(windows) <= rows
        tracked.grant = Grant(local, max(cover, local), windows, staged=not fits)
        return tracked.grant.cover - local, tracked.grant.staged

    def _cover(self, tracked: Tracked, local: int, cover: int) -> int | None:
        """The cover, cut where the first KV cube cannot be had: from there on the prompt is prefilled plainly.

        None: RAM is full of cubes for requests that came before; there will be room.
        """
        if tracked.failed:
            return local
        for segment in tracked.plan.segments:
            if segment.end > local and segment.start < cover:
                problem = self.residency.insist(tracked, segment, self.tracked.values())
                if problem == WAIT:
                    return None
                if problem:
                    tracked.report.setdefault("fallback", problem)
                    return segment.start
        return cover

    def allocated(self, request: Request, external: int) -> None:
        """The step admits the request with `external` tokens from us; 0 means without.

        Of a staged request vLLM tells twice: when its windows begin, and when the rest of the prompt does.
        """
        tracked = self.tracked.get(request.request_id)
        if tracked is None or tracked.grant is None or tracked.grant.admitted:
            return
        grant = tracked.grant
        if external == 0:  # nothing left to splice, or vLLM takes no external tokens for this request
            tracked.grant = grant = Grant(grant.local, grant.local, [])
        else:
            assert external == grant.cover - grant.local
        if grant.staged:
            self.staged[tracked.request_id] = list(grant.windows)
        else:
            self.room.tokens -= sum(window.length for window in grant.windows)
            self.room.rows_used += len(grant.windows)
        grant.admitted = True
        self.admitted.append(tracked.request_id)
        tracked.account(grant)

    def build_work(self, output: SchedulerOutput) -> StepWork:
        """This step's commands for the workers."""
        work = StepWork(fetches=self.residency.take_fetches())
        admitted = [self.tracked[request_id] for request_id in self.admitted]
        for tracked in admitted:
            if loads := self._loads(tracked):
                tracked.block_ids = block_ids(tracked.request_id, output)
                work.loads.append(RequestWork(tracked.request_id, tracked.block_ids, loads=loads))
        for request_id, end in computed_ends(output) if self.tracked else ():
            built = self.tracked.get(request_id)
            if built and built.builds and not built.built and end >= built.plan.extent:
                work.builds.append(self._build(built, block_ids(request_id, output)))
        work.drops = self.residency.tiers.take_drops()
        for tracked in admitted:  # only now: what is let go here may be dropped by the next step, not by this one
            if not tracked.builds:
                self.residency.release(tracked)
        return work

    def _loads(self, tracked: Tracked) -> list[Load]:
        grant, loads = tracked.grant, []
        assert grant is not None
        for segment in tracked.plan.segments:
            start, end = max(segment.start, grant.local), min(segment.end, grant.cover)
            if start < end:
                loads.append(Load(segment.key, tracked.tokens(segment), segment.start, start, end))
        return loads

    def _build(self, tracked: Tracked, blocks: list[int]) -> RequestWork:
        tracked.built = True
        captures = [
            Capture(
                part.key, tracked.tokens(part), part.start, part.length, *self.residency.admit(part.key, part.length)
            )
            for part in tracked.plan.captures
        ]
        held = (part for part in tracked.plan.compare if part.key in tracked.held)
        compares = [Compare(part.key, tracked.tokens(part), part.start, part.length) for part in held]
        return RequestWork(tracked.request_id, blocks, captures=captures, compares=compares)

    # repair rows

    def windows_of_step(self) -> Iterator[tuple[Request, Window]]:
        """The repair windows that ride in the very step that admits their request."""
        for request_id in self.admitted:
            tracked = self.tracked[request_id]
            if tracked.grant and not tracked.grant.staged:
                yield from ((tracked.request, window) for window in tracked.grant.windows)

    def staged_windows(
        self, tokens: int, rows: int, may_run: Callable[[Request], bool]
    ) -> list[tuple[Request, Window]]:
        """The windows of staged requests that fit into this step, in order; a long one is cut."""
        taken: list[tuple[Request, Window]] = []
        for request_id, windows in self.staged.items():
            request = self.tracked[request_id].request
            if tokens > 0 and rows > 0 and may_run(request):
                mine = take_windows(windows, tokens, rows)
                tokens, rows = tokens - sum(window.length for window in mine), rows - len(mine)
                taken += [(request, window) for window in mine]
        return taken

    def take_staged_done(self) -> list[str]:
        """Staged requests all of whose windows have had their row."""
        done = [request_id for request_id, windows in self.staged.items() if not windows]
        for request_id in done:
            del self.staged[request_id]
        return done

    # after a step

    def news(self, news: StepNews) -> None:
        """Take in the workers' news. A request with a failed load starts anew, as a plain one."""
        self.residency.news(news, self.tracked.values())
        for request_id in news.failed:
            if tracked := self.tracked.get(request_id):
                tracked.failed = True
                tracked.report["fallback"] = LOAD_FAILED
                self.staged.pop(request_id, None)

    def blocks_of_loads(self) -> Iterator[list[int]]:
        """The blocks of every request that was spliced, ended ones of this step included."""
        for tracked in self.tracked.values():
            yield tracked.block_ids

    def request_finished(self, request_id: str) -> None:
        if tracked := self.tracked.get(request_id):
            self.staged.pop(request_id, None)
            self.residency.release(tracked)
            self.finished.add(request_id)

    def report_for(self, output: EngineCoreOutput) -> dict[str, Any] | None:
        """`kv_transfer_params` for an output; None for plain requests.

        It goes with every output: vLLM joins those that a busy API server has not fetched yet, and keeps the last's.
        """
        tracked = self.tracked.get(output.request_id)
        return {PARAMS_KEY: tracked.report} if tracked and tracked.report else None

    def purge(self) -> None:
        """Forget the requests that had ended by the last call: a step of theirs may be under way until the next."""
        for request_id in self.ended:
            self.tracked.pop(request_id, None)
        self.ended, self.finished = self.finished, set()

    def check_integrity(self) -> None:
        """Raise AssertionError unless all requests' holds and windows are given back once they have ended."""
        live = self.tracked.keys() - self.finished - self.ended
        assert set(self.staged) <= live
        self.residency.tiers.check_integrity()
        if not live:
            assert self.residency.num_held == 0
