"""What a benchmark leaves behind: a table and three files that agree."""

from __future__ import annotations

import csv
import io
import json
import struct
from pathlib import Path

import pytest
from rich.console import Console

from memos_vllm.bench.arms import ARMS
from memos_vllm.bench.report import print_report, write_report
from tests.unit.bench_cases import report


def test_json_holds_every_sample(tmp_path: Path) -> None:
    made = report(tmp_path)
    write_report(made, tmp_path)
    data = json.loads((tmp_path / "ttft.json").read_text())
    assert len(data["samples"]) == len(made.samples) == 5 * 4 * len(ARMS)
    assert data["samples"][0]["ttft"] == made.samples[0].ttft
    assert [row["median"] for row in data["summary"]] == [row.median for row in made.rows]
    assert len(data["builds"]) == 6
    assert data["machine"]["cpu"] == "Example CPU"
    assert data["command"].startswith("memos-vllm bench ttft --model org/name --contexts 600,6000")
    assert str(tmp_path) not in json.dumps(data)


def test_csv_has_the_rows_of_the_table(tmp_path: Path) -> None:
    made = report(tmp_path)
    write_report(made, tmp_path / "new" / "folder")
    with (tmp_path / "new" / "folder" / "ttft.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == [row.arm for row in made.rows]
    assert [float(row["median"]) for row in rows] == pytest.approx([row.median for row in made.rows], abs=1e-6)
    assert rows[0]["break_even"] == ""


def test_png_is_a_picture(tmp_path: Path) -> None:
    write_report(report(tmp_path), tmp_path)
    data = (tmp_path / "ttft.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data.startswith(b"\x89PNG")
    assert width > 1000
    assert height > 600


def test_table_names_every_arm_and_size(tmp_path: Path) -> None:
    made, text = report(tmp_path), io.StringIO()
    print_report(made, Console(file=text, width=160))
    shown = text.getvalue()
    for arm in ARMS:
        assert shown.count(arm.name) == 4
    assert "6000 tokens of memories, 900 of query" in shown
    assert "token for token" in shown
    assert "Example CPU, 2 cores, 16 GiB" in shown
