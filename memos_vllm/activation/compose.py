"""From the parts of a prompt to its splice plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memos_vllm.activation.plan import Segment, SplicePlan, Window, merge, prompt_hash
from memos_vllm.activation.repair import Placed, RepairPolicy


@dataclass(frozen=True)
class Part:
    """A run of prompt tokens and the key of its KV cube; None when it has none (text between cubes, a cold cube).

    deviation, relevance: what repair policies choose by, see `Placed`; weight: how dear its K/V are, see `SplicePlan`.
    """

    ids: Sequence[int]
    key: str | None = None
    deviation: Sequence[float] | None = None
    relevance: Sequence[tuple[int, int, float]] | None = None
    weight: float = 1.0


def compose(scaffold: Part, parts: Sequence[Part], policy: RepairPolicy) -> SplicePlan | None:
    """The plan of a prompt that begins with the scaffold and the parts, in this order.

    Parts with a key were captured right behind this scaffold. Parts without one are recomputed; what lies behind the
    last part with a key is left to the plain prefill. None when no part has a key.
    """
    starts, position = [], len(scaffold.ids)
    for part in parts:
        starts.append(position)
        position += len(part.ids)
    placed = [(start, part) for start, part in zip(starts, parts, strict=True) if part.ids]
    keyed = [(start, part) for start, part in placed if part.key]
    if not keyed:
        return None
    cover = keyed[-1][0] + len(keyed[-1][1].ids)
    origin = len(scaffold.ids)
    segments = [Segment(part.key or "", start, len(part.ids)) for start, part in keyed]
    spans = policy.spans(
        [Placed(start, len(part.ids), start == origin, part.deviation, part.relevance) for start, part in keyed]
    )
    spans += [(start, start + len(part.ids)) for start, part in placed if not part.key and start < cover]
    if scaffold.key and origin:
        segments.insert(0, Segment(scaffold.key, 0, origin))
    elif origin:
        spans.append((0, origin))
    ids = [token for part in (scaffold, *parts) for token in part.ids][:cover]
    windows = tuple(Window(start, end - start) for start, end in merge(spans))
    weights = {part.key: part.weight for _, part in keyed if part.key and part.weight != 1.0}
    return SplicePlan(tuple(segments), windows, cover, prompt=prompt_hash(ids), weights=weights)


def capture_plan(scaffold: Part, cube: Part) -> SplicePlan:
    """The plan of a capture request: the prompt is scaffold + cube, both are kept under their keys."""
    origin = len(scaffold.ids)
    captures = [Segment(cube.key or "", origin, len(cube.ids))]
    if scaffold.key and origin:
        captures.insert(0, Segment(scaffold.key, 0, origin))
    return SplicePlan(captures=tuple(captures), prompt=prompt_hash([*scaffold.ids, *cube.ids]))
