"""Several adapters become one, by PEFT's methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from memos_vllm.errors import BadInput
from memos_vllm.parameter.lora import with_adapter, write_adapter
from memos_vllm.parameter.model import Model

Method = Literal[
    "linear", "svd", "cat", "ties", "dare_linear", "dare_ties", "ties_svd", "dare_linear_svd", "dare_ties_svd"
]
METHODS: tuple[Method, ...] = get_args(Method)
MERGED = "merged"


@dataclass(frozen=True)
class Part:
    """One of the adapters that are merged: the folder of its two files, and what it counts."""

    folder: Path
    weight: float = 1.0


def merge(
    model: Model,
    parts: Sequence[Part],
    folder: Path,
    *,
    method: Method = "svd",
    rank: int = 0,
    density: float = 0.5,
    seed: int = 0,
) -> Model:
    """Merge adapters of the bare `model`, write the outcome into `folder`, and return the model with it.

    linear adds the matrices A and B apart, which is rough; svd adds the products and keeps `rank` (0: the largest
    there is) of them; cat keeps all of them, at the sum of the ranks. ties drops all but the share `density` of the
    largest weights and lets signs vote, dare drops at random (`seed`). Raises BadInput.
    """
    import torch

    _check(parts, method, density)
    torch.manual_seed(seed)
    names = [f"part{number}" for number in range(len(parts))]
    joined = model
    for name, part in zip(names, parts, strict=True):
        joined = with_adapter(joined, part.folder, name)
    try:
        joined.net.add_weighted_adapter(
            names,
            [part.weight for part in parts],
            MERGED,
            combination_type=method,
            svd_rank=rank or None,
            density=density if "ties" in method or "dare" in method else None,
        )
    except ValueError as error:
        raise BadInput(f"These adapters cannot be merged by {method}: {error}") from error
    joined.net.set_adapter(MERGED)
    write_adapter(joined, folder, MERGED)
    return joined


def _check(parts: Sequence[Part], method: str, density: float) -> None:
    if len(parts) < 2:
        raise BadInput("Merging takes two adapters or more.")
    if method not in METHODS:
        raise BadInput(f"There is no method {method!r}; choose one of {', '.join(METHODS)}.")
    if not 0 < density <= 1:
        raise BadInput("density must be above 0 and at most 1.")
