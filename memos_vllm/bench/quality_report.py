"""Results of `bench quality` on the terminal and in files: quality.json (every answer), quality.csv, quality.png."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from memos_vllm.bench.machine import in_words, vllm_version
from memos_vllm.bench.quality_cases import Case, kinds_of
from memos_vllm.bench.quality_options import QualityOptions
from memos_vllm.bench.quality_plot import draw_quality
from memos_vllm.bench.quality_stats import ALL, PLAIN, Graded, QualityRow

COLUMNS = (
    "recomputed\n%", "accuracy\n%", "kept\n%", "agreement\n%", "KL, first\nmnat", "KL, answer\nmnat", "TTFT\nms",
    "of full\nprefill's",
)  # fmt: skip


@dataclass(frozen=True)
class QualityReport:
    """All there is to know about one run. `machine`: see `machine.describe`."""

    options: QualityOptions
    machine: dict[str, Any]
    cases: Sequence[Case]
    graded: Sequence[Graded]
    rows: Sequence[QualityRow]

    def as_json(self) -> dict[str, Any]:
        options = self.options
        return {
            "benchmark": "quality",
            "command": options.command,
            "model": options.model_name,
            "dtype": options.dtype,
            "seed": options.seed,
            "machine": self.machine,
            "units": {"s": ["ttft"], "nat": ["kl_first", "kl_answer"], "tokens": ["size", "tokens", "repaired"]},
            "checks": {"full repair answers as plain prefill does": len(self.cases)},
            "questions": [
                {"case": case.number, "question": case.ask.question, "value": case.ask.value} for case in self.cases
            ],
            "summary": [asdict(row) for row in self.rows],
            "answers": [asdict(one) for one in self.graded],
        }


def write_quality(report: QualityReport, folder: Path) -> None:
    """Write the three files into `folder`, which is made when missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.json").write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    with (folder / "quality.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(QualityRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_rounded(row) for row in report.rows)
    version = vllm_version(report.machine)
    title = f"Repair: quality and speed. {report.options.model_name}, {report.options.dtype}, vLLM {version}"
    draw_quality(_overall(report.rows), title, in_words(report.machine), folder / "quality.png")


def print_quality(report: QualityReport, console: Console) -> None:
    """Print the tables, and where the files are."""
    console.print(_overall_table(report))
    for kind_or_size, names in (
        ("kind", [str(kind) for kind in kinds_of(report.cases)]),
        ("size", list(map(str, report.options.sizes))),
    ):
        console.print(_parts_table(report, kind_or_size, names))
    console.print(
        f"Full repair answers as plain prefill does, token for token, on all {len(report.cases)} prompts. "
        f"{in_words(report.machine)}; vLLM {vllm_version(report.machine)}."
    )
    console.print(f"Written: {report.options.out}/quality.json, quality.csv, quality.png", soft_wrap=True)


def _overall(rows: Sequence[QualityRow]) -> list[QualityRow]:
    return [row for row in rows if row.kind == row.size == ALL]


def _overall_table(report: QualityReport) -> Table:
    title = f"Repair policies, {report.options.model_name}, {len(report.cases)} prompts"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("policy")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in _overall(report.rows):
        quality = [f"{100 * value:.1f}" for value in (row.share, row.accuracy, row.kept, row.agreement)]
        divergence = [f"{1e3 * value:.2f}" for value in (row.kl_first, row.kl_answer)]
        table.add_row(row.policy, *quality, *divergence, f"{1e3 * row.ttft:.1f}", f"{row.ttft_ratio:.2f}")
    return table


def _parts_table(report: QualityReport, column: str, names: Sequence[str]) -> Table:
    """Accuracy by kind of question or by size of a memory, full prefill's and every policy's share of it."""
    what = {"kind": "kind of question", "size": "tokens of a memory"}[column]
    table = Table(title=f"Accuracy kept, by {what}, % of full prefill's", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("policy")
    for name in names:
        table.add_column(name, justify="right")
    other = {"kind": "size", "size": "kind"}[column]
    for policy in dict.fromkeys(row.policy for row in report.rows):
        found = {
            getattr(row, column): row for row in report.rows if row.policy == policy and getattr(row, other) == ALL
        }
        values = [found[name].accuracy if policy == PLAIN else found[name].kept for name in names]
        label = f"{policy}: accuracy, %" if policy == PLAIN else policy
        table.add_row(label, *(f"{100 * value:.1f}" for value in values))
    return table


def _rounded(row: QualityRow) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(row).items()}
