"""Results of `bench load`: a table on the terminal, load.json, load.csv, load.png."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from memos_vllm.bench.load_client import TIMEOUT, Chats, Sample
from memos_vllm.bench.load_options import LoadOptions
from memos_vllm.bench.machine import in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 1 << 20
COLOURS = ("#1f4e79", "#e07a3f", "#5b9bd5", "#b5361c")


@dataclass(frozen=True)
class Measured:
    """One operation of one arm at one rate; times in seconds, of all requests: one that failed counts as a timeout.

    memories: in the vault when the measurement began
    success: share of requests that were answered rightly; errors: how many failed for which reason
    found: share of the rightly answered searches that had the memory asked for; 0 for adds
    awaiting: memories that had no vector when the measurement ended; 0 without an embedder
    """

    arm: str
    operation: str
    rate: int
    memories: int
    requests: int
    success: float
    found: float
    mean: float
    p50: float
    p90: float
    p99: float
    longest: float
    chats: int
    chats_failed: int
    awaiting: int
    errors: str

    @classmethod
    def of(
        cls,
        arm: str,
        operation: str,
        rate: int,
        memories: int,
        samples: Sequence[Sample],
        beside: Chats,
        awaiting: int,
    ) -> Measured:
        times = sorted(max(sample.seconds, TIMEOUT) if sample.error else sample.seconds for sample in samples)
        errors = Counter(sample.error for sample in samples if sample.error)
        right = len(samples) - errors.total()
        return cls(
            arm=arm,
            operation=operation,
            rate=rate,
            memories=memories,
            requests=len(samples),
            success=right / len(samples),
            found=sum(sample.found for sample in samples) / max(1, right),
            mean=sum(times) / len(times),
            p50=percentile(times, 50),
            p90=percentile(times, 90),
            p99=percentile(times, 99),
            longest=times[-1],
            chats=beside.done,
            chats_failed=beside.failed,
            awaiting=awaiting,
            errors="; ".join(f"{count} {error}" for error, count in errors.most_common()),
        )


@dataclass(frozen=True)
class Size:
    """What a server's memories take, in bytes: its API process's resident memory before and after, and the disk."""

    arm: str
    memories: int
    resident_before: int
    resident: int
    disk: int


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that `percent` of the values do not exceed."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def write_load(
    options: LoadOptions, machine: Mapping[str, Any], rows: Sequence[Measured], sizes: Sequence[Size]
) -> None:
    """Write the three files into the options' folder, which is made when missing."""
    options.out.mkdir(parents=True, exist_ok=True)
    told = {
        "benchmark": "load",
        "command": options.command,
        "model": options.model_name,
        "machine": machine,
        "units": {"s": ["mean", "p50", "p90", "p99", "longest"], "bytes": ["resident_before", "resident", "disk"]},
        "failed_counts_as_s": TIMEOUT,
        "sizes": [asdict(size) for size in sizes],
        "summary": [asdict(row) for row in rows],
    }
    (options.out / "load.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    with (options.out / "load.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Measured)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    draw_load(rows, f"{options.memories:,} memories of {options.users:,} users; {in_words(machine)}", options.out)


def print_load(options: LoadOptions, rows: Sequence[Measured], sizes: Sequence[Size], console: Console) -> None:
    table = Table(title="Adding and searching memories", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("arm", "operation"):
        table.add_column(name)
    columns = ("rate /s", "memories", "success", "found", "mean ms", "P50", "P90", "P99", "longest")
    for name in (*columns, "chats", "failed", "no vector", "errors"):
        table.add_column(name, justify="right")
    for row in rows:
        times = [f"{seconds * 1e3:.1f}" for seconds in (row.mean, row.p50, row.p90, row.p99, row.longest)]
        found = f"{row.found:.1%}" if row.operation == "search" else "-"
        shares = (str(row.rate), f"{row.memories:,}", f"{row.success:.2%}", found)
        beside = [str(number or "-") for number in (row.chats, row.chats_failed, row.awaiting)]
        table.add_row(row.arm, row.operation, *shares, *times, *beside, row.errors)
    console.print(table)
    for size in sizes:
        grown = (size.resident - size.resident_before) / MIB
        console.print(
            f"{size.arm}: {size.memories:,} memories take {size.disk / MIB:.0f} MiB of disk; the API server grew by "
            f"{grown:.0f} MiB to {size.resident / MIB:.0f} MiB."
        )
    console.print(f"Written: {options.out}/load.json, load.csv, load.png", soft_wrap=True)


def draw_load(rows: Sequence[Measured], subtitle: str, folder: Path) -> None:
    """P50 and P99 over the rate, a panel for each operation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    operations = list(dict.fromkeys(row.operation for row in rows))
    figure = Figure(figsize=(5.2 * len(operations), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(operations), sharey=True, squeeze=False)[0]
    for panel, operation in zip(panels, operations, strict=True):
        _draw_panel(panel, [row for row in rows if row.operation == operation])
        panel.set_title(operation)
    panels[0].set_ylabel("ms from when the request was due (log scale)")
    figure.suptitle(f"Latency under load\n{subtitle}", fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(folder / "load.png", dpi=150)


def _draw_panel(panel: Axes, rows: Sequence[Measured]) -> None:
    for colour, arm in zip(COLOURS, dict.fromkeys(row.arm for row in rows), strict=False):
        found = sorted((row for row in rows if row.arm == arm), key=lambda row: row.rate)
        rates = [row.rate for row in found]
        for name, style in (("p50", "o-"), ("p99", "s--")):
            times = [getattr(row, name) * 1e3 for row in found]
            panel.plot(rates, times, style, color=colour, label=f"{arm}, {name.upper()}", markersize=4)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
    panel.set_xlabel("requests a second")
    panel.grid(axis="y", color="#dddddd", linewidth=0.8)
