"""Results of `bench adapters`: tables on the terminal, adapters.json (everything), adapters.csv, adapters.png."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from memos_vllm.bench.adapters_client import MEMOS, VLLM
from memos_vllm.bench.adapters_many import RegistryFigures
from memos_vllm.bench.adapters_options import AdapterOptions
from memos_vllm.bench.adapters_plot import draw_adapters
from memos_vllm.bench.adapters_stats import LOADS, RATE, TTFT, Row, Sample, ratios_by_start
from memos_vllm.bench.machine import in_words, vllm_version

COLUMNS = ("median", "quartiles", "of vLLM's\nown LoRA", "95 % interval", "values")


@dataclass(frozen=True)
class AdapterReport:
    """All there is to know about one run. machine: see `machine.describe`; checked: answers found equal."""

    options: AdapterOptions
    machine: dict[str, Any]
    registry: RegistryFigures | None
    checked: int
    samples: Sequence[Sample]
    rows: Sequence[Row]

    def as_json(self) -> dict[str, Any]:
        options = self.options
        return {
            "benchmark": "adapters",
            "command": options.command,
            "model": options.model_name,
            "dtype": options.dtype,
            "seed": options.seed,
            "machine": self.machine,
            "units": {"1/s": [RATE], "s": [TTFT, *LOADS, "registry"]},
            "checks": {"answers on memos that were vLLM's own LoRA's, token for token": self.checked},
            "registry": None if self.registry is None else asdict(self.registry),
            "summary": [asdict(row) for row in self.rows],
            "samples": [asdict(sample) for sample in self.samples],
        }


def write_adapters(report: AdapterReport) -> None:
    """Write the three files into the options' folder, which is made when missing."""
    folder = report.options.out
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapters.json").write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    with (folder / "adapters.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_rounded(row) for row in report.rows)
    version = vllm_version(report.machine)
    title = f"A LoRA adapter for each user: {report.options.model_name}, {report.options.dtype}, vLLM {version}"
    draw_adapters(report.rows, title, in_words(report.machine), folder / "adapters.png")


def print_adapters(report: AdapterReport, console: Console) -> None:
    """Print the tables, the overhead, and where the files are."""
    options = report.options
    console.print(
        _table(
            f"Requests a second, {options.concurrency} at a time, answers of {options.tokens} tokens; "
            "time to first token of one at a time, ms",
            [row for row in report.rows if row.measure in (RATE, TTFT)],
        )
    )
    if options.loads:
        loads = [row for row in report.rows if row.measure in LOADS]
        console.print(_table("Time to the first token of an adapter, by where it is, ms", loads))
    for line in overheads(report.rows, report.samples):
        console.print(line)
    if report.registry is not None:
        console.print(_registry(report.registry))
    console.print(
        f"{report.checked} answers on memos were those of vLLM's own LoRA with the same adapter, token for token, and "
        f"different for every user. {in_words(report.machine)}; vLLM {vllm_version(report.machine)}."
    )
    console.print(f"Written: {options.out}/adapters.json, adapters.csv, adapters.png", soft_wrap=True)


def overheads(rows: Sequence[Row], samples: Sequence[Sample]) -> Iterator[str]:
    """What the registry costs in requests/s, for each number of users; with several starts, in each of them too."""
    for row in rows:
        if (row.measure, row.arm) == (RATE, MEMOS):
            here = [sample for sample in samples if (sample.measure, sample.users) == (RATE, row.users)]
            starts = [f"{statistics.median(ratios):.3f}" for ratios in ratios_by_start(here, MEMOS)]
            each = f" The starts by themselves: {', '.join(starts)}." if len(starts) > 1 else ""
            yield (
                f"With {row.users} adapters memos answers {_change(row.ratio)} requests/s than vLLM's own LoRA (95 % "
                f"interval: {_change(row.low)} to {_change(row.high)}).{each}"
            )


def _change(ratio: float) -> str:
    return f"{100 * abs(ratio - 1):.1f} % {'fewer' if ratio < 1 else 'more'}"


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("arm")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for (measure, users), group in groupby(rows, key=lambda row: (row.measure, row.users)):
        table.add_row(f"[bold]{measure}" if measure in LOADS else f"[bold]{measure}, {users} users")
        for row in group:
            table.add_row(*_cells(row))
        table.add_section()
    return table


def _cells(row: Row) -> list[str]:
    unit = 1.0 if row.measure == RATE else 1e3
    spread = f"{unit * row.q1:.1f}–{unit * row.q3:.1f}"
    ratio = ["", ""] if row.arm == VLLM else [f"{row.ratio:.3f}", f"{row.low:.3f}–{row.high:.3f}"]
    return [row.arm, f"{unit * row.median:.1f}", spread, *ratio, str(row.samples)]


def _registry(found: RegistryFigures) -> str:
    times = {name: 1e3 * value for name, value in asdict(found).items() if name != "adapters"}
    return (
        f"A registry of {found.adapters:,} adapters: adding one {times['add']:.1f} ms; resolving a name "
        f"{times['named']:.3f} ms, a caller's default {times['default']:.3f} ms; listing a user's only one "
        f"{times['own']:.2f} ms, the {found.adapters // 2:,} of one user {times['half']:.1f} ms, all "
        f"{times['everything']:.1f} ms; starting {times['start']:.1f} ms."
    )


def _rounded(row: Row) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(row).items()}
