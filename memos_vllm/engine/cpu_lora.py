"""LoRA on CPUs in vLLM 0.32: the base model's rows of a batch are left alone.

vLLM gives them slot -1, which its GPU kernels skip. Its CPU ops take -1 for the last slot, and so add somebody's
adapter to the base model's answers, and to K/V captured from it, whenever both are in one batch
(vllm-project/vllm#48421, open). To be removed with a vLLM that has that fix.

Which rows those are is looked up once for each batch: a look in every layer shows in a small model's steps.
"""

from __future__ import annotations

import functools
from typing import Any

ROWS = "memos_base_rows"
"""Attribute of vLLM's wrapper: `[tokens, 1]`, whether a row of the batch has no adapter; None where all have one."""
SAMPLED = "memos_base_sampled"
"""The same for the rows that are sampled."""


def mend() -> None:
    """Have the CPU ops skip rows without an adapter; as often as it likes."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU as Wrapper

    if hasattr(Wrapper.update_metadata, "__wrapped__"):
        return
    Wrapper.update_metadata = _noting(Wrapper.update_metadata)
    Wrapper.add_expand = _without(Wrapper.add_expand, ROWS)
    Wrapper.add_lora_embedding = _without(Wrapper.add_lora_embedding, ROWS)
    Wrapper.add_lora_logits = _without(Wrapper.add_lora_logits, SAMPLED)


def _noting(plain: Any) -> Any:
    @functools.wraps(plain)
    def update_metadata(self: Any, *args: Any, **options: Any) -> None:
        plain(self, *args, **options)
        setattr(self, ROWS, _base_rows(self.token_lora_indices))
        setattr(self, SAMPLED, _base_rows(self.sampler_indices))

    return update_metadata


def _base_rows(slots: Any) -> Any:
    rows = slots < 0
    return rows.unsqueeze(1) if rows.any() else None


def _without(plain: Any, name: str) -> Any:
    """The op, `output += inputs @ weights`, with those rows of its inputs zero."""

    @functools.wraps(plain)
    def op(self: Any, output: Any, inputs: Any, *args: Any, **options: Any) -> None:
        """inputs: [..., rows, width], or a tuple of such, for each slice of the output."""
        rows = getattr(self, name, None)
        if rows is not None and isinstance(inputs, tuple):
            inputs = tuple(part.masked_fill(rows, 0) for part in inputs)
        elif rows is not None:
            inputs = inputs.masked_fill(rows, 0)
        plain(self, output, inputs, *args, **options)

    return op
