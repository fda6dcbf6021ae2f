"""Which memories an adapter answers for."""

from __future__ import annotations

from pathlib import Path

from memos_vllm.parameter.consolidate import Memory, Report, facts_in
from memos_vllm.parameter.evaluate import Answered, Figures
from memos_vllm.parameter.learned import LEARNED, PROPOSED, is_proposed, learned_in, made_of, sources_of
from memos_vllm.vault import Vault
from tests.unit.adapter_cases import add, registry_of

MEMORIES = [
    Memory("a@1", "Maya plays the cello."),
    Memory("b@1", "Noah works as a potter. Noah has a dog called Waffles."),
    Memory("c@1", "My favourite tea is sencha."),
    Memory("d@2", "My favourite tea is oolong."),
    Memory("e@1", "Around, over and under the bridge!"),
]
FIGURES = Figures(
    facts=1, questions=1, accuracy=1, accuracy_before=0, recall_before=1, recall_after=1,
    perplexity_before=2, perplexity_after=2, prompt_tokens_before=9, prompt_tokens_after=3,
)  # fmt: skip


def learned(*wrong: str, unasked: str = "") -> str:
    """What is learned when the questions about some values were answered wrong, and one's never asked."""
    facts = facts_in(MEMORIES)
    answers = [
        Answered(question.text, fact.value, "", fact.value not in wrong)
        for fact in facts
        for question in fact.questions[:2]
        if fact.value != unasked
    ]
    report = Report(
        model=None,  # type: ignore[arg-type]
        folder=Path(),
        facts=tuple(facts),
        figures=FIGURES,
        answers=tuple(answers),
        problems=(),
        steps=1,
    )
    return learned_in(report, MEMORIES)


def test_a_memory_is_learned_when_all_of_it_was_read_and_answered() -> None:
    assert learned() == "11010", "c is told otherwise later, and the rules do not read e"
    values = [fact.value for fact in facts_in(MEMORIES[:2])]
    assert learned(values[0]) == "01010"
    assert learned(values[2]) == "10010", "one sentence of two"
    assert learned(unasked=values[1]) == "10010"


def test_a_version_tells_what_it_answers_for(tmp_path: Path) -> None:
    with Vault.open(tmp_path / "memory") as vault:
        registry = registry_of(vault)
        parents = [f"{number:032x}@1" for number in range(3)]
        plain = add(registry, tmp_path, "plain", parents=parents)
        add(registry, tmp_path, "made", seed=1)
        made = add(registry, tmp_path, "made", parents=parents, metadata={LEARNED: "101", PROPOSED: True})
    assert sources_of(plain) == frozenset() and not is_proposed(plain)
    assert sources_of(made) == {parents[0], parents[2]} and is_proposed(made)
    assert made_of(made) == tuple(parents) != made.parents, "these name the version before, too"
