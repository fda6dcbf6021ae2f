"""LoRA adapters on a model, through PEFT: attach, read, write. Files are PEFT's own, safetensors without pickle."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from memos_vllm.errors import BadInput, StartError
from memos_vllm.parameter.model import Model
from memos_vllm.parameter.recipe import Recipe

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def check_peft() -> None:
    """Raises StartError where PEFT is missing."""
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise StartError("PEFT is not installed, which trains and merges adapters: install memos-vllm[train]")


def linear_layers(net: Any) -> list[str]:
    """Names of all linear layers but the output, each once ("q_proj"): what LoRA is added to. Raises StartError."""
    import torch
    from transformers.pytorch_utils import Conv1D

    output = net.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output
    }
    if not found:
        raise StartError("This model has no linear layers that an adapter could be added to; name some as targets.")
    return sorted(found)


def attach(model: Model, recipe: Recipe) -> Model:
    """The model with a new adapter that does nothing yet and is to be trained; seeded. Raises BadInput."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(recipe.seed)
    targets, alpha = list(recipe.targets) or linear_layers(model.net), recipe.scale * recipe.rank
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return Model(get_peft_model(model.net, config), model.tokenizer)
    except ValueError as error:
        raise BadInput(f"No adapter fits this model at {', '.join(targets)}: {error}") from error


def with_adapter(model: Model, folder: Path, name: str = "default") -> Model:
    """The model with an adapter of a folder; a second one with another name joins it. Raises BadInput."""
    from peft import PeftModel

    try:
        if isinstance(model.net, PeftModel):
            model.net.load_adapter(str(folder), name, is_trainable=False)
            return model
        return Model(PeftModel.from_pretrained(model.net, str(folder), name).eval(), model.tokenizer)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise BadInput(f"The adapter {name!r} cannot be put on this model: {error}") from error


def without_adapters(model: Model) -> Model:
    """The bare model; its adapters' weights are dropped, not merged."""
    return Model(model.net.unload(), model.tokenizer) if hasattr(model.net, "unload") else model


def write_adapter(model: Model, folder: Path, name: str = "default") -> None:
    """Write an adapter's two files into `folder`, which appears whole or not at all."""
    aside = folder.with_name(f"{folder.name}.new")
    for stale in (aside, folder):
        shutil.rmtree(stale, ignore_errors=True)
    model.net.save_pretrained(str(aside), selected_adapters=[name], save_embedding_layers=False)
    made = aside if (aside / WEIGHTS).exists() else aside / name
    for file in (CONFIG, WEIGHTS):
        with (made / file).open("rb") as written:
            os.fsync(written.fileno())
    made.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)
