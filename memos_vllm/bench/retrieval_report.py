"""Results of `bench retrieval` on the terminal and in files: retrieval.json (every rank), retrieval.csv, .png."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from memos_vllm.bench.machine import in_words, vllm_version
from memos_vllm.bench.retrieval_data import Conversation
from memos_vllm.bench.retrieval_options import RetrievalOptions
from memos_vllm.bench.retrieval_plot import draw_retrieval
from memos_vllm.bench.retrieval_stats import ALL, BUDGETS, DEPTH, TOP_K, Asked, RecallRow

SHOWN = (5, 10, 25)
"""Of TOP_K, in the tables of arms and of memory sizes."""


@dataclass(frozen=True)
class Ingest:
    """How the memories of one size went into one server: seconds of all POSTs, and then until all had vectors."""

    server: str
    chunk: int
    memories: int
    seconds: float
    embedding_seconds: float


@dataclass(frozen=True)
class RetrievalReport:
    """All there is to know about one run. `machine`: see `machine.describe`."""

    options: RetrievalOptions
    machine: dict[str, Any]
    conversations: Sequence[Conversation]
    ingests: Sequence[Ingest]
    asked: Sequence[Asked]
    rows: Sequence[RecallRow]

    @property
    def turns(self) -> int:
        return sum(len(conversation.turns) for conversation in self.conversations)

    @property
    def questions(self) -> int:
        return sum(len(conversation.questions) for conversation in self.conversations)

    def as_json(self) -> dict[str, Any]:
        """Questions and turns appear as numbers alone: texts are the data's."""
        return {
            "benchmark": "retrieval",
            "command": self.options.command,
            "embedder": self.options.embedder_name,
            "machine": self.machine,
            "units": {"s": ["seconds", "embedding_seconds", "p50", "p90"], "rank": ["ranks"], "turns": ["chunk"]},
            "depth": DEPTH,
            "top_k": TOP_K,
            "budgets": BUDGETS,
            "conversations": [
                {
                    "name": conversation.name,
                    "turns": len(conversation.turns),
                    "questions": len(conversation.questions),
                    "questions_without_evidence": conversation.unanswerable,
                    "unknown_evidence": conversation.unknown,
                }
                for conversation in self.conversations
            ],
            "checks": {"turns stored word for word": self.turns, "questions with all evidence stored": self.questions},
            "ingests": [asdict(ingest) for ingest in self.ingests],
            "summary": [asdict(row) for row in self.rows],
            "asked": [asdict(one) for one in self.asked],
        }


def write_retrieval(report: RetrievalReport, folder: Path) -> None:
    """Write the three files into `folder`, which is made when missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "retrieval.json").write_text(json.dumps(report.as_json()) + "\n", encoding="utf-8")
    rows = [_flat(row) for row in report.rows]
    with (folder / "retrieval.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    subtitle = f"{_data(report)}; {in_words(report.machine)}"
    draw_retrieval(report.rows, "Turns of a conversation found by a search", subtitle, folder / "retrieval.png")


def print_retrieval(report: RetrievalReport, console: Console) -> None:
    """Print the tables, and where the files are."""
    for table in (_arms(report), _categories(report), _depths(report), _sizes(report)):
        console.print(table)
    dropped = sum(conversation.unanswerable for conversation in report.conversations)
    console.print(
        f"{_data(report)}: every turn is stored word for word, every evidence turn among them; {dropped} questions "
        f"without evidence left out. {in_words(report.machine)}; vLLM {vllm_version(report.machine)}."
    )
    console.print(f"Written: {report.options.out}/retrieval.json, retrieval.csv, retrieval.png", soft_wrap=True)


def _data(report: RetrievalReport) -> str:
    return f"{len(report.conversations)} conversations, {report.turns:,} turns, {report.questions:,} questions"


def _overall(rows: Sequence[RecallRow], chunk: int) -> list[RecallRow]:
    return [row for row in rows if row.chunk == chunk and row.category == row.conversation == ALL]


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _arms(report: RetrievalReport) -> Table:
    """Recall of every arm, and how it spreads over the conversations."""
    names = [*(f"R@{k}" for k in SHOWN), "MRR", "lowest R@10", "highest R@10", "P50 ms", "P90 ms"]
    title = f"Recall of evidence turns, %; dense: {report.options.embedder_name}"
    table = _table(title, "arm", names)
    for row in _overall(report.rows, 1):
        each = [one.recall(10) for one in report.rows if _same_arm(one, row) and one.conversation != ALL]
        quality = [*(row.recall(k) for k in SHOWN), row.mrr, min(each), max(each)]
        table.add_row(row.arm, *map(_percent, quality), f"{row.p50 * 1e3:.1f}", f"{row.p90 * 1e3:.1f}")
    return table


def _categories(report: RetrievalReport) -> Table:
    names = sorted({row.category for row in report.rows} - {ALL})
    counts = {row.category: row.questions for row in report.rows}
    table = _table("R@10 by category, % (questions)", "arm", [f"{name}\n({counts[name]})" for name in names])
    for row in _overall(report.rows, 1):
        found = {one.category: one.recall(10) for one in report.rows if _same_arm(one, row) and one.category != ALL}
        table.add_row(row.arm, *(_percent(found[name]) for name in names))
    return table


def _depths(report: RetrievalReport) -> Table:
    table = _table("Recall by top-k, %", "arm", [str(k) for k in TOP_K])
    for row in _overall(report.rows, 1):
        table.add_row(row.arm, *map(_percent, row.recalls))
    return table


def _sizes(report: RetrievalReport) -> Table:
    """Memories of several turns: by rank, and by what a reader of them has to read."""
    names = ["turns a memory", *(f"R@{k}" for k in SHOWN), *(f"R in {budget}\nturns read" for budget in BUDGETS), "MRR"]
    table = _table("Recall by size of a memory, %", "arm", names)
    measured = dict.fromkeys(row.arm for row in report.rows if row.chunk != 1)
    for arm in measured or dict.fromkeys(row.arm for row in report.rows):
        for row in (row for chunk in report.options.chunks for row in _overall(report.rows, chunk)):
            if row.arm == arm:
                values = [*(row.recall(k) for k in SHOWN), *row.budgets, row.mrr]
                table.add_row(arm, str(row.chunk), *map(_percent, values))
        table.add_section()
    return table


def _same_arm(one: RecallRow, row: RecallRow) -> bool:
    return (one.arm, one.chunk) == (row.arm, row.chunk)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _flat(row: RecallRow) -> dict[str, Any]:
    """A row of the CSV, a column for each k and each budget."""
    values = asdict(row)
    recalls, budgets = values.pop("recalls"), values.pop("budgets")
    values |= {f"recall_{k}": value for k, value in zip(TOP_K, recalls, strict=True)}
    values |= {f"recall_in_{budget}_turns": value for budget, value in zip(BUDGETS, budgets, strict=True)}
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
