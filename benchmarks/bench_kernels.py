"""Bandwidth of `capture` and `splice` beside that of plain copies of as many bytes, in one run.

    python benchmarks/bench_kernels.py --out benchmarks/results/kernels-cpu

On a CPU the yardstick is memcpy by as many threads, on a GPU a copy on the device. Every arm reads and writes all K and
V of the tokens once; bandwidth counts both. Memory is there before the clock starts, except in the arms that say "new
memory". Arms run in a new order in every round, and a ratio is taken within its round. Nothing is reported unless the
kernels first give what the reference gives.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from memos_kernels import cpu
from memos_kernels.capture import capture
from memos_kernels.capture import reference as capture_reference
from memos_kernels.dispatch import Implementation, choose
from memos_kernels.layout import CpuVecLayout, Layout, StridedLayout
from memos_kernels.rotation import Rotation
from memos_kernels.splice import reference as splice_reference
from memos_kernels.splice import splice
from rich.console import Console
from rich.table import Table

from memos_vllm.bench.machine import describe, gpu_names, in_words
from memos_vllm.bench.stats import Quartiles

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
TOLERANCE = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-22}
DELTA = 777
GOAL = {"cpu": 0.80, "cuda": 0.85}
MEMCPY, DEVICE_COPY = "memcpy", "device copy"
Arm = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One arm on one shape. Seconds; GB/s read and written; `ratio`: of bandwidth to the yardstick's."""

    dtype: str
    block_size: int
    arm: str
    rounds: int
    median: float
    q1: float
    q3: float
    bandwidth: float
    ratio: float
    ratio_q1: float
    ratio_q3: float


class Shape:
    """Caches and rows of one benchmark shape, filled with noise; blocks in no order."""

    def __init__(self, options: argparse.Namespace, dtype: str, block_size: int) -> None:
        self.dtype, self.block_size, self.tokens = dtype, block_size, options.tokens
        device, heads, head_dim = options.device, options.heads, options.head_dim
        blocks = -(-self.tokens // block_size) + 8
        self.layout: Layout = CpuVecLayout(head_dim) if device == "cpu" else StridedLayout(head_dim)
        shape = (blocks, heads, block_size, 2 * head_dim)
        self.caches = [torch.randn(shape, device=device).to(DTYPES[dtype]) for _ in range(options.layers)]
        self.table = torch.randperm(blocks)
        rows = (options.layers, self.tokens, heads, head_dim)
        self.k, self.v, self.out_k, self.out_v = (torch.randn(rows, device=device).to(DTYPES[dtype]) for _ in range(4))
        self.source = torch.stack([self.k, self.v])
        self.target = torch.zeros_like(self.source)
        self.rope = Rotation(10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim))

    @property
    def num_bytes(self) -> int:
        """Read and written by every arm."""
        return 2 * self.source.numel() * self.source.element_size()

    @property
    def call(self) -> tuple[Sequence[torch.Tensor], Layout, torch.Tensor, int, int]:
        return self.caches, self.layout, self.table, self.block_size, 0

    def arms(self, threads: int) -> dict[str, Arm]:
        """The yardstick first."""
        out = (self.out_k, self.out_v)
        common: dict[str, Arm] = {
            "capture": lambda: capture(*self.call, self.tokens, out),
            "splice, unmoved": lambda: splice(*self.call, self.k, self.v, 0, self.rope),
            "splice": lambda: splice(*self.call, self.k, self.v, DELTA, self.rope),
        }
        if self.source.is_cuda:
            return {DEVICE_COPY: lambda: self.target.copy_(self.source), **common}
        from memos_kernels import _cpu

        to, source, size = self.target.data_ptr(), self.source.data_ptr(), self.num_bytes // 2
        return {
            MEMCPY: lambda: _cpu.copy(to, source, size, threads),
            "torch copy_": lambda: self.target.copy_(self.source),
            **common,
            "torch clone (new memory)": self.source.clone,
            "capture (new memory)": lambda: capture(*self.call, self.tokens),
            "reference capture": lambda: capture_reference.capture(*self.call, self.tokens, out),
            "reference splice": lambda: splice_reference.splice(*self.call, self.k, self.v, DELTA, self.rope),
        }

    def problem(self) -> str | None:
        """What the kernels get wrong on this shape; None when they may be timed."""
        wanted_kind = Implementation.TRITON if self.source.is_cuda else Implementation.CPU
        if choose(self.caches, self.layout) is not wanted_kind:
            return f"the kernels are not in use: {cpu.problem() or 'no CUDA tensors'}"
        before = [cache.clone() for cache in self.caches]
        splice(*self.call, self.k, self.v, DELTA, self.rope)
        spliced = [cache.clone() for cache in self.caches]
        for cache, old in zip(self.caches, before, strict=True):
            cache.copy_(old)
        splice_reference.splice(*self.call, self.k, self.v, DELTA, self.rope)
        for cache, ours in zip(self.caches, spliced, strict=True):
            difference = (cache.float() - ours.float()).abs().max().item()
            if not difference <= TOLERANCE[self.dtype] * cache.float().abs().max().item():
                return f"splice differs from the reference by {difference}"
        wanted = capture_reference.capture(*self.call, self.tokens)
        got = capture(*self.call, self.tokens, (self.out_k, self.out_v))
        if not all(torch.equal(a.cpu(), b) for a, b in zip(got, wanted, strict=True)):
            return "capture differs from the reference"
        return None


def timed(arm: Arm, cuda: bool) -> float:
    """Seconds of one run."""
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    arm()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(shape: Shape, rounds: int, threads: int) -> tuple[list[Row], dict[str, list[float]]]:
    """Rows in the arms' order, and all times. Two rounds come before and are forgotten."""
    arms = shape.arms(threads)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 2):
        for name in random.sample(list(arms), len(arms)):
            seconds = timed(arms[name], shape.source.is_cuda)
            if number >= 2:
                times[name].append(seconds)
    return [row_of(shape, name, times, next(iter(arms))) for name in arms], times


def row_of(shape: Shape, name: str, times: dict[str, list[float]], yardstick: str) -> Row:
    seconds = Quartiles.of(times[name])
    ratio = Quartiles.of([theirs / ours for theirs, ours in zip(times[yardstick], times[name], strict=True)])
    return Row(
        dtype=shape.dtype,
        block_size=shape.block_size,
        arm=name,
        rounds=len(times[name]),
        median=seconds.median,
        q1=seconds.q1,
        q3=seconds.q3,
        bandwidth=shape.num_bytes / seconds.median / 1e9,
        ratio=ratio.median,
        ratio_q1=ratio.q1,
        ratio_q3=ratio.q3,
    )


def write(rows: Sequence[Row], about: dict[str, Any], samples: list[dict[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    everything = {**about, "summary": [asdict(row) for row in rows], "samples": samples}
    (folder / "kernels.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    with (folder / "kernels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(row).items()}
            for row in rows
        )


def draw(rows: Sequence[Row], title: str, subtitle: str, goal: float, path: Path) -> None:
    """Bars: bandwidth as a share of the yardstick's, with quartiles; a panel for each shape."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys((row.dtype, row.block_size) for row in rows))
    figure = Figure(figsize=(1.5 + 4.2 * len(shapes), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, shape in zip(figure.subplots(1, len(shapes), sharey=True, squeeze=False)[0], shapes, strict=True):
        found = [row for row in rows if (row.dtype, row.block_size) == shape]
        spread = [[row.ratio - row.ratio_q1 for row in found], [row.ratio_q3 - row.ratio for row in found]]
        colours = ["#1f4e79" if row.arm in ("capture", "splice") else "#9aa0a6" for row in found]
        panel.bar([row.arm for row in found], [row.ratio for row in found], color=colours, yerr=spread, capsize=3)
        for place, row in enumerate(found):
            panel.annotate(f"{row.bandwidth:.1f}\nGB/s", (place, row.ratio_q3 + 0.02), ha="center", fontsize=7)
        panel.axhline(goal, color="#b5361c", linestyle="--", linewidth=1)
        panel.set_title(f"{shape[0]}, blocks of {shape[1]} tokens", fontsize=10)
        panel.set_xticks(range(len(found)), [row.arm for row in found], rotation=40, ha="right", fontsize=8)
        panel.set_ylim(0, max(row.ratio_q3 for row in rows) + 0.2)
    figure.supylabel(f"bandwidth, share of {rows[0].arm}'s", fontsize=10)
    figure.suptitle(f"{title}\n{subtitle}", fontsize=10)
    figure.savefig(path, dpi=150)


def table(rows: Sequence[Row], yardstick: str) -> Table:
    shown = Table(title=f"Medians; ratio of bandwidth to {yardstick} within a round, with quartiles")
    for name in ("dtype", "block", "arm", "ms", "GB/s", "ratio"):
        shown.add_column(name)
    for row in rows:
        ratio = f"{row.ratio:.2f} ({row.ratio_q1:.2f}–{row.ratio_q3:.2f})"
        shown.add_row(row.dtype, str(row.block_size), row.arm, f"{row.median * 1e3:.2f}", f"{row.bandwidth:.1f}", ratio)
    return shown


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=GOAL, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--heads", type=int, default=8, help="key-value heads")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=["bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("kernels-bench"))
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    random.seed(0)
    machine = describe(tuple(gpu_names()))
    rows: list[Row] = []
    samples: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        for block_size in options.block_sizes:
            shape = Shape(options, dtype, block_size)
            if problem := shape.problem():
                sys.exit(f"bench_kernels: {problem}; nothing is reported")
            new, times = measure(shape, options.rounds, options.threads)
            rows += new
            samples.append({"dtype": dtype, "block_size": block_size, "seconds": times})
    kind = cpu.isa() if options.device == "cpu" else "triton"
    arguments = {name: value for name, value in vars(options).items() if name != "out"}
    about = {"benchmark": "kernels", "kernels": kind, "machine": machine, "options": arguments}
    Console().print(table(rows, rows[0].arm))
    write(rows, about, samples, options.out)
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    sizes = f"{options.tokens} tokens, {options.layers} layers, {options.heads} heads of {options.head_dim}"
    draw(
        rows,
        f"capture and splice: {sizes}",
        f"{in_words(machine)}; {kind}, {threads}",
        GOAL[options.device],
        options.out / "kernels.png",
    )


if __name__ == "__main__":
    main()
