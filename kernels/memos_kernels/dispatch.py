"""Which implementation serves a call: Triton on CUDA, C++ on a CPU, and Torch where neither knows the caches."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from enum import Enum
from functools import cache

import torch

from memos_kernels import cpu
from memos_kernels.layout import CpuVecLayout, Layout, StridedLayout
from memos_kernels.rows import alike

ENV = "MEMOS_KERNELS"
"""`reference`: Torch for everything; `auto` (default): the fastest that fits."""

logger = logging.getLogger("memos_kernels")


class Implementation(Enum):
    REFERENCE = "reference"
    CPU = "cpu"
    TRITON = "triton"


def choose(caches: Sequence[torch.Tensor], layout: Layout) -> Implementation:
    """Raises ValueError for an unknown value of MEMOS_KERNELS."""
    wanted = os.environ.get(ENV, "auto")
    if wanted not in ("auto", "reference"):
        raise ValueError(f"{ENV} is 'auto' or 'reference', not '{wanted}'")
    if wanted == "reference":
        return Implementation.REFERENCE
    if isinstance(layout, StridedLayout) and caches[0].is_cuda and caches[0].stride(-1) == 1 and alike(caches):
        return Implementation.TRITON
    if isinstance(layout, CpuVecLayout) and cpu.supports(caches, layout):
        if cpu.available():
            return Implementation.CPU
        _warn_once(cpu.problem())
    return Implementation.REFERENCE


@cache
def _warn_once(problem: str | None) -> None:
    logger.warning("KV is captured and spliced by Torch, not by the faster C++ kernels: %s", problem)
