"""Every architecture and rotary embedding that may be spliced, with random weights: plans and moved keys."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from memos_kernels.splice import rotate

from memos_vllm.activation.files import KVLabel, read_kv
from memos_vllm.activation.plan import prompt_hash
from memos_vllm.engine.rope import model_rotation
from tests.engine import child
from tests.engine.harness import VOCAB, Engine, plan_for, prompt_of
from tests.engine.test_splice_plans import TOLERANCE, tokens

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
HEAD_DIM = 32
SCALED = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("LlamaConfig", {"rope_parameters": {**SCALED, "rope_type": "linear"}}),
    "llama3": (
        "LlamaConfig",
        {"rope_parameters": {**SCALED, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    ),
    "yarn": ("LlamaConfig", {"rope_parameters": {**SCALED, "rope_type": "yarn"}}),
    "mistral": ("MistralConfig", {"head_dim": HEAD_DIM, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": HEAD_DIM}),
    "stablelm-partial": ("StableLmConfig", {}),
    "glm4-interleaved": ("Glm4Config", {"head_dim": HEAD_DIM, "eos_token_id": 1}),
}


def make_model(name: str, folder: Path) -> Path:
    import transformers

    kind, extra = CONFIGS[name]
    torch.manual_seed(1)
    config = getattr(transformers, kind)(**(SMALL | extra))
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def splice_and_compare(name: str, folder: Path) -> None:
    model = make_model(name, folder / "model")
    engine = Engine(model, folder / "memory", max_model_len=1024)
    rng = random.Random(name)
    scaffold = engine.scaffold(tokens(rng, 40))
    cubes = [engine.capture(scaffold, tokens(rng, length)) for length in (90, 33, 150)]
    for order in ([0, 1, 2], [2, 0, 1]):
        parts, rest = [cubes[index] for index in order], tokens(rng, 12)
        prompt, plan = prompt_of(scaffold, parts, rest), plan_for(scaffold, parts, "full")
        plain = engine.ask(prompt)
        full = engine.ask(prompt, plan)
        assert full.tokens == plain.tokens and full.distance(plain) <= TOLERANCE
        assert engine.ask(prompt, plan_for(scaffold, parts, "none")).distance(plain) > TOLERANCE
    # In the first layer K/V depend on token and position alone: captured elsewhere, they must be the moved ones.
    far = engine.scaffold(tokens(rng, 700))
    moved = engine.capture(far, cubes[0].ids)
    config = engine.core.vllm_config.model_config.hf_text_config
    rotation = model_rotation(config, engine.core.vllm_config.model_config.get_head_size())
    one, other = (read_kv(engine.path(part), label(engine, part.key, part.ids)) for part in (cubes[0], moved))
    turned = rotate(one.k[:1], other.origin - one.origin, rotation)
    assert other.origin - one.origin == 660
    assert (one.k[:1] - other.k[:1]).abs().max() > 0.05, "the move was meant to change the keys"
    torch.testing.assert_close(turned, other.k[:1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(one.v[:1], other.v[:1], atol=1e-5, rtol=1e-5)
    engine.close()


def label(engine: Engine, key: str | None, ids: Any) -> KVLabel:
    return KVLabel(key or "", engine.identity.digest(), prompt_hash(ids))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_is_spliced(name: str, tmp_path: Path) -> None:
    child.run(splice_and_compare, name, tmp_path)
