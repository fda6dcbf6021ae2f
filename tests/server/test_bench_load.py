"""The smallest run of `memos-vllm bench load`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.server.test_bench_smoke import bench, left_behind

pytestmark = pytest.mark.server


def test_a_small_run_reports_both_operations(tmp_path: Path) -> None:
    out, sizes = tmp_path / "out", ["--memories", "60", "--users", "6", "--rates", "5", "--chat-rates", "5"]
    result = bench(tmp_path, *sizes, "--chats", "1", "--seconds", "3", "--out", str(out), name="load")
    assert result.returncode == 0, result.stdout + result.stderr
    with (out / "load.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = [(row["arm"], row["operation"]) for row in rows]
    assert told == [
        ("lexical", "search"), ("chatting", "search"), ("lexical", "add"), ("chatting", "add"),
    ]  # fmt: skip
    assert all(float(row["success"]) == 1.0 for row in rows), rows
    assert all((int(row["chats"]) > 0) == (row["arm"] == "chatting") for row in rows)
    assert [row["memories"] for row in rows[:2]] == ["60", "60"] and int(rows[3]["memories"]) > 60
    assert all(float(row["found"]) > 0.5 for row in rows if row["operation"] == "search")
    (size,) = json.loads((out / "load.json").read_text())["sizes"]
    assert size["memories"] == 60 and size["disk"] > 0 and size["resident"] > 0
    assert (out / "load.png").stat().st_size > 10_000
    assert str(tmp_path) not in (out / "load.json").read_text()
    assert left_behind(tmp_path) == []
