"""`bench quality` without servers: figures, checks and files."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from memos_vllm.bench.checks import CheckFailed
from memos_vllm.bench.client import Told
from memos_vllm.bench.options import TtftOptions, read_options
from memos_vllm.bench.quality import Memories, check_full, check_spliced, grade
from memos_vllm.bench.quality_cases import Case
from memos_vllm.bench.quality_options import POLICIES, QUICK_POLICIES, QualityOptions
from memos_vllm.bench.quality_report import QualityReport, print_quality, write_quality
from memos_vllm.bench.quality_stats import ALL, PLAIN, divergences, kl_divergence, summarise_quality
from memos_vllm.bench.stories import KINDS, Ask
from memos_vllm.errors import StartError
from tests.unit.bench_cases import MACHINE

MEMORIES = Memories(["m1", "m2"], 100)


def told(ids: list[int], text: str = "", ttft: float = 0.1, repaired: int = 0) -> Told:
    """An answer in which every token has probability 1/2, and the next higher one 1/4."""
    tops = [{token: math.log(0.5), token + 1: math.log(0.25)} for token in ids]
    return Told(ttft, [1, 2], text, ids, tops, {"x-memos-repaired-tokens": str(repaired)})


def headers(cubes: str, spliced: int, repaired: int, **others: str) -> dict[str, str]:
    counts = {"x-memos-spliced-tokens": str(spliced), "x-memos-repaired-tokens": str(repaired)}
    return {"x-memos-cubes": cubes} | counts | {f"x-memos-{name}": value for name, value in others.items()}


def case(number: int = 0, kind: int = 0) -> Case:
    return Case(number, 64, ("one", "two"), Ask(KINDS[kind], "What?", "It is tea.", "tea", "milk"))


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=9), st.integers(1, 9), st.integers(0, 99))
def test_divergence_of_the_likeliest_is_a_lower_bound(weights: list[float], known: int, seed: int) -> None:
    rng = random.Random(seed)
    others = rng.sample(weights, len(weights))
    p, q = ([value / sum(side) for value in side] for side in (weights, others))
    whole = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    tops = [
        {token: math.log(side[token]) for token in sorted(range(len(side)), key=lambda i: -side[i])[:known]}
        for side in (p, q)
    ]
    assert -1e-9 <= kl_divergence(tops[0], tops[1]) <= whole + 1e-6
    assert kl_divergence(tops[0], tops[0]) == pytest.approx(0.0, abs=1e-9)


def test_divergence_is_taken_up_to_the_first_token_that_differs() -> None:
    plain = told([5, 6, 7, 8])
    assert divergences(plain, told([5, 6, 7, 8])) == pytest.approx((0.0, 0.0))
    step = kl_divergence(told([6]).alternatives[0], told([7]).alternatives[0])
    assert step > 0
    assert divergences(plain, told([5, 7, 7, 8])) == pytest.approx((0.0, step / 2))
    assert divergences(plain, told([6, 6]))[0] == pytest.approx(step)


def test_an_answer_is_graded_by_truth_and_by_full_prefill() -> None:
    plain = told([1, 2], "It is tea.", ttft=0.4)
    good = grade(case(), MEMORIES, "none", told([1, 2], "It is tea.", repaired=7), plain)
    assert (good.right, good.agrees, good.repaired, good.tokens) == (True, True, 7, 100)
    overtaken = grade(case(), MEMORIES, "none", told([1, 3], "It was milk, now tea.", repaired=0), plain)
    assert (overtaken.right, overtaken.agrees) == (False, False)
    assert grade(case(), MEMORIES, PLAIN, plain, plain).repaired == 100


def test_rows_compare_with_full_prefill() -> None:
    graded = []
    for number in range(8):
        one, plain = case(number, number % 4), told([1], "It is tea." if number < 6 else "No.", ttft=0.4)
        fast = told([1], "It is tea." if number < 3 else "No.", ttft=0.1, repaired=10)
        graded += [grade(one, MEMORIES, PLAIN, plain, plain), grade(one, MEMORIES, "head:5", fast, plain)]
    rows = {(row.policy, row.kind, row.size): row for row in summarise_quality(graded)}
    full, head = rows[PLAIN, ALL, ALL], rows["head:5", ALL, ALL]
    assert (full.accuracy, full.kept, full.share, full.ttft_ratio) == (0.75, 1.0, 1.0, 1.0)
    assert (head.accuracy, head.kept, head.share) == (0.375, 0.5, 0.1)
    assert head.ttft_ratio == pytest.approx(0.25)
    assert rows["head:5", "inside", "64"].prompts == 2


def test_full_repair_must_answer_as_plain_prefill() -> None:
    check_full(case(), told([1, 2]), told([1, 2]), 0.0)
    with pytest.raises(CheckFailed, match="prompt 0, full repair says"):
        check_full(case(), told([1, 3]), told([1, 2]), 0.0)
    with pytest.raises(CheckFailed, match="do not end at the same token"):
        check_full(case(), told([1]), told([1, 2]), 0.0)
    check_full(case(), told([1, 3]), told([1, 2]), 0.7)
    with pytest.raises(CheckFailed):
        check_full(case(), told([1, 3]), told([1, 2]), 0.6)


@pytest.mark.parametrize(
    ("policy", "found", "problem"),
    [
        ("none", headers("m2,m1", 100, 0), "used the memories 'm2,m1'"),
        ("none", headers("m1,m2", 0, 0, fallback="kv-missing"), r"fell back \(kv-missing\)"),
        ("head:4", headers("m1,m2", 80, 4), "spliced 80 and repaired 4"),
        ("none", headers("m1,m2", 99, 4), "repaired 4 tokens"),
    ],
)
def test_an_answer_that_is_not_what_its_policy_says_is_refused(
    policy: str, found: dict[str, str], problem: str
) -> None:
    with pytest.raises(CheckFailed, match=problem):
        check_spliced(case(), MEMORIES, policy, found)
    check_spliced(case(), MEMORIES, "none", headers("m1,m2", 110, 0))


def options(out: Path) -> QualityOptions:
    return QualityOptions("org/name", (64,), 2, ("none", "head:4", "full"), 0, "float32", (), out, ())


def test_files_and_tables_agree(tmp_path: Path) -> None:
    cases = [case(number, number) for number in range(4)]
    plain = told([1], "It is tea.", ttft=0.4)
    graded = [
        grade(one, MEMORIES, policy, told([1], "It is tea.", ttft=seconds, repaired=repaired), plain)
        for one in cases
        for policy, seconds, repaired in (
            (PLAIN, 0.4, 0),
            ("none", 0.1, 0),
            ("head:4", 0.2, 8),
            ("full", 0.4, 0),
        )
    ]
    report = QualityReport(options(tmp_path), MACHINE, cases, graded, summarise_quality(graded))
    write_quality(report, tmp_path / "new")
    data = json.loads((tmp_path / "new" / "quality.json").read_text())
    assert len(data["answers"]) == 16
    assert data["command"].startswith("memos-vllm bench quality --model org/name --sizes 64 --prompts 2")
    assert str(tmp_path) not in json.dumps(data)
    with (tmp_path / "new" / "quality.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 5 * 2
    assert [float(row["share"]) for row in rows[:4]] == [1.0, 0.0, 0.08, 1.0]
    assert (tmp_path / "new" / "quality.png").read_bytes().startswith(b"\x89PNG")
    written = io.StringIO()
    print_quality(report, Console(width=150, file=written))
    text = written.getvalue()
    assert all(name in text for name in ("head:4", "two-hop", "pronoun", "on all 4 prompts", "quality.csv"))


def test_options() -> None:
    full = read_options(["quality", "--sizes", "64,128", "--out", "x", "--", "--max-num-seqs", "4"])
    assert isinstance(full, QualityOptions)
    assert (full.sizes, full.policies, full.extra) == ((64, 128), POLICIES, ("--max-num-seqs", "4"))
    quick = read_options(["quality", "--quick"])
    assert isinstance(quick, QualityOptions)
    assert (quick.policies, quick.prompts) == (QUICK_POLICIES, 4)
    assert isinstance(read_options(["ttft"]), TtftOptions)
    with pytest.raises(StartError, match="must have 'full' among them"):
        read_options(["quality", "--policies", "none,head:4"])


@pytest.mark.parametrize("policies", ["none,full,none", "some,full"])
def test_policies_are_known_and_different(policies: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(["quality", "--policies", policies])
    assert "--policies" in capsys.readouterr().err
