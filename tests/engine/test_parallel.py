"""Two tensor-parallel ranks, each with its shard of every cube, and requests with LoRA adapters."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from memos_vllm.activation.compose import Part, capture_plan
from memos_vllm.activation.identity import kv_key, with_adapter
from memos_vllm.activation.plan import SplicePlan
from tests.engine import child
from tests.engine.harness import Engine, plan_for, prompt_of, wait_for
from tests.engine.test_splice_plans import TOLERANCE, tokens

ORDERS = ([0, 1, 2], [2, 0, 1], [1, 2])
RANK = 4


def prompts(engine: Engine, rng: random.Random) -> tuple[Part, list[Part]]:
    scaffold = engine.scaffold(tokens(rng, 40))
    return scaffold, [engine.capture(scaffold, tokens(rng, length)) for length in (90, 33, 150)]


def write_answers(model: Path, memory_dir: Path, out: Path, world: int) -> None:
    """Write what an engine with `world` ranks answers to a fixed set of plans."""
    engine = Engine(model, memory_dir, tensor_parallel_size=world)
    rng = random.Random(4)
    scaffold, cubes = prompts(engine, rng)
    told = []
    for order in ORDERS:
        parts, rest = [cubes[index] for index in order], tokens(rng, 12)
        prompt = prompt_of(scaffold, parts, rest)
        plain = engine.ask(prompt)
        full = engine.ask(prompt, plan_for(scaffold, parts, "full"))
        assert full.tokens == plain.tokens and full.distance(plain) <= TOLERANCE
        for policy in ("none", "head:16"):
            engine.forget_ram()
            cold = engine.ask(prompt, plan_for(scaffold, parts, policy))
            warm = engine.ask(prompt, plan_for(scaffold, parts, policy))
            assert cold.report["disk"] > 0 and warm.report["ram"] > 0 and "fallback" not in cold.report
            assert cold.tokens == warm.tokens and cold.distance(warm) <= TOLERANCE
            told.append((cold.tokens, cold.logprobs))
    engine.half.check_integrity()
    out.write_text(json.dumps(told))
    engine.close()


def test_two_ranks_answer_as_one(random_llama: Path, tmp_path: Path) -> None:
    told = []
    for world in (1, 2):
        out = tmp_path / f"{world}.json"
        cores = sorted(os.sched_getaffinity(0))
        binding = "|".join(str(cores[rank % len(cores)]) for rank in range(world))
        environ = {"VLLM_CPU_OMP_THREADS_BIND": binding, "OMP_NUM_THREADS": "1"}
        child.run(write_answers, random_llama, tmp_path / "memory", out, world, environ=environ)
        told.append(json.loads(out.read_text()))
    assert len(list((tmp_path / "memory").rglob("*.0of2.safetensors"))) == 4
    assert len(list((tmp_path / "memory").rglob("*.1of2.safetensors"))) == 4
    for (one, one_logprobs), (two, two_logprobs) in zip(*told, strict=True):
        assert one == two
        shared = one_logprobs.keys() & two_logprobs.keys()
        assert len(shared) >= 15
        assert max(abs(one_logprobs[token] - two_logprobs[token]) for token in shared) <= TOLERANCE


def make_adapter(model: Path, out: Path, seed: int) -> Path:
    """A LoRA adapter with random weights, as PEFT writes it."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((model / "config.json").read_text())
    hidden, kv_dim = config["hidden_size"], config["num_key_value_heads"] * config["head_dim"]
    torch.manual_seed(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, width in (("q_proj", hidden), ("k_proj", kv_dim), ("v_proj", kv_dim)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{prefix}.lora_A.weight"] = torch.randn(RANK, hidden) * 0.3
            weights[f"{prefix}.lora_B.weight"] = torch.randn(width, RANK) * 0.3
    out.mkdir()
    save_file(weights, out / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    (out / "adapter_config.json").write_text(json.dumps(settings))
    return out


def adapters(model: Path, folder: Path) -> None:
    """Each adapter has its own K/V of the same cube: full repair equals the plain prefill with that adapter."""
    from vllm.lora.request import LoRARequest

    engine = Engine(
        model, folder / "memory", enable_lora=True, max_loras=2, max_lora_rank=8, max_num_batched_tokens=128
    )
    rng = random.Random(6)
    scaffold_ids, texts, rest = tokens(rng, 40), [tokens(rng, 90), tokens(rng, 60)], tokens(rng, 9)
    loras = [
        LoRARequest(name, number, str(make_adapter(model, folder / name, number)))
        for number, name in enumerate(("a", "b"), 1)
    ]
    plans: list[tuple[list[int], SplicePlan, LoRARequest | None]] = []
    for lora in (None, *loras):
        identity = with_adapter(engine.identity, lora.lora_name, lora.lora_path) if lora else engine.identity
        scaffold = Part(scaffold_ids, kv_key(identity, "", (), scaffold_ids))
        parts = [Part(ids, kv_key(identity, "maya", scaffold_ids, ids)) for ids in texts]
        for part in parts:
            engine.ask([*scaffold.ids, *part.ids], capture_plan(scaffold, part), tokens=1, lora=lora)
            wait_for(engine.path(part))
        plans.append((prompt_of(scaffold, parts[::-1], rest), plan_for(scaffold, parts[::-1], "full"), lora))
    assert len({part.key for _, plan, _ in plans for part in plan.segments}) == 9
    for cold in (False, True):
        if cold:
            engine.forget_ram()
        # The base model alone: beside adapters vLLM's CPU backend answers it as one of them, with a plan or without.
        answers = engine.ask_all([plans[0]])
        answers += engine.ask_all([(prompt, plan, None) for prompt, plan, _ in plans[1:]], loras=loras)
        for (prompt, _, lora), answer in zip(plans, answers, strict=True):
            plain = engine.ask(prompt, lora=lora)
            assert "fallback" not in answer.report
            assert answer.tokens == plain.tokens and answer.distance(plain) <= TOLERANCE
            assert answer.report["repaired"] == 150
    prompt, plan, _ = plans[0]
    engine.forget_ram()
    foreign = engine.ask(prompt, plan, lora=loras[0])
    assert foreign.report["fallback"] == "load-failed", "K/V of the base model must not serve an adapter"
    plain = engine.ask(prompt, lora=loras[0])
    assert foreign.tokens == plain.tokens and foreign.distance(plain) <= TOLERANCE
    engine.check_integrity()
    engine.close()


def test_adapters_have_their_own_kv(random_llama: Path, tmp_path: Path) -> None:
    child.run(adapters, random_llama, tmp_path)
