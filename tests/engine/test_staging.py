"""Repair windows that do not fit into one step ride over several; the request survives what happens meanwhile."""

from __future__ import annotations

import random
from pathlib import Path

from memos_vllm.activation.plan import Segment, SplicePlan, prompt_hash, sign
from tests.engine import child
from tests.engine.harness import SECRET, Engine, plan_for, prompt_of
from tests.engine.test_splice_plans import TOLERANCE, build, tokens

TOKEN_BYTES = 4 * 2 * 2 * 64 * 4
"""Of one token's K and V: 4 layers, 2 KV heads of 64, float32."""
BUDGET = 96
"""Tokens of a step; the windows of the plans below take some 400."""


def staged_requests(model: Path, memory_dir: Path) -> None:
    engine = Engine(model, memory_dir, max_model_len=1024, max_num_batched_tokens=BUDGET, max_num_seqs=8)
    scaffold, parts, rest = build(engine, (3, 40, [(0, 150), (3, 120), (0, 130)], 9))
    prompt, plan = prompt_of(scaffold, parts, rest), plan_for(scaffold, parts, "full")
    plain = engine.ask(prompt)

    def is_right() -> dict[str, object]:
        answer = engine.ask(prompt, plan)
        assert answer.tokens == plain.tokens and answer.distance(plain) <= TOLERANCE
        assert sum(answer.report[name] for name in ("cached", "spliced", "repaired", "computed")) == len(prompt)
        engine.check_integrity()
        return answer.report

    report = is_right()
    assert "fallback" not in report
    assert report["computed"] == len(prompt) - plan.cover, "nothing but the tail is prefilled plainly"

    # Others decode meanwhile, and are not disturbed.
    other = tokens(random.Random(1), 30)
    alone = engine.ask(other, tokens=30)
    decoding, staged = engine.ask_all([(other, None, None), (prompt, plan, None)], tokens=30)
    assert decoding.tokens == alone.tokens and staged.tokens[:4] == plain.tokens

    # Aborted between two of its steps: blocks and holds come back, and the next one is right.
    for steps in (1, 2, 3):
        core = engine.llm.llm_engine
        sampling = engine._sampling(sign(plan, SECRET), 4)
        request = {"prompt_token_ids": prompt, "cache_salt": engine.fresh_salt()}
        core.add_request("doomed", request, sampling)
        for _ in range(steps):
            core.step()
        assert engine.half.staged, "it was meant to be under way"
        core.abort_request(["doomed"])
        while core.has_unfinished_requests():
            core.step()
        is_right()

    # The RAM copy is lost under its hands: it starts anew, as a plain request.
    engine.worker.store._resident.clear()
    assert is_right()["fallback"] == "load-failed"
    engine.close()


def test_staged_requests(random_llama: Path, tmp_path: Path) -> None:
    child.run(staged_requests, random_llama, tmp_path)


def crowded_rows(model: Path, memory_dir: Path) -> None:
    """Two rows a step, and always somebody else waiting for one: staged windows get theirs all the same."""
    engine = Engine(model, memory_dir, max_model_len=1024, max_num_batched_tokens=BUDGET, max_num_seqs=2)
    scaffold, parts, rest = build(engine, (5, 40, [(0, 90), (0, 80)], 9))
    prompt, plan = prompt_of(scaffold, parts, rest), plan_for(scaffold, parts, "full")
    plain = engine.ask(prompt)
    rng = random.Random(2)
    crowd = [(tokens(rng, 30), None, None) for _ in range(12)]
    answers = engine.ask_all([*crowd[:3], (prompt, plan, None), *crowd[3:]], tokens=20)
    assert answers[3].tokens[:4] == plain.tokens and answers[3].distance(plain) <= TOLERANCE
    assert "fallback" not in answers[3].report and answers[3].report["repaired"] == 170
    engine.check_integrity()
    engine.close()


def test_staged_requests_get_rows_in_a_crowd(random_llama: Path, tmp_path: Path) -> None:
    child.run(crowded_rows, random_llama, tmp_path)


def compare_beside_a_large_request(model: Path, memory_dir: Path) -> None:
    """RAM for three cubes: a comparison that holds one must not keep a user's request from its three."""
    engine = Engine(model, memory_dir, ram_bytes=(40 + 3 * 100) * TOKEN_BYTES + 1000, max_model_len=1024)
    scaffold, parts, rest = build(engine, (6, 40, [(0, 100), (0, 100), (0, 100), (0, 100)], 9))
    compared, others = parts[0], parts[1:]
    plan = SplicePlan(
        compare=(Segment(compared.key or "", 60, 100),), prompt=prompt_hash([*scaffold.ids, *([7] * 20), *compared.ids])
    )
    prompt = prompt_of(scaffold, others, rest)
    plain = engine.ask(prompt)
    engine.forget_ram()
    both = engine.ask_all(
        [([*scaffold.ids, *([7] * 20), *compared.ids], plan, None), (prompt, plan_for(scaffold, others, "full"), None)]
    )
    assert both[1].tokens == plain.tokens and both[1].distance(plain) <= TOLERANCE
    assert "fallback" not in both[1].report
    engine.check_integrity()
    engine.close()


def test_a_comparison_does_not_block_users(random_llama: Path, tmp_path: Path) -> None:
    child.run(compare_beside_a_large_request, random_llama, tmp_path)
