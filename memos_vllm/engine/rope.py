"""Rotary embeddings of the models whose keys can be moved to another position."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from memos_kernels.rotation import Rotation
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from memos_vllm.activation.identity import rope_parameters
from memos_vllm.engine.compat import INTERLEAVED_ARCHITECTURES, REMEDY
from memos_vllm.errors import StartError

CHECKED_POSITIONS = (1, 2, 37, 500, 4000)
CHECK_TOLERANCE = 0.02
"""vLLM keeps cosines and sines in the model's dtype; bfloat16 has eight bits."""


def model_rotation(hf_config: Any, head_dim: int) -> Rotation:
    """How this model turns its keys. `rope_type` must be one of SUPPORTED_ROPE_TYPES."""
    interleaved = (getattr(hf_config, "architectures", None) or [""])[0] in INTERLEAVED_ARCHITECTURES
    return Rotation(inverse_frequencies(hf_config, head_dim), interleaved)


def inverse_frequencies(hf_config: Any, head_dim: int) -> torch.Tensor:
    """fp32 `[rotary_dim / 2]`, radians per position, frequency scaling included."""
    rope = rope_parameters(hf_config)
    if rope["rope_type"] != "default":
        frequencies: torch.Tensor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](hf_config, torch.device("cpu"))[0]
        return frequencies.float()
    rotary_dim = int(head_dim * rope["partial_rotary_factor"])
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    return 1.0 / torch.pow(torch.tensor(float(rope["rope_theta"])), exponents)


def check_rotation(rotation: Rotation, embeddings: Iterable[Any]) -> None:
    """Raise StartError unless the model's own embeddings (vLLM's `RotaryEmbedding`) turn keys as `rotation` does.

    A factor on cosines and sines (YaRN) is the same at all positions and drops out.
    """
    embeddings = list(embeddings)
    if not embeddings:
        raise StartError(f"the model has no rotary embedding of vLLM's, its keys cannot be moved; {REMEDY}")
    for embedding in embeddings:
        alike = embedding.is_neox_style != rotation.interleaved and embedding.rotary_dim == rotation.rotary_dim
        if not alike or _difference(rotation, embedding.cos_sin_cache) > CHECK_TOLERANCE:
            raise StartError(f"the rotary embedding {type(embedding).__name__} is not the one expected; {REMEDY}")


def _difference(rotation: Rotation, cos_sin_cache: torch.Tensor) -> float:
    """Largest difference of a cosine or sine; the cache is `[positions, rotary_dim]`, cosines first."""
    cache = cos_sin_cache.float().cpu()
    factor = cache[0, 0]  # cos(0)
    worst = 0.0
    for position in (place for place in CHECKED_POSITIONS if place < len(cache)):
        expected = torch.cat(rotation.cos_sin(position))
        worst = max(worst, (cache[position] / factor - expected).abs().max().item())
    return worst
