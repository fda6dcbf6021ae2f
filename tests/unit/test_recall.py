"""The recall that search must keep, on LoCoMo where it is there: its licence keeps it out of this project."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from memos_vllm.bench.retrieval_data import Conversation, read_conversations, sessions_of
from memos_vllm.bench.retrieval_stats import Asked
from memos_vllm.cube import Header, MemCube, Plaintext, completed
from memos_vllm.retrieval import MemOperator
from memos_vllm.vault import Vault

LOCOMO = Path(__file__).parents[3] / "shared" / "data" / "locomo" / "locomo_dev.json"
FLOOR = 0.80
"""Below what was measured (0.82), above the aim (0.74)."""

pytestmark = pytest.mark.skipif(not LOCOMO.exists(), reason="LoCoMo is not there")


def test_ten_turns_hold_most_evidence_without_a_model(tmp_path: Path) -> None:
    with Vault.open(tmp_path / "memory") as vault:
        operator = MemOperator(vault)
        shares = [
            share for conversation in read_conversations(LOCOMO) for share in _recall(vault, operator, conversation)
        ]
    assert len(shares) == 997
    assert fmean(shares) > FLOOR


def _recall(vault: Vault, operator: MemOperator, conversation: Conversation) -> list[float]:
    """R@10 of every question, turns stored as `bench retrieval` sends them."""
    placed: dict[str, str] = {}
    for session in sessions_of(conversation.turns, 1):
        cubes = [
            completed(
                MemCube(
                    Header(
                        owner=conversation.name,
                        source=f"session-{chunk.turns[0].session}",
                        metadata={"speaker": chunk.turns[0].speaker},
                        happened=chunk.turns[0].at,
                    ),
                    Plaintext(chunk.text),
                )
            )
            for chunk in session
        ]
        stored = vault.add(cubes, actor=conversation.name)
        placed.update((chunk.turns[0].id, cube.id) for chunk, cube in zip(session, stored, strict=True))
    found = []
    for number, question in enumerate(conversation.questions):
        hits = operator.search(conversation.name, question.text, top_k=10)
        place = {hit.cube.id: rank for rank, hit in enumerate(hits, 1)}
        ranks = tuple(place.get(placed[turn]) for turn in question.evidence)
        found.append(Asked("full", 1, conversation.name, question.category, number, ranks, 0.0).recall(10))
    return found
