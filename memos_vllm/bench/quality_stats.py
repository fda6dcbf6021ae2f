"""From answers to figures: right or wrong, the same as full prefill or not, and how far from its distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from memos_vllm.bench.client import Told
from memos_vllm.bench.stories import Kind

PLAIN = "full prefill"
"""The arm that all others are compared with: plain vLLM on the same tokens."""
ALL = "all"


@dataclass(frozen=True)
class Graded:
    """One answer. `kl_first`, `kl_answer` in nats, `ttft` in seconds, `repaired` of `tokens` tokens of memories."""

    case: int
    kind: Kind
    size: int
    memories: int
    policy: str
    right: bool
    agrees: bool
    kl_first: float
    kl_answer: float
    tokens: int
    repaired: int
    ttft: float
    text: str


@dataclass(frozen=True)
class QualityRow:
    """One policy over the prompts of one kind and size, `all` for any.

    accuracy: share of right answers; kept: accuracy as a share of full prefill's; agreement: share of answers that are
    full prefill's, token for token; kl_first and kl_answer: means; share: recomputed tokens of all tokens of memories;
    ttft: median, in seconds; ttft_ratio: median of the ratios to full prefill of the same prompt.
    """

    policy: str
    kind: str
    size: str
    prompts: int
    accuracy: float
    kept: float
    agreement: float
    kl_first: float
    kl_answer: float
    share: float
    ttft: float
    ttft_ratio: float


def kl_divergence(reference: Mapping[int, float], other: Mapping[int, float]) -> float:
    """KL(reference ‖ other) in nats, from log-probabilities of the likeliest tokens of each.

    The tokens that both name are outcomes of their own, all others together are one more. Putting outcomes together can
    only make the divergence smaller: this is a lower bound of the one over the whole vocabulary.
    """
    both = sorted(reference.keys() & other.keys())
    p, q = ([math.exp(side[token]) for token in both] for side in (reference, other))
    p_rest, q_rest = (max(1.0 - sum(known), 1e-9) for known in (p, q))
    return max(0.0, sum(a * math.log(a / b) for a, b in zip([*p, p_rest], [*q, q_rest], strict=True) if a > 0))


def divergences(plain: Told, other: Told) -> tuple[float, float]:
    """KL of the first token of the answer, and the mean over its tokens up to the first that differs: until then both
    distributions follow the same text.
    """
    alike = 0
    for ours, theirs in zip(other.token_ids, plain.token_ids, strict=False):
        if ours != theirs:
            break
        alike += 1
    compared = min(alike + 1, len(plain.alternatives), len(other.alternatives))
    found = [kl_divergence(plain.alternatives[i], other.alternatives[i]) for i in range(compared)]
    return found[0], statistics.fmean(found)


def summarise_quality(graded: Sequence[Graded]) -> list[QualityRow]:
    """Rows for every policy: over all prompts, each kind, each size, and each kind at each size."""
    policies = list(dict.fromkeys(one.policy for one in graded))
    kinds: list[str] = list(dict.fromkeys(one.kind for one in graded))
    sizes = sorted({one.size for one in graded})
    rows = []
    for kind in (ALL, *kinds):
        for size in (ALL, *map(str, sizes)):
            here = [one for one in graded if kind in (ALL, one.kind) and size in (ALL, str(one.size))]
            rows += [row(policy, kind, size, here) for policy in policies]
    return rows


def row(policy: str, kind: str, size: str, graded: Sequence[Graded]) -> QualityRow:
    """One policy over these answers, those of full prefill among them."""
    plain = {one.case: one for one in graded if one.policy == PLAIN}
    mine = [one for one in graded if one.policy == policy]
    right, all_right = _mean(mine, lambda one: one.right), _mean(plain.values(), lambda one: one.right)
    return QualityRow(
        policy=policy,
        kind=kind,
        size=size,
        prompts=len(mine),
        accuracy=right,
        kept=right / all_right if all_right else math.nan,
        agreement=_mean(mine, lambda one: one.agrees),
        kl_first=_mean(mine, lambda one: one.kl_first),
        kl_answer=_mean(mine, lambda one: one.kl_answer),
        share=sum(one.repaired for one in mine) / sum(one.tokens for one in mine),
        ttft=statistics.median(one.ttft for one in mine),
        ttft_ratio=statistics.median(one.ttft / plain[one.case].ttft for one in mine),
    )


def _mean(graded: Iterable[Graded], value: Callable[[Graded], float]) -> float:
    return statistics.fmean(map(value, graded))
