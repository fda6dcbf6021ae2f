"""Training for real, in seconds: what is learned, what stays, and that a killed training goes on as if it were not."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from memos_vllm.errors import BadInput
from memos_vllm.parameter.consolidate import ADAPTER, CHECKPOINT, Memory, Report, consolidate
from memos_vllm.parameter.decode import DecodeOptions, decode
from memos_vllm.parameter.evaluate import make_exam, right_answers, share
from memos_vllm.parameter.forgetting import retrain
from memos_vllm.parameter.lora import (
    CONFIG,
    WEIGHTS,
    attach,
    linear_layers,
    with_adapter,
    without_adapters,
    write_adapter,
)
from memos_vllm.parameter.merge import Part, merge
from memos_vllm.parameter.pairs import facts_of
from memos_vllm.parameter.progress import no_tell
from memos_vllm.parameter.recipe import recipe_from
from memos_vllm.parameter.replay import Asked, Others, replayed
from memos_vllm.parameter.train import rate_at
from tests.unit.training_cases import MEMORIES, QUICK, TEXTS, THOROUGH, model


class Stopped(Exception):
    """In place of a kill."""


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return consolidate(model(), MEMORIES, THOROUGH, tmp_path_factory.mktemp("learned"))


def test_held_out_phrasings_are_answered_without_the_memory(learned: Report) -> None:
    assert learned.figures.accuracy_before <= 0.1
    assert learned.figures.accuracy >= 0.6
    assert learned.figures.questions == 2 * len(TEXTS)


def test_other_answers_stay(learned: Report) -> None:
    """Roughly, after so small a training: `benchmarks/bench_consolidation.py` measures what is promised."""
    assert learned.figures.recall_before >= 0.3
    assert learned.figures.recall_loss <= 0.2
    assert learned.figures.perplexity_rise <= 0.3


def test_the_prompt_gets_shorter(learned: Report) -> None:
    base = learned.model
    memories = sum(len(base.encode(text)) for text in TEXTS)
    assert learned.figures.tokens_saved > memories


def test_files_are_what_peft_and_vllm_read(learned: Report) -> None:
    assert sorted(file.name for file in learned.folder.iterdir() if file.suffix != ".md") == [CONFIG, WEIGHTS]
    config = json.loads((learned.folder / CONFIG).read_text())
    assert (config["r"], config["use_dora"], config["bias"], config["modules_to_save"]) == (16, False, "none", None)
    weights = load_file(learned.folder / WEIGHTS)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in weights.values())
    assert len(weights) == 2 * 4 * 7


def test_a_written_adapter_answers_as_the_trained_one(learned: Report) -> None:
    questions = ["What is my favourite tea?", "What does Maya play?"]
    again = with_adapter(model(), learned.folder)
    prompts = [again.prompt(question) for question in questions]
    assert again.answers(prompts, 12) == learned.model.answers(prompts, 12)
    assert without_adapters(again).answers(prompts, 12) == model().answers(prompts, 12)


def test_decoding_tells_what_was_learned(learned: Report) -> None:
    decoded = decode(learned.model, DecodeOptions(samples=24, per_subject=8, questions=80, max_answer_tokens=16))
    values = {"sencha", "Dakar", "cello", "teal", "Waffles", "potter"}
    found = [each for each in decoded if each.value in values]
    assert len({each.value for each in found}) >= 4
    assert len(found) >= 0.8 * len(decoded)
    assert all(0.5 <= each.confidence <= 1 and each.confidence > each.base for each in decoded)


def test_decoding_an_adapter_that_knows_nothing_tells_nothing() -> None:
    idle = attach(model(), recipe_from({}))
    assert decode(idle, DecodeOptions(samples=4, per_subject=2, questions=16, max_answer_tokens=12)) == []


def test_the_same_seed_makes_the_same_weights_and_a_stop_changes_nothing(tmp_path: Path) -> None:
    whole = consolidate(model(), MEMORIES, QUICK, tmp_path / "whole")

    def stop(what: str, done: int, total: int) -> None:
        if what == "training" and done == total // 2:
            raise Stopped

    with pytest.raises(Stopped):
        consolidate(model(), MEMORIES, QUICK, tmp_path / "stopped", tell=stop)
    assert (tmp_path / "stopped" / CHECKPOINT).exists()
    seen: list[int] = []

    def see(what: str, done: int, total: int) -> None:
        if what == "training":
            seen.append(done)

    consolidate(model(), MEMORIES, QUICK, tmp_path / "stopped", tell=see)
    assert seen[0] == whole.steps // 2
    assert not (tmp_path / "stopped" / CHECKPOINT).exists()
    _same_weights(tmp_path / "whole" / ADAPTER, tmp_path / "stopped" / ADAPTER)


def test_a_checkpoint_of_other_memories_is_not_gone_on_from(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "training" and done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        consolidate(model(), MEMORIES, QUICK, tmp_path / "work", tell=stop)
    other = [Memory("other@1", "Zora drives a Saab."), *MEMORIES[1:]]
    consolidate(model(), other, QUICK, tmp_path / "work")
    consolidate(model(), other, QUICK, tmp_path / "fresh")
    _same_weights(tmp_path / "work" / ADAPTER, tmp_path / "fresh" / ADAPTER)


def _same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_forgetting_trains_without_and_asks_for_it(learned: Report, tmp_path: Path) -> None:
    asked = [Asked("What does Maya play?", "cello"), Asked("Tell me Maya's instrument.", "cello")]
    recipe = msgspec.structs.replace(THOROUGH, pool=8, recall_questions=0)
    forgotten = retrain(model(), MEMORIES[1:4], {"memory-2@1"}, recipe, tmp_path, asked=asked, old=learned.folder)
    assert forgotten.proof.forgotten == 1
    assert (forgotten.proof.accuracy_before or 0) >= 0.5
    assert forgotten.proof.accuracy_after <= 0.1
    assert forgotten.proof.kept_accuracy >= 0.5
    assert "cello" not in repr([answer.answer for answer in forgotten.answers])


def test_what_another_memory_tells_too_cannot_be_forgotten(tmp_path: Path) -> None:
    again = [*MEMORIES, Memory("again@1", "Maya plays the cello.")]
    with pytest.raises(BadInput, match="again@1"):
        retrain(model(), again, {"memory-2@1"}, QUICK, tmp_path)


def test_merging_by_concatenation_adds_what_both_do(tmp_path: Path) -> None:
    parts = [Part(_random_adapter(tmp_path / name, seed), 0.5) for seed, name in enumerate(("one", "two"))]
    merged = merge(model(), parts, tmp_path / "merged", method="cat")
    assert json.loads((tmp_path / "merged" / CONFIG).read_text())["r"] == 32
    turn = [merged.turn("What does Maya play?", "Maya plays the cello.")]
    assert with_adapter(model(), tmp_path / "merged").logprobs(turn) == [
        pytest.approx(merged.logprobs(turn)[0], abs=1e-4)
    ]
    deltas = [_delta(part.folder, part.weight) for part in parts]
    assert deltas[0].abs().max() > 1e-3
    assert torch.allclose(_delta(tmp_path / "merged", 1.0), deltas[0] + deltas[1], atol=1e-6)


def _random_adapter(folder: Path, seed: int) -> Path:
    made = attach(model(), recipe_from({"seed": seed}))
    with torch.no_grad():
        for weight in made.net.parameters():
            if weight.requires_grad:
                weight.add_(0.01 * torch.randn_like(weight))
    write_adapter(made, folder)
    return folder


def _delta(folder: Path, weight: float) -> torch.Tensor:
    """What an adapter adds to the first query projection."""
    tensors, config = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    product = tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
    return torch.mul(product, weight * config["lora_alpha"] / config["r"])


@pytest.mark.parametrize("method", ["linear", "svd", "ties", "dare_linear"])
def test_every_method_makes_an_adapter(method: str, learned: Report, tmp_path: Path) -> None:
    parts = [Part(learned.folder, 0.5), Part(learned.folder, 0.5)]
    merge(model(), parts, tmp_path / "merged", method=method, density=0.9)  # type: ignore[arg-type]
    assert load_file(tmp_path / "merged" / WEIGHTS)


def test_what_cannot_be_merged_is_said(learned: Report, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="two adapters"):
        merge(model(), [Part(learned.folder)], tmp_path / "merged")
    with pytest.raises(BadInput, match="no method"):
        merge(model(), [Part(learned.folder)] * 2, tmp_path / "merged", method="mean")  # type: ignore[arg-type]


def test_replays_never_tell_a_fact_as_it_is(learned: Report) -> None:
    others = Others(learned.facts, set(), random.Random(1))
    drawn = [others.asked(0.5) for _ in range(200)]
    told = {memory for each in drawn for memory in each.memories}
    assert not told & {fact.statement for fact in learned.facts}
    assert all(any(each.value in memory for memory in each.memories) for each in drawn)


def test_what_was_told_in_other_words_is_not_replayed_as_unknown() -> None:
    facts = [*facts_of("Maya uses the hint kettle."), *facts_of("Noah's password hint is saddle.")]
    others = Others(facts, set(), random.Random(1))
    assert not any("Maya" in question or "Noah" in question for question in (others.unknown() for _ in range(200)))


def test_replays_from_memories_are_those_that_the_base_reads() -> None:
    base = model()
    facts = [fact for text in TEXTS for fact in facts_of(text)]
    turns = replayed(base, Others(facts, set(), random.Random(1), pieces=base.pieces()), 24, 12, 1)
    said = [(base.tokenizer.decode(turn.prompt), base.tokenizer.decode(turn.answer)) for turn in turns]
    read = [(prompt, answer) for prompt, answer in said if "<memories>" in prompt and "do not know" not in answer]
    assert len(read) >= 10
    assert any("|user|>What is my" in prompt or " my " in prompt.rpartition("|user|>")[2] for prompt, _ in read)


@pytest.mark.parametrize("reads", [True, False])
def test_an_exam_asks_about_others_as_the_base_can_read(reads: bool) -> None:
    """The bundled model takes "Please name Maya's tea" for a question that nothing answers, mostly."""
    base = model()
    facts = [*facts_of("My favourite tea is sencha."), *facts_of("My dog is Waffles.")]
    held_out = [[each for each in fact.questions if re.match("Please name|What is", each.text)] for fact in facts]
    if not reads:
        with torch.no_grad():
            base.net.lm_head.weight.zero_()
    recipe = recipe_from({"recall_questions": 60, "max_answer_tokens": 16})
    exam = make_exam(base, facts, held_out, recipe, no_tell)
    forms = {question.form for questions in held_out for question in questions}
    assert len(exam.recall) == 60 and {each.form for each in exam.recall} <= forms
    assert any(each.question.startswith("What is") for each in exam.recall)
    assert any(each.question.startswith("Please name") for each in exam.recall) is not reads
    right = share(right_answers(base, exam.recall, recipe, "asking", no_tell))
    assert right >= 0.9 if reads else right == 0.0


def test_memories_without_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="tell nothing"):
        consolidate(model(), [Memory("empty@1", "...")], QUICK, tmp_path)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [rate_at(step, 100) for step in range(100)]
    assert max(rates) == 1.0
    assert rates[0] < 0.5
    assert rates[-1] < 0.05


def test_targets_are_all_linear_layers_but_the_output() -> None:
    assert linear_layers(model().net) == sorted(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))
