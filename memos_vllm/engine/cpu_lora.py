"""LoRA on CPUs in vLLM 0.32: the base model's rows of a batch are left alone.

vLLM gives them slot -1, which its GPU kernels skip. Its CPU ops take -1 for the last slot, and so add somebody's
adapter to the base model's answers, and to K/V captured from it, whenever both are in one batch
(vllm-project/vllm#48421, open). To be removed with a vLLM that has that fix.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

EXPANDS = ("bgmv_expand", "bgmv_expand_slice")
"""`output[i] += weights[indices[i]] @ inputs[i]`; everything that LoRA adds goes through one of these."""
IMPORTERS = (
    "vllm.lora.ops.torch_ops.lora_ops",
    "vllm.lora.ops.torch_ops",
    "vllm.lora.punica_wrapper.punica_cpu",
)
"""Modules that know the ops by name; the last one may not be loaded yet, and then takes them from the one before."""


def mend() -> None:
    """Have the CPU ops skip rows without an adapter; as often as it likes."""
    from vllm.lora.ops.torch_ops import lora_ops

    for name in EXPANDS:
        plain = getattr(lora_ops, name)
        if not hasattr(plain, "__wrapped__"):
            skipping = _skipping(plain)
            for module in IMPORTERS:
                if module in sys.modules:
                    setattr(sys.modules[module], name, skipping)


def _skipping(plain: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(plain)
    def expand(inputs: Any, weights: Any, output: Any, indices: Any, *rest: Any, **options: Any) -> None:
        """inputs: [rows, rank]; indices: [rows], -1 without an adapter; output: [rows, out], in place."""
        plain(inputs.masked_fill((indices < 0).unsqueeze(1), 0), weights, output, indices, *rest, **options)

    return expand
