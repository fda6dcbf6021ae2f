"""Rotary frequencies of the models whose keys can be moved to another position."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from memos_vllm.activation.identity import rope_parameters


def inverse_frequencies(hf_config: Any, head_dim: int) -> torch.Tensor:
    """fp32 `[rotary_dim / 2]`, radians per position. `rope_type` must be one of SUPPORTED_ROPE_TYPES."""
    rope = rope_parameters(hf_config)
    if rope["rope_type"] != "default":
        frequencies: torch.Tensor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](hf_config, torch.device("cpu"))[0]
        return frequencies.float()
    rotary_dim = int(head_dim * rope["partial_rotary_factor"])
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    return 1.0 / torch.pow(torch.tensor(float(rope["rope_theta"])), exponents)
