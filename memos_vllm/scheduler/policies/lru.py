"""What was used or written last comes first; the least recently used is left out."""

from memos_vllm.scheduler.clock import DAY, seconds_of
from memos_vllm.scheduler.policies.base import TIE, Candidate, PolicyName, Question, Signal


class LeastRecentlyUsed:
    name: PolicyName = "lru"
    relevance = TIE
    needs_uses = True

    def signal(self, candidate: Candidate, question: Question) -> Signal:
        """1 / (1 + days since): halves after a day, and still tells months from years."""
        written, used = seconds_of(candidate.cube.header.updated), candidate.uses.at
        days = max(question.now - max(written, used), 0.0) / DAY
        return Signal(1 / (1 + days), f"{'used' if used >= written else 'written'} {days:.1f} days ago")
