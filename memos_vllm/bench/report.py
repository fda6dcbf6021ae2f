"""Results on the terminal and in files: ttft.json (everything), ttft.csv (one row per arm and size), ttft.png."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from memos_vllm.bench.checks import Equal
from memos_vllm.bench.machine import in_words, vllm_version
from memos_vllm.bench.options import TtftOptions
from memos_vllm.bench.plot import draw_ttft
from memos_vllm.bench.stats import Build, Quartiles, Row, Sample

MIB = 2**20
COUNTS = ("prompt", "cached", "spliced", "repaired")
TIME_COLUMNS = ("median\nms", "quartiles\nms", "ratio to\nfloor", "faster than\nreordered", "break-even\nuses")


@dataclass(frozen=True)
class Report:
    """All there is to know about one run. `machine`: see `machine.describe`."""

    options: TtftOptions
    machine: dict[str, Any]
    checks: Sequence[Equal]
    builds: Sequence[Build]
    samples: Sequence[Sample]
    rows: Sequence[Row]

    @property
    def hardware(self) -> str:
        """The machine in a few words."""
        return in_words(self.machine)

    def as_json(self) -> dict[str, Any]:
        options = self.options
        return {
            "benchmark": "ttft",
            "command": options.command,
            "model": options.model_name,
            "dtype": options.dtype,
            "seed": options.seed,
            "machine": self.machine,
            "units": {"s": ["ttft", "q1", "median", "q3", "seconds"], "tokens": ["context", "query", *COUNTS]},
            "checks": [asdict(check) for check in self.checks],
            "builds": [asdict(build) for build in self.builds],
            "summary": [asdict(row) for row in self.rows],
            "samples": [asdict(sample) for sample in self.samples],
        }


def write_report(report: Report, folder: Path) -> None:
    """Write the three files into `folder`, which is made when missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ttft.json").write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    with (folder / "ttft.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_rounded(row) for row in report.rows)
    title = (
        f"Time to first token: {report.options.model_name}, {report.options.dtype}, vLLM {vllm_version(report.machine)}"
    )
    draw_ttft(report.rows, title, report.hardware, folder / "ttft.png")


def print_report(report: Report, console: Console) -> None:
    """Print the tables, and where the files are."""
    console.print(_times(report))
    console.print(_builds(report.builds))
    ties = sum(check.ended_at_tie for check in report.checks)
    said = "token for token" if not ties else f"token for token, {ties} of {len(report.checks)} up to a tie in 16 bits"
    console.print(
        f"Full repair answers as plain vLLM does, {said}. {report.hardware}; vLLM {vllm_version(report.machine)}."
    )
    console.print(f"Written: {report.options.out}/ttft.json, ttft.csv, ttft.png", soft_wrap=True)


def _times(report: Report) -> Table:
    table = Table(title=f"Time to first token, {report.options.model_name}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("arm")
    for name in (*(f"{kind}\ntokens" for kind in COUNTS), *TIME_COLUMNS):
        table.add_column(name, justify="right", no_wrap=True)
    for (context, query), rows in groupby(report.rows, key=lambda row: (row.context, row.query)):
        table.add_row(f"[bold]{context} tokens of memories, {query} of query")
        for row in rows:
            table.add_row(*_cells(row))
        table.add_section()
    return table


def _cells(row: Row) -> list[str]:
    counts = [str(count or "-") for count in (row.prompt, row.cached, row.spliced, row.repaired)]
    times = [f"{row.median * 1e3:.1f}", f"{row.q1 * 1e3:.1f}–{row.q3 * 1e3:.1f}"]
    uses = "" if row.spliced == 0 else "never" if row.break_even is None else str(row.break_even)
    return [row.arm, *counts, *times, f"{row.to_floor:.2f}", f"{row.speed_up:.2f}x", uses]


def _builds(builds: Sequence[Build]) -> Table:
    title = "Building the KV cubes: from the POST of the memories until all can be spliced"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("memories\ntokens", "builds", "median\ns", "quartiles\ns", "one cube\nmedian s", "KV files\nMiB"):
        table.add_column(name, justify="right")
    for context, group in groupby(builds, key=lambda build: build.context):
        found = list(group)
        total = Quartiles.of([build.seconds for build in found])
        each = Quartiles.of([seconds for build in found for seconds in build.cube_seconds])
        size = f"{found[-1].kv_bytes / MIB:.1f}"
        spread = f"{total.q1:.2f}–{total.q3:.2f}"
        table.add_row(str(context), str(len(found)), f"{total.median:.2f}", spread, f"{each.median:.2f}", size)
    return table


def _rounded(row: Row) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(row).items()}
