"""Made LoRA adapters: random weights, strong enough that every one of them answers differently."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from memos_vllm.parameter.base_model import BaseModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
STRENGTH = 4.0
"""What an adapter adds to a layer's output, as a multiple of the layer's input (root mean squares): a few times what
usual weights make of it, so that no answer stays as it is.
"""


@dataclass(frozen=True)
class MadeAdapter:
    """A PEFT folder. user: whose it is."""

    user: str
    folder: Path

    @property
    def files(self) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}

    @property
    def bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in (CONFIG, WEIGHTS))


def make_adapter(
    user: str, folder: Path, base: BaseModel, *, modules: Sequence[str], rank: int, seed: int, layers: int | None = None
) -> MadeAdapter:
    """A new adapter, written as PEFT writes one; the same for the same seed. layers: how many layers, all without."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name in _adapted(base, modules)[:layers]:
        outputs, inputs = base.modules[name]
        down = rng.standard_normal((rank, inputs), dtype=np.float32) / math.sqrt(inputs)
        up = rng.standard_normal((outputs, rank), dtype=np.float32) * (STRENGTH / math.sqrt(rank))
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.astype(np.float16)
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.astype(np.float16)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": rank, "lora_alpha": rank}
    (folder / CONFIG).write_text(json.dumps(config | {"target_modules": [*modules]}), encoding="utf-8")
    return MadeAdapter(user, folder)


def _adapted(base: BaseModel, modules: Sequence[str]) -> list[str]:
    return [name for name in sorted(base.modules) if name.rpartition(".")[2] in modules]
