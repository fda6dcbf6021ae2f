"""The C++ kernels of csrc/: whether they can be used, and the arguments they take.

They divide the work among OpenMP threads. torch is imported first, so the dynamic linker gives the extension the OpenMP
runtime that torch has loaded (its own libgomp, or what was preloaded in its place): the threads are those that vLLM's
CPU worker has bound to its cores, as many as torch uses. Own threads would not do: binding leaves the worker's main
thread on one core, and a thread started from it inherits just that one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch

from memos_kernels.layout import CpuVecLayout, Layout
from memos_kernels.rows import alike

if TYPE_CHECKING:
    from memos_kernels import _cpu

ISA_ENV = "MEMOS_KERNELS_ISA"
"""avx512_bf16, avx512, avx2 or portable: that instead of the best the machine has."""
DTYPES = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16"}
MAX_HEAD_DIM = 1024
MIN_BYTES = 16
"""The narrowest vectors: a block's tokens and a head's dimensions must fill whole ones."""


@cache
def problem() -> str | None:
    """Why the C++ kernels cannot be used, in one line; None when they can."""
    try:
        import memos_kernels._cpu as extension
    except ModuleNotFoundError:
        return "they were not built: installing found no C++ compiler or no Python headers (g++, python3-dev)"
    except ImportError as error:
        return f"they do not load: {error}"
    try:
        extension.Cpu(os.environ.get(ISA_ENV, ""))
    except ValueError as error:
        return f"{ISA_ENV}: {error}"
    return None


def available() -> bool:
    """Whether the C++ kernels are built and run on this machine."""
    return problem() is None


@cache
def isa() -> str:
    """The instruction set in use. Raises RuntimeError when there are no C++ kernels."""
    return kernels().isa


@cache
def kernels() -> _cpu.Cpu:
    """The extension's entry points. Raises RuntimeError when there are no C++ kernels."""
    if reason := problem():
        raise RuntimeError(f"no C++ kernels: {reason}")
    from memos_kernels import _cpu

    return _cpu.Cpu(os.environ.get(ISA_ENV, ""))


def supports(caches: Sequence[torch.Tensor], layout: Layout) -> bool:
    """Whether the C++ kernels know these caches: `vec` layout of a known dtype, alike in all layers."""
    first = caches[0]
    if not isinstance(layout, CpuVecLayout) or first.device.type != "cpu" or first.dtype not in DTYPES:
        return False
    _, _, block_size, width = first.shape
    lane = MIN_BYTES // first.element_size()
    shaped = width == 2 * layout.head_dim and lane <= layout.head_dim <= MAX_HEAD_DIM and layout.head_dim % lane == 0
    dense = first.stride()[2:] == (width, 1) and block_size % lane == 0
    return shaped and dense and alike(caches)


def paged(caches: Sequence[torch.Tensor], layout: CpuVecLayout) -> _cpu.Paged:
    """The caches as the extension takes them."""
    from memos_kernels import _cpu

    first = caches[0]
    num_blocks, heads, block_size, _ = first.shape
    dtype = getattr(_cpu.Dtype, DTYPES[first.dtype])
    pointers = [cache.data_ptr() for cache in caches]
    block_stride, head_stride = first.stride()[:2]
    return _cpu.Paged(pointers, dtype, num_blocks, heads, layout.head_dim, block_size, block_stride, head_stride)


def prefer_huge_pages(rows: torch.Tensor) -> None:
    """Ask Linux for pages of 2 MiB below new, untouched memory on the host: first writing to it is then faster."""
    from memos_kernels import _cpu

    _cpu.prefer_huge_pages(rows.data_ptr(), rows.numel() * rows.element_size())
