"""The splice plan: which parts of a prompt come from KV cubes, which are recomputed, and the proof that it is ours.

    prompt   |scaffold|  cube b   |   cube a    |sep| rest …
    segments |████████|███████████|█████████████|   |
    windows            |▒▒▒|       |▒▒▒|         |▒▒▒|
    cover    ────────────────────────────────────────┤

Everything in `[0, cover)` lies in a segment or in a window; a window wins where both lie.
"""

from __future__ import annotations

import hashlib
import hmac
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from memos_vllm.errors import PlanRefused

PARAMS_KEY = "memos"
"""Our key inside a request's `kv_transfer_params`."""


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """Prompt tokens `[start, start + length)` whose K/V are (or become, in a capture) the KV cube `key`."""

    key: str
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


class Window(msgspec.Struct, frozen=True, array_like=True):
    """Prompt tokens `[start, start + length)` that are recomputed in place."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


class SplicePlan(msgspec.Struct, frozen=True):
    """Segments and windows, each in ascending order and without overlap among themselves.

    `captures` name the ranges of this prompt to be kept as KV cubes once they are computed; `compare` the ranges whose
    K/V are set against those of a cube that is kept already, to learn which of its tokens lean on what is before them.
    `drops` are the keys of cubes that were deleted. `prompt` is the hash of the tokens the plan speaks of: a plan fits
    no other prompt. `weights` say of some segments' cubes how dear they are to the tiers; of the others it is 1.
    """

    segments: tuple[Segment, ...] = ()
    windows: tuple[Window, ...] = ()
    cover: int = 0
    captures: tuple[Segment, ...] = ()
    prompt: str = ""
    compare: tuple[Segment, ...] = ()
    drops: tuple[str, ...] = ()
    weights: dict[str, float] = {}

    @property
    def extent(self) -> int:
        """Number of leading prompt tokens that the plan binds."""
        return max([self.cover, *(segment.end for segment in (*self.captures, *self.compare))])

    @property
    def builds(self) -> bool:
        """Whether the request is run for its K/V alone, in the background."""
        return bool(self.captures or self.compare)

    def digest(self) -> str:
        """Hex digest of everything that shapes the K/V: equal plans may share blocks, others must not."""
        return hashlib.sha256(
            msgspec.msgpack.encode((self.segments, self.windows, self.cover, self.prompt))
        ).hexdigest()


def prompt_hash(token_ids: Sequence[int]) -> str:
    return hashlib.sha256(array("q", token_ids).tobytes()).hexdigest()


def merge(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of `[start, end)` spans as ascending spans that neither touch nor overlap."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif end > start:
            merged.append((start, end))
    return merged


def validate(plan: SplicePlan) -> None:
    """Raise PlanRefused unless the plan keeps its invariants."""
    inside: tuple[Sequence[Segment | Window], ...] = (plan.segments, plan.windows)
    groups: tuple[Sequence[Segment | Window], ...] = (*inside, plan.captures, plan.compare)
    for parts in groups:
        ends = [0]
        for part in parts:
            if part.start < ends[-1] or part.length <= 0:
                raise PlanRefused("the splice plan's parts overlap, are empty or are out of order")
            ends.append(part.end)
    if any(part.end > plan.cover for parts in inside for part in parts):
        raise PlanRefused("a part of the splice plan lies beyond its cover")
    covered = merge([(part.start, part.end) for parts in inside for part in parts])
    if covered != ([(0, plan.cover)] if plan.cover else []):
        raise PlanRefused("the splice plan leaves tokens below its cover without K/V")


def _signature(body: bytes, secret: bytes) -> str:
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


def sign(plan: SplicePlan, secret: bytes) -> dict[str, Any]:
    """`kv_transfer_params` that carry the plan to the engine."""
    validate(plan)
    body = msgspec.json.encode(plan)
    return {PARAMS_KEY: {"plan": body.decode(), "signature": _signature(body, secret)}}


def verify(params: Any, secret: bytes, prompt_ids: Sequence[int]) -> SplicePlan | None:
    """The plan that `kv_transfer_params` carry; None when they carry none.

    Raises PlanRefused when the signature, the plan's shape or the prompt it speaks of is not right.
    """
    sealed = params.get(PARAMS_KEY) if isinstance(params, Mapping) else params
    if sealed is None:
        return None
    try:
        body, signature = sealed["plan"].encode(), sealed["signature"]
        if not hmac.compare_digest(_signature(body, secret), signature):
            raise PlanRefused("the splice plan is not signed by this server")
        plan = msgspec.json.decode(body, type=SplicePlan)
    except (KeyError, TypeError, AttributeError, msgspec.DecodeError) as error:
        raise PlanRefused("the splice plan cannot be read") from error
    validate(plan)
    if plan.extent > len(prompt_ids) or prompt_hash(prompt_ids[: plan.extent]) != plan.prompt:
        raise PlanRefused("the splice plan was made for another prompt")
    return plan
