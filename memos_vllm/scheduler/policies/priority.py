"""By the priority that the owner gave: pinned, high, mid, low."""

from memos_vllm.cube import Priority as Level
from memos_vllm.scheduler.policies.base import TIE, Candidate, PolicyName, Question, Signal

LEVELS: dict[Level, float] = {"low": 0.0, "mid": 1 / 3, "high": 2 / 3, "pinned": 1.0}


class Priority:
    name: PolicyName = "priority"
    relevance = TIE
    needs_uses = False

    def signal(self, candidate: Candidate, question: Question) -> Signal:
        level = candidate.cube.header.priority
        return Signal(LEVELS[level], f"priority {level}")
