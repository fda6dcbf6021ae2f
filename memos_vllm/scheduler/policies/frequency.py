"""What was used often lately comes first. Each use counts half after `vault.records.USE_HALF_LIFE`."""

from memos_vllm.scheduler.policies.base import TIE, Candidate, PolicyName, Question, Signal


class Frequency:
    name: PolicyName = "frequency"
    relevance = TIE
    needs_uses = True

    def signal(self, candidate: Candidate, question: Question) -> Signal:
        """heat / (1 + heat), the heat being the decayed number of uses."""
        heat = candidate.uses.heat_at(question.now)
        return Signal(heat / (1 + heat), f"{heat:.1f} uses lately, {candidate.uses.count} in all")
