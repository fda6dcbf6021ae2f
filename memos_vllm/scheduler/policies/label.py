"""What carries the labels that the question names: its tags, and its kind where kinds are asked for."""

from memos_vllm.scheduler.policies.base import TIE, Candidate, PolicyName, Question, Signal
from memos_vllm.vault.words import words_of


class Label:
    name: PolicyName = "label"
    relevance = TIE
    needs_uses = False

    def signal(self, candidate: Candidate, question: Question) -> Signal:
        """matches / (1 + matches). A tag matches when the question has all of its words."""
        header = candidate.cube.header
        found = [tag for tag in header.tags if _named(tag, question)]
        found += [header.semantic_type] if header.semantic_type in question.types else []
        why = f"labelled {', '.join(found)}" if found else "no label that the question names"
        return Signal(len(found) / (1 + len(found)), why)


def _named(tag: str, question: Question) -> bool:
    words = set(words_of(tag))
    return bool(words) and words <= set(question.words)
