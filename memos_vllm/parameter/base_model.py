"""What adapters are compared with: the served model's fingerprint, and the shapes of its linear layers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from memos_vllm.activation.identity import MAX_HEADER, local_model_dir, model_fingerprint
from memos_vllm.errors import BadInput, StartError
from memos_vllm.parameter import weights

_CACHED = re.compile(r"models--.+--([^/]+)/snapshots/")
"""A model's folder in the Hugging Face cache."""
_EMBEDDINGS = frozenset({"embed_tokens", "wte", "wpe", "embed_in", "word_embeddings", "position_embeddings"})


@dataclass(frozen=True)
class BaseModel:
    """A base model. name: for people; modules: linear layers by name, `(outputs, inputs)` of each."""

    name: str
    fingerprint: str
    modules: Mapping[str, tuple[int, int]]

    @classmethod
    def read(cls, model: str, revision: str | None = None) -> BaseModel:
        """The model in a folder, or of a hub name that is in the cache. Raises StartError where it cannot be read."""
        try:
            folder = local_model_dir(model, revision)
            modules = _modules(folder)
            fingerprint = model_fingerprint(folder)
        except (OSError, ValueError, BadInput) as error:
            raise StartError(f"Cannot read the base model {model}: {error}.") from error
        if not modules:
            raise StartError(f"The base model {model} has no safetensors weights to compare adapters with; convert it.")
        return cls(short_name(model), fingerprint, modules)


def short_name(model: str) -> str:
    """The last part of a model's path or hub name."""
    cached = _CACHED.search(model)
    return cached[1] if cached else PurePosixPath(model).name


def _modules(folder: Path) -> dict[str, tuple[int, int]]:
    """Every weight with two dimensions that is no embedding; a tied output layer has the shape of its embedding."""
    shapes: dict[str, tuple[int, int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for tensor in weights.read_header(file, max_bytes=MAX_HEADER).tensors:
            if tensor.name.endswith(".weight") and len(tensor.shape) == 2:
                shapes[tensor.name.removesuffix(".weight")] = (tensor.shape[0], tensor.shape[1])
    embedding = next((shape for name, shape in shapes.items() if _last(name) == "embed_tokens"), None)
    modules = {name: shape for name, shape in shapes.items() if _last(name) not in _EMBEDDINGS}
    if embedding is not None and json.loads((folder / "config.json").read_text()).get("tie_word_embeddings"):
        modules.setdefault("lm_head", embedding)
    return modules


def _last(module: str) -> str:
    return module.rpartition(".")[2]
