"""Policies of MemScheduler: which of the memories that a search finds are put first."""

from memos_vllm.errors import BadInput
from memos_vllm.scheduler.policies.base import Candidate, Policy, PolicyName, Question, Signal, score_of
from memos_vllm.scheduler.policies.frequency import Frequency
from memos_vllm.scheduler.policies.label import Label
from memos_vllm.scheduler.policies.lru import LeastRecentlyUsed
from memos_vllm.scheduler.policies.priority import Priority
from memos_vllm.scheduler.policies.semantic import Semantic

POLICIES: dict[str, Policy] = {
    policy.name: policy for policy in (Semantic(), LeastRecentlyUsed(), Label(), Frequency(), Priority())
}

__all__ = ["POLICIES", "Candidate", "Policy", "PolicyName", "Question", "Signal", "policy_named", "score_of"]


def policy_named(name: str) -> Policy:
    """Raises BadInput, which lists the policies there are."""
    try:
        return POLICIES[name]
    except KeyError:
        raise BadInput(f"The memory policy {name[:32]!r} is unknown; there are {', '.join(POLICIES)}.") from None
