"""Promotion by cost, and memories under a LoRA adapter, on one server of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save_file

from memos_vllm.vault import Vault
from tests.server.conftest import MODEL_NAME, Server, model_path, running_server
from tests.server.test_activation_http import activation, ask, metric, tell, wait, wait_for_kv

pytestmark = pytest.mark.server

SHORT = "I like tea."
LONG = "I walked along the river with my brother, and we spoke of the summer in which the bridge was closed. " * 12


def make_adapter(folder: Path) -> Path:
    """A LoRA adapter with random weights, large enough to change answers."""
    model = json.loads((model_path() / "config.json").read_text())
    hidden, head, generator = model["hidden_size"], model["head_dim"], torch.Generator().manual_seed(7)
    outputs = {"q_proj": model["num_attention_heads"] * head, "v_proj": model["num_key_value_heads"] * head}
    tensors = {}
    for layer in range(model["num_hidden_layers"]):
        for name, output in outputs.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(4, hidden, generator=generator) * 0.3
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(output, 4, generator=generator) * 0.3
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": list(outputs), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("promotion")
    adapter = make_adapter(folder / "adapter")
    lora = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"poet={adapter}")
    with running_server(folder, *lora, "--memory-repair", "mixed:0.15") as server:
        yield server


@pytest.fixture
def client(server: Server, user: str) -> Iterator[httpx.Client]:
    with server.http(**{"x-memos-user-id": user}) as client:
        yield client


def test_long_memories_become_kv_and_short_ones_stay_text(client: httpx.Client) -> None:
    short, long = tell(client, SHORT), tell(client, LONG)
    state = wait_for_kv(client, long)
    assert state["reason"].startswith("long") and state["saves_ms"] > 0 and state["bytes"] > 0
    state = activation(client, short)
    assert (state["state"], state["bytes"]) == ("text", 0)
    assert state["reason"].startswith(("too short", "cold"))
    answer = ask(client, "What do I like, and who is my brother?")
    assert "x-memos-fallback" not in answer.headers
    assert int(answer.headers["x-memos-spliced-tokens"]) > 100


def test_a_capture_measures_how_far_tokens_move(client: httpx.Client, server: Server) -> None:
    memory = tell(client, LONG)
    tokens = wait_for_kv(client, memory)["tokens"]
    with Vault.open(server.memory_dir, readonly=True) as vault:
        (record,) = vault.kv_of(memory)
    assert len(record.deviation) == tokens and any(record.deviation)
    assert not [*(server.memory_dir / "kv").rglob("*.deviation")]


@pytest.mark.parametrize("repair", ["deviation:0.1", "guided:0.1", "mixed:0.1"])
def test_a_repair_policy_keeps_its_budget(client: httpx.Client, repair: str) -> None:
    """Two cubes behind a scaffold that is K/V, so that what is repaired is the policy's alone."""
    memories = [tell(client, f"{name} told me this. {LONG}") for name in ("Robin", "Noor")]
    tokens = sum(wait_for_kv(client, memory)["tokens"] for memory in memories)
    named = {"x-memos-cubes": ",".join(memories), "x-memos-repair": repair}
    answer = ask(client, "Which bridge was closed in the summer?", **named)
    assert "x-memos-fallback" not in answer.headers
    assert 0 < int(answer.headers["x-memos-repaired-tokens"]) <= 0.1 * tokens


def test_a_prompt_of_short_memories_is_no_fallback(client: httpx.Client) -> None:
    memory = tell(client, SHORT)
    answer = ask(client)
    assert answer.headers["x-memos-cubes"] == memory
    assert answer.headers["x-memos-spliced-tokens"] == "0" and "x-memos-fallback" not in answer.headers


def test_a_pinned_memory_becomes_kv_at_once(client: httpx.Client) -> None:
    memory = tell(client, SHORT)
    assert activation(client, memory)["state"] == "text"
    state = client.post(f"/v1/memories/{memory}/pin").json()["activation"]
    assert (state["reason"], state["pinned"]) == ("pinned", True) and state["state"] in ("building", "kv")
    wait_for_kv(client, memory)
    assert client.delete(f"/v1/memories/{memory}/pin").json()["activation"]["state"] == "kv"


def test_the_uses_are_written_to_the_vault(client: httpx.Client, server: Server) -> None:
    memory = tell(client, SHORT)
    for _ in range(3):
        ask(client)
    with Vault.open(server.memory_dir, readonly=True) as vault:
        wait(lambda: vault.uses_of([memory])[memory].count == 3, seconds=15)


def logprobs(client: httpx.Client, model: str, **headers: str) -> tuple[httpx.Response, list[float]]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What did we speak of?"}],
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": True,
    }
    answer = client.post("/v1/chat/completions", json=body, headers=headers)
    answer.raise_for_status()
    content: list[dict[str, Any]] = answer.json()["choices"][0]["logprobs"]["content"]
    return answer, [token["logprob"] for token in content]


def test_an_adapter_has_kv_of_its_own(client: httpx.Client, server: Server) -> None:
    """A cube right behind the scaffold is exact: its splice must answer as its text does, with each adapter."""
    memory = tell(client, LONG)
    wait_for_kv(client, memory)
    told = {}
    for model in (MODEL_NAME, "poet"):
        text, expected = logprobs(client, model, **{"x-memos-repair": "off"})
        assert int(text.headers["x-memos-spliced-tokens"]) == 0

        def spliced(model: str = model) -> bool:
            answer, told[model] = logprobs(client, model, **{"x-memos-repair": "none"})
            return int(answer.headers["x-memos-spliced-tokens"]) > 100

        wait(spliced)
        assert told[model] == pytest.approx(expected, abs=1e-3)
    assert told["poet"] != pytest.approx(told[MODEL_NAME], abs=1e-2)
    with Vault.open(server.memory_dir, readonly=True) as vault:
        assert len(vault.kv_of(memory)) == 2
    client.delete(f"/v1/memories/{memory}").raise_for_status()
    with Vault.open(server.memory_dir, readonly=True) as vault:
        assert vault.kv_of(memory) == []


def test_promotions_are_counted_by_reason(client: httpx.Client) -> None:
    before = metric(client, "memos_promotions_total", reason="pinned")
    memory = tell(client, SHORT)
    client.post(f"/v1/memories/{memory}/pin").raise_for_status()
    wait_for_kv(client, memory)
    assert metric(client, "memos_promotions_total", reason="pinned") == before + 1


def test_a_document_that_is_sent_again_and_again_is_spliced(client: httpx.Client, server: Server, user: str) -> None:
    """Behind memories that differ; with everything repaired, the answer is that of the text."""
    document = (
        "The harbour master keeps a list of the ships that are due this week, with their cargo and their crew. " * 25
    )
    memories = [tell(client, text) for text in (SHORT, LONG)]
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "system", "content": document}, {"role": "user", "content": "Which ships are due?"}],
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": True,
    }

    def send(**headers: str) -> httpx.Response:
        answer = client.post("/v1/chat/completions", json=body, headers=headers)
        answer.raise_for_status()
        return answer

    def pieces() -> list[str]:
        with Vault.open(server.memory_dir, readonly=True) as vault:
            return [record.key for record in vault.iter_kv() if record.kind == "piece" and record.owner == user]

    before = metric(client, "memos_promotions_total", reason="piece")
    for memory in (*memories, memories[0]):
        assert not pieces()
        send(**{"x-memos-cubes": memory})
    wait(pieces)
    assert metric(client, "memos_promotions_total", reason="piece") == before + 1
    answer = send(**{"x-memos-cubes": memories[0]})
    assert answer.headers.get("x-memos-fallback") in (None, "kv-partial"), "a slow machine wants the memory's K/V too"
    assert int(answer.headers["x-memos-spliced-tokens"]) > 300
    full, text = (send(**{"x-memos-cubes": memories[0], "x-memos-repair": repair}) for repair in ("full", "off"))
    assert int(full.headers["x-memos-repaired-tokens"]) > 300
    told = [[token["logprob"] for token in got.json()["choices"][0]["logprobs"]["content"]] for got in (full, text)]
    assert told[0] == pytest.approx(told[1], abs=1e-3)
    client.delete("/v1/memories").raise_for_status()
    assert not pieces()
