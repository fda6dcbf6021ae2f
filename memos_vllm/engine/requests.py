"""What the scheduler half knows of a request with a splice plan, from its arrival to its end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from memos_vllm.activation.plan import Segment, SplicePlan, Window, prompt_hash


@dataclass
class Grant:
    """What a request gets when it is admitted: `[local, cover)` is loaded, but for the windows.

    `staged`: the windows do not fit into the step that admits it. They ride in that step and the next ones, as many as
    fit, and only then comes the rest of the prompt.
    """

    local: int
    cover: int
    windows: list[Window]
    staged: bool = False
    admitted: bool = False


@dataclass
class Tracked:
    """A request with a plan. `adapter`: name and version of its LoRA adapter, empty without one; `held`: keys of KV
    cubes that must stay in RAM for it, by where they were found.
    """

    request: Request
    plan: SplicePlan
    adapter: str = ""
    number: int = field(default_factory=itertools.count().__next__)
    """Order of arrival."""
    grant: Grant | None = None
    held: dict[str, str] = field(default_factory=dict)
    counted: set[tuple[str, str]] = field(default_factory=set)
    built: bool = False
    failed: bool = False
    block_ids: list[int] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def request_id(self) -> str:
        return str(self.request.request_id)

    @property
    def builds(self) -> bool:
        return self.plan.builds

    def turn(self) -> tuple[bool, int]:
        """Who comes first to what is scarce: requests that somebody waits for, in order of arrival."""
        return self.builds, self.number

    def tokens(self, segment: Segment) -> str:
        """What the KV cube of a segment must say of itself: the hash of its token ids, and its adapter."""
        hashed = prompt_hash((self.request.prompt_token_ids or [])[segment.start : segment.end])
        return f"{hashed}+{self.adapter}" if self.adapter else hashed

    def account(self, grant: Grant) -> None:
        """Note what becomes of the prompt's tokens, and where the cubes among them come from."""
        repaired = sum(window.length for window in grant.windows)
        used = {part.key for part in self.plan.segments if part.end > grant.local and part.start < grant.cover}
        sources = [source for key, source in self.held.items() if key in used]
        self.report |= {
            "cached": grant.local,
            "spliced": grant.cover - grant.local - repaired,
            "repaired": repaired,
            "computed": self.request.num_prompt_tokens - grant.cover,
            "ram": sources.count("ram"),
            "disk": sources.count("disk"),
        }


def clip(window: Window, low: int, high: int) -> Window | None:
    """The part of a window in `[low, high)`; None when there is none."""
    start, end = max(window.start, low), min(window.end, high)
    return Window(start, end - start) if start < end else None


def take_windows(windows: list[Window], tokens: int, rows: int) -> list[Window]:
    """Remove from the front of `windows` what fits into `tokens` and `rows`, and return it; a long one is cut."""
    taken: list[Window] = []
    while windows and tokens > 0 and len(taken) < rows:
        window = windows.pop(0)
        if window.length > tokens:
            windows.insert(0, Window(window.start + tokens, window.length - tokens))
            window = Window(window.start, tokens)
        taken.append(window)
        tokens -= window.length
    return taken


def block_ids(request_id: str, output: SchedulerOutput) -> list[int]:
    """All blocks of a request (one KV cache group: others are refused at start)."""
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
