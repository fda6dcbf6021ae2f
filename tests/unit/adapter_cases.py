"""What the tests of adapters share: small adapters for the bundled model, written as PEFT writes them."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import memos_vllm
from memos_vllm.governance.identity import Caller
from memos_vllm.parameter.registry import AdapterFiles, AdapterRegistry, AdapterVersion, BaseModel
from memos_vllm.vault import Vault

TINY = Path(memos_vllm.__file__).parent / "assets" / "tiny"
LAYERS = 4
SHAPES = {"self_attn.q_proj": (256, 256), "self_attn.v_proj": (128, 256)}
"""Outputs and inputs of the layers that the adapters change."""

Arrays = dict[str, "np.ndarray[Any, np.dtype[Any]]"]

MAYA = Caller("maya", bound=True)
BO = Caller("bo", bound=True)


@cache
def base() -> BaseModel:
    return BaseModel.read(str(TINY))


def tensors(*, rank: int = 4, seed: int = 0, layers: Iterable[int] = range(LAYERS), dtype: str = "float32") -> Arrays:
    """Both matrices of every adapted layer."""
    rng = np.random.default_rng(seed)
    made: Arrays = {}
    for layer in layers:
        for module, (outputs, inputs) in SHAPES.items():
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            made[f"{prefix}.lora_A.weight"] = (rng.standard_normal((rank, inputs)) * 0.1).astype(dtype)
            made[f"{prefix}.lora_B.weight"] = (rng.standard_normal((outputs, rank)) * 0.1).astype(dtype)
    return made


def config(*, rank: int = 4, **more: Any) -> dict[str, Any]:
    """What PEFT writes beside the tensors."""
    fields: dict[str, Any] = {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "qalora_group_size": 16,
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["v_proj", "q_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return fields | more


def write(
    folder: Path,
    *,
    rank: int = 4,
    seed: int = 0,
    arrays: Arrays | None = None,
    metadata: Mapping[str, str] | None = None,
    **more: Any,
) -> Path:
    """A folder as PEFT writes it; `more` changes fields of its configuration."""
    folder.mkdir(parents=True)
    save_file(
        arrays if arrays is not None else tensors(rank=rank, seed=seed),
        folder / "adapter_model.safetensors",
        metadata={"format": "pt", **(metadata or {})},
    )
    (folder / "adapter_config.json").write_text(json.dumps(config(rank=rank, **more)))
    (folder / "README.md").write_text("# an adapter")
    return folder


def files(folder: Path, **kinds: Any) -> AdapterFiles:
    """A new adapter in a folder that may be there already, as it comes in."""
    shutil.rmtree(folder, ignore_errors=True)
    return AdapterFiles.read(write(folder, **kinds))


def registry_of(vault: Vault, **limits: Any) -> AdapterRegistry:
    return AdapterRegistry(vault, base=base(), **limits)


def add(
    registry: AdapterRegistry, tmp_path: Path, name: str = "poet", *, owner: str = "maya", seed: int = 0, **how: Any
) -> AdapterVersion:
    """An adapter with weights of its own for each seed."""
    return registry.add(owner, name, files(tmp_path / "incoming", seed=seed), author=owner, **how)


def share_slower(one: Sequence[float], other: Sequence[float]) -> float:
    """How often a time of the one is longer than one of the other, among all pairs: 0.5 where nothing tells them apart.

    The statistic of Mann and Whitney; for n times each and no difference its standard deviation is sqrt(1 / 6n).
    """
    pairs = np.subtract.outer(np.array(one), np.array(other))
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)
