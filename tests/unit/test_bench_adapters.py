"""`bench adapters`: ratios are of the same round, intervals hold the median, a wrong adapter is noticed."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.numpy import load_file

from memos_vllm.bench.adapters import check_different, check_same, server_flags
from memos_vllm.bench.adapters_client import ADAPTER, BASE, MEMOS, VLLM, Answered, Asked, Side
from memos_vllm.bench.adapters_many import registry_figures
from memos_vllm.bench.adapters_options import AdapterOptions
from memos_vllm.bench.adapters_report import AdapterReport, print_adapters, write_adapters
from memos_vllm.bench.adapters_stats import LOADS, RATE, TTFT, Row, Sample, interval, summarise_adapters
from memos_vllm.bench.adapters_weights import STRENGTH, WEIGHTS, make_adapter
from memos_vllm.bench.arguments import BUNDLED
from memos_vllm.bench.checks import CheckFailed
from memos_vllm.bench.options import read_options
from memos_vllm.bench.servers import SERVED_NAME, Server, ServerFailed
from memos_vllm.errors import StartError
from memos_vllm.parameter.base_model import BaseModel
from memos_vllm.parameter.registry import AdapterFiles, AdapterRegistry
from memos_vllm.vault import Vault
from tests.unit.bench_cases import MACHINE

Handler = Callable[[httpx.Request], httpx.Response]


def options(*words: str) -> AdapterOptions:
    found = read_options(["adapters", *words])
    assert isinstance(found, AdapterOptions)
    return found


def samples(rounds: int = 9, start: int = 0) -> list[Sample]:
    """The machine's speed changes from round to round by a factor of three; memos takes 5 % longer in each."""
    found, rng = [], random.Random(0)
    for users in (1, 16):
        for number in range(rounds):
            speed = rng.uniform(10, 30)
            for arm, share in ((BASE, 2.0), (VLLM, 1.0), (MEMOS, 0.95)):
                found.append(Sample(RATE, users, arm, start, number, speed * share))
                times = [spread / (speed * share) for spread in (0.9, 1.0, 1.3)]
                found += [Sample(TTFT, users, arm, start, number, time) for time in times]
    for measure in LOADS:
        for number in range(4):
            found += [Sample(measure, 16, arm, start, number, value) for arm, value in ((VLLM, 0.02), (MEMOS, 0.03))]
    return found


def row_of(rows: Sequence[Row], measure: str, users: int, arm: str) -> Row:
    return next(row for row in rows if (row.measure, row.users, row.arm) == (measure, users, arm))


def test_ratios_are_of_the_same_round() -> None:
    rows = summarise_adapters(samples())
    assert [row.measure for row in rows] == [*[RATE] * 3, *[TTFT] * 3] * 2 + [load for load in LOADS for _ in "ab"]
    rate = row_of(rows, RATE, 16, MEMOS)
    assert (rate.ratio, rate.low, rate.high) == pytest.approx((0.95, 0.95, 0.95)), "however the machine's speed varies"
    assert rate.q3 > 1.2 * rate.q1
    assert row_of(rows, TTFT, 1, MEMOS).ratio == pytest.approx(1 / 0.95)
    assert (row_of(rows, TTFT, 1, MEMOS).samples, rate.samples) == (27, 9)
    assert row_of(rows, RATE, 1, VLLM).ratio == 1.0
    assert row_of(rows, "cold load", 16, MEMOS).ratio == pytest.approx(1.5)


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=12))
def test_an_interval_lies_within_the_values_and_around_their_middle(values: list[float]) -> None:
    low, high = interval([values])
    ordered = sorted(values)
    assert ordered[0] <= low <= ordered[len(values) // 2]
    assert ordered[(len(values) - 1) // 2] <= high <= ordered[-1]
    assert (low, high) == interval([values])


def test_more_rounds_narrow_the_interval() -> None:
    rng = random.Random(1)
    few, many = ([[rng.gauss(1.0, 0.05) for _ in range(count)]] for count in (8, 200))
    width_few, width_many = (high - low for low, high in map(interval, (few, many)))
    assert width_many < width_few / 2
    low, high = interval(many)
    assert low < 1.0 < high


def test_an_interval_knows_that_starts_differ() -> None:
    rng = random.Random(1)
    speeds = [rng.gauss(1.0, 0.05) for _ in range(12)]
    starts = [[rng.gauss(speed, 0.005) for _ in range(30)] for speed in speeds]
    together = [[value for values in starts for value in values]]
    low, high = interval(starts)
    assert low < 1.0 < high
    (one_low, one_high), spread = interval(together), max(speeds) - min(speeds)
    assert high - low > spread / 8, "more rounds of the same starts tell nothing of other starts"
    assert high - low > 1.5 * (one_high - one_low)


def test_rounds_of_the_same_number_of_other_starts_are_other_rounds(tmp_path: Path) -> None:
    found = [sample for start in range(3) for sample in samples(start=start)]
    found = [
        replace(sample, value=sample.value * 1.1) if (sample.start, sample.arm) == (2, MEMOS) else sample
        for sample in found
    ]
    rows, text = summarise_adapters(found), io.StringIO()
    rate = row_of(rows, RATE, 16, MEMOS)
    assert (rate.ratio, rate.low, rate.high) == pytest.approx((0.95, 0.95, 0.95 * 1.1)) and rate.samples == 27
    settings = options("--out", str(tmp_path), "--starts", "3")
    print_adapters(AdapterReport(settings, MACHINE, None, 32, found, rows), Console(file=text, width=400))
    assert "The starts by themselves: 0.950, 0.950, 1.045." in text.getvalue()


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    found, text = samples(), io.StringIO()
    base = BaseModel.read(str(BUNDLED))
    figures = registry_figures(6, tmp_path / "many", base, ("q_proj",), lambda: None)
    assert figures.adapters == 6 and 0 < figures.default < 0.1 and 0 < figures.start < 20
    report = AdapterReport(
        options("--out", str(tmp_path / "out"), "--users", "1,16"), MACHINE, figures, 32, found,
        summarise_adapters(found),
    )  # fmt: skip
    write_adapters(report)
    print_adapters(report, Console(file=text, width=160))
    data = json.loads((tmp_path / "out" / "adapters.json").read_text())
    assert len(data["samples"]) == len(found) and data["registry"]["adapters"] == 6
    assert str(tmp_path) not in json.dumps(data)
    with (tmp_path / "out" / "adapters.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == [row["arm"] for row in data["summary"]]
    assert (tmp_path / "out" / "adapters.png").read_bytes().startswith(b"\x89PNG")
    shown = text.getvalue()
    assert "The starts by themselves" not in shown
    assert "With 16 adapters memos answers 5.0 % fewer requests/s than vLLM's own LoRA (95 %" in shown
    assert "interval: 5.0 % fewer to 5.0 % fewer" in shown
    assert shown.count(MEMOS) == 2 * 2 + len(LOADS) and "token for token" in shown
    assert "A registry of 6 adapters" in shown


def test_a_picture_without_loads(tmp_path: Path) -> None:
    found = [sample for sample in samples() if sample.measure not in LOADS]
    report = AdapterReport(
        options("--out", str(tmp_path), "--loads", "0"), MACHINE, None, 32, found, summarise_adapters(found)
    )
    write_adapters(report)
    assert (tmp_path / "adapters.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "adapters.json").read_text())["registry"] is None


def test_options_as_they_are_understood() -> None:
    found = options()
    assert (found.users, found.max_loras, found.max_rank) == ((1, 4, 16, 64, 256), 16, 8)
    assert options("--users", "1,2", "--rank", "9").max_loras == 2
    assert options("--rank", "9").max_rank == 16
    assert found.command.startswith("memos-vllm bench adapters --users 1,4,16,64,256 --modules q_proj,v_proj")
    assert options(*found.command.split()[3:]) == found


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--users", "2", "--max-loras", "3"], "--max-loras must not be more than the most --users"),
        (["--rank", "300"], "--rank must be 256 at most"),
        (["--modules", "q_proj,qkv"], "--modules must be of down_proj, gate_proj"),
        (["--model", "nobody/nothing"], "neither a folder nor in the Hugging Face cache"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], complaint: str) -> None:
    with pytest.raises(StartError, match=complaint):
        options(*words)


def test_arms_differ_in_lora_and_memory_alone(tmp_path: Path) -> None:
    flags = server_flags(options("--users", "1,4", "--loads", "3", "--", "--seed", "1"), tmp_path, 0)
    base, vllm, memos = (" ".join(flags[arm]) for arm in (BASE, VLLM, MEMOS))
    assert all(words.endswith("--seed 1") for words in (base, vllm, memos))
    lora = "--enable-lora --max-loras 4 --max-lora-rank 8 --max-cpu-loras 10"
    assert "lora" not in base and vllm == base.replace(" --seed 1", f" {lora} --seed 1")
    added = memos.removeprefix(vllm.removesuffix(" --seed 1"))
    assert added.split()[::2] == [
        "--memory-dir",
        "--memory-adapters",
        "--memory-splice",
        "--memory-adapter-gib",
        "--seed",
    ]


def test_made_adapters_are_the_same_for_the_same_seed_and_served(tmp_path: Path) -> None:
    base = BaseModel.read(str(BUNDLED))
    same, again, other = (
        make_adapter("maya", tmp_path / name, base, modules=("q_proj", "v_proj"), rank=4, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert same.files == again.files and same.files[WEIGHTS] != other.files[WEIGHTS]
    assert same.bytes == sum(map(len, same.files.values()))
    with Vault.open(tmp_path / "memory") as vault:
        added = AdapterRegistry(vault, base=base).add("maya", "style", AdapterFiles.read(same.folder), author="maya")
    assert (added.rank, added.scale, added.target_modules) == (4, 1.0, ("q_proj", "v_proj"))
    tensors = load_file(same.folder / WEIGHTS)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    product = tensors[f"{name}B.weight"].astype("float32") @ tensors[f"{name}A.weight"].astype("float32")
    assert (product**2).sum(axis=1).mean() ** 0.5 == pytest.approx(STRENGTH, rel=0.2)


def test_answers_must_be_the_same_on_both_and_of_each_user_alone() -> None:
    plain, hers = Answered([1, 2], [7, 8]), Answered([1, 2], [7, 9])
    check_same("maya", hers, Answered([1, 2], [7, 9]))
    with pytest.raises(CheckFailed, match=r"maya's adapter answers \[7, 8\] on memos and \[7, 9\] on vLLM"):
        check_same("maya", hers, plain)
    with pytest.raises(CheckFailed, match="another prompt"):
        check_same("maya", hers, Answered([1], [7, 9]))
    check_different(plain, {"maya": hers, "tom": Answered([1, 2], [7, 10])})
    with pytest.raises(CheckFailed, match="maya's adapter answers as the base model does"):
        check_different(plain, {"maya": plain})
    with pytest.raises(CheckFailed, match="tom's adapter answers as maya does"):
        check_different(plain, {"maya": hers, "tom": hers})


def asked_of(arm: str, handler: Handler, log: Path, use: Callable[[Side], Any]) -> Any:
    """What a use of an arm gives whose server answers like this."""
    log.write_text("a line\n")
    server = Server(arm, "http://test", log, process=None)  # type: ignore[arg-type]

    async def run() -> Any:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url="http://test") as http:
            return await use(Side(arm, server, http))

    return asyncio.run(run())


def answering(model: str, headers: dict[str, str] | None = None, *, tokens: int = 2) -> Handler:
    body = {"model": model, "prompt_token_ids": [1], "choices": [{"token_ids": list(range(tokens))}]}
    return lambda request: httpx.Response(200, json=body, headers=headers)


MAYA = Asked("maya", "Hello")


@pytest.mark.parametrize(
    ("arm", "handler", "complaint"),
    [
        (BASE, answering(SERVED_NAME), None),
        (VLLM, answering("maya"), None),
        (VLLM, answering("tom"), "with tom"),
        (VLLM, answering("maya", tokens=1), "answered 1 tokens, not 2"),
        (MEMOS, answering(f"{ADAPTER}@v1", {"x-memos-adapter": f"{ADAPTER}@v1"}), None),
        (MEMOS, answering(SERVED_NAME), "with model"),
        (MEMOS, answering(f"{ADAPTER}@v2", {"x-memos-adapter": f"{ADAPTER}@v2"}), "@v2"),
        (MEMOS, answering(SERVED_NAME, {"x-memos-adapter": "none", "x-memos-fallback": "unusable"}), "unusable"),
    ],
)
def test_whose_adapter_answered_is_looked_at(arm: str, handler: Handler, complaint: str | None, tmp_path: Path) -> None:
    def use(one: Side) -> Any:
        return one.answer(MAYA, 2)

    if complaint is None:
        assert asked_of(arm, handler, tmp_path / "log", use) == Answered([1], [0, 1])
        return
    with pytest.raises(CheckFailed, match=complaint):
        asked_of(arm, handler, tmp_path / "log", use)


def test_each_server_is_asked_in_its_own_way(tmp_path: Path) -> None:
    seen: list[tuple[str, str | None]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((json.loads(request.content)["model"], request.headers.get("x-memos-user-id")))
        named = {BASE: SERVED_NAME, VLLM: "maya", MEMOS: f"{ADAPTER}@v1"}[arm]
        return answering(named, {"x-memos-adapter": named})(request)

    for arm in (BASE, VLLM, MEMOS):
        assert asked_of(arm, handler, tmp_path / "log", lambda one: one.batch([MAYA] * 5, 2, 3)) > 0
    assert seen == [(SERVED_NAME, None)] * 5 + [("maya", None)] * 5 + [(SERVED_NAME, "maya")] * 5


def streaming(*events: dict[str, Any]) -> Handler:
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return lambda request: httpx.Response(200, text="".join([*lines, "data: [DONE]\n\n"]))


def test_a_stream_is_timed_and_looked_at(tmp_path: Path) -> None:
    empty = {"model": "maya", "choices": [{"token_ids": None}]}
    first = {"model": "maya", "choices": [{"token_ids": [5]}]}

    def timed(*events: dict[str, Any]) -> Any:
        return asked_of(VLLM, streaming(*events), tmp_path / "log", lambda one: one.first_token(MAYA))

    assert 0 < timed(empty, first) < 10
    with pytest.raises(ServerFailed, match="without tokens"):
        timed(empty)
    with pytest.raises(ServerFailed, match=r"broke off an answer .*no room"):
        timed(empty, {"error": "no room"})
    with pytest.raises(CheckFailed, match="answered maya with tom"):
        timed(first | {"model": "tom"})


def test_a_server_that_refuses_ends_the_run(tmp_path: Path) -> None:
    adapter = make_adapter("maya", tmp_path / "a", BaseModel.read(str(BUNDLED)), modules=("q_proj",), rank=1, seed=0)
    for arm, path in ((VLLM, "/v1/load_lora_adapter"), (MEMOS, "/v1/adapters")):
        with pytest.raises(ServerFailed, match=f"answered {path} with HTTP 500: oh"):
            asked_of(arm, lambda _: httpx.Response(500, text="oh"), tmp_path / "log", lambda one: one.register(adapter))
    inactive = httpx.Response(200, json={"active": None, "default": False})
    with pytest.raises(CheckFailed, match="was stored and does not answer"):
        asked_of(MEMOS, lambda _: inactive, tmp_path / "log", lambda one: one.register(adapter))
