"""By relevance alone: what the search ranks first."""

from memos_vllm.scheduler.policies.base import Candidate, PolicyName, Question, Signal


class Semantic:
    name: PolicyName = "semantic"
    relevance = 1.0
    needs_uses = False

    def signal(self, candidate: Candidate, question: Question) -> Signal:
        return Signal(candidate.relevance, f"{candidate.relevance:.2f} of the best match")
