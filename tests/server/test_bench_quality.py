"""The smallest run of `memos-vllm bench quality`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from memos_vllm.bench.quality_stats import PLAIN
from memos_vllm.bench.stories import KINDS
from tests.server.test_bench_smoke import bench, left_behind

pytestmark = pytest.mark.server

POLICIES = ("none", "deviation:0.1", "guided:0.1", "mixed:0.1", "full")


def test_a_small_run_reports_every_policy(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--sizes", "96", "--prompts", "1", "--policies", ",".join(POLICIES), "--out", str(out)]
    result = bench(tmp_path, *words, name="quality")
    assert result.returncode == 0, result.stdout + result.stderr
    data = json.loads((out / "quality.json").read_text())
    assert len(data["answers"]) == len(KINDS) * (len(POLICIES) + 1)
    assert {answer["kind"] for answer in data["answers"]} == set(KINDS)
    for answer in data["answers"]:
        budget = {"none": 0, "full": answer["tokens"], PLAIN: answer["tokens"]}.get(answer["policy"])
        if budget is None:
            assert answer["repaired"] <= 0.1 * answer["tokens"]
        else:
            assert answer["repaired"] == budget
        if answer["policy"] in ("full", PLAIN):
            assert answer["agrees"]
            assert answer["kl_answer"] == pytest.approx(0.0, abs=1e-3)
    assert any(answer["repaired"] for answer in data["answers"] if answer["policy"] == "deviation:0.1")
    with (out / "quality.csv").open(newline="") as file:
        rows = {row["policy"]: row for row in csv.DictReader(file) if row["kind"] == row["size"] == "all"}
    assert list(rows) == [PLAIN, *POLICIES]
    assert float(rows["full"]["kept"]) == 1.0
    assert (out / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert all(policy in result.stdout for policy in POLICIES)
    assert str(tmp_path) not in (out / "quality.json").read_text()
    assert left_behind(tmp_path) == []
