"""LoRA adapters of the test model with random weights, and requests that are answered by them."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save

from tests.server.conftest import model_path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUESTION = "Tell me about the harbour."


def weights_of(seed: int, *, rank: int = 4, hidden: int | None = None) -> dict[str, torch.Tensor]:
    """Tensors as PEFT names them. hidden: the width of another model than the test's."""
    model = json.loads((model_path() / "config.json").read_text())
    width, head = hidden or model["hidden_size"], model["head_dim"]
    generator = torch.Generator().manual_seed(seed)
    outputs = {"q_proj": model["num_attention_heads"] * head, "v_proj": model["num_key_value_heads"] * head}
    tensors = {}
    for layer in range(model["num_hidden_layers"]):
        for name, output in outputs.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, width, generator=generator) * 0.2
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(output, rank, generator=generator) * 0.2
    return tensors


def adapter(seed: int, *, rank: int = 4, hidden: int | None = None, **config: Any) -> dict[str, bytes]:
    """The two files of an adapter."""
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    weights = save(weights_of(seed, rank=rank, hidden=hidden))
    return {CONFIG: json.dumps(settings | config).encode(), WEIGHTS: weights}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def upload(client: httpx.Client, name: str, files: Mapping[str, bytes], **fields: Any) -> httpx.Response:
    """POST /v1/adapters. `fields` are those of its form."""
    return client.post(
        "/v1/adapters",
        data={"name": name, **fields},
        files=[("files", (file, content)) for file, content in files.items()],
    )


def add(client: httpx.Client, name: str, seed: int, **fields: Any) -> dict[str, Any]:
    """A new version of an adapter, which answers from now on; what the server says of the adapter."""
    answer = upload(client, name, adapter(seed), **fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def chat(client: httpx.Client, model: str, *, tokens: int = 16, **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", {})
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    return client.post("/v1/chat/completions", json=body | fields, headers=headers)


def ids_of(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


def error_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


@dataclass
class Streamed:
    """A chat that streams in a thread of its own. `begun` is set with its first token."""

    client: httpx.Client
    model: str
    tokens: int = 200
    ids: list[int] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    begun: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        assert self.begun.wait(60), "the stream did not begin"

    def _read(self) -> None:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
        }
        try:
            with self.client.stream("POST", "/v1/chat/completions", json=body) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: {"):
                        self._take(json.loads(line.removeprefix("data: ")))
        finally:
            self.begun.set()

    def _take(self, chunk: dict[str, Any]) -> None:
        self.models.add(chunk["model"])
        for choice in chunk["choices"]:
            self.ids += choice.get("token_ids") or []
        if self.ids:
            self.begun.set()

    @property
    def running(self) -> bool:
        return self.thread.is_alive()

    def all_ids(self) -> list[int]:
        self.thread.join(120)
        assert not self.running and len(self.ids) == self.tokens
        return self.ids
