"""`bench load`: the clock charges those who wait, errors are counted, figures are what they say."""

from __future__ import annotations

import asyncio
import csv
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_vllm.bench.checks import CheckFailed
from memos_vllm.bench.load import check
from memos_vllm.bench.load_client import TIMEOUT, Chats, Crowd, Outcome, Sample, add, at_rate, search
from memos_vllm.bench.load_options import LoadOptions
from memos_vllm.bench.load_report import Measured, Size, percentile, write_load
from memos_vllm.bench.options import read_options
from memos_vllm.errors import StartError

MACHINE = {"cpu": "Example CPU", "cores": 2, "memory_gib": 16.0, "gpus": [], "versions": {}}


def crowd() -> Crowd:
    made = Crowd(3, seed=0)
    for user in made.users:
        made.texts(user, 5)
    return made


async def stalled(http: httpx.AsyncClient, told: Crowd) -> Outcome:
    """The first request blocks everything for a while, as a server that stalls does."""
    if told.known.pop("stall", None):
        time.sleep(0.4)  # noqa: ASYNC251
    return Outcome()


def row_of(samples: Sequence[Sample], operation: str = "search", *, done: int = 0, failed: int = 0) -> Measured:
    beside = Chats(httpx.AsyncClient(), crowd(), 0)
    beside.done, beside.failed = done, failed
    return Measured.of("lexical", operation, 100, 1000, samples, beside, 0)


def test_those_who_wait_for_a_stall_are_charged() -> None:
    async def run() -> list[Sample]:
        told = crowd()
        told.known["stall"] = told.known[told.users[0]]
        async with httpx.AsyncClient() as http:
            return await at_rate(http, told, stalled, 50, 1.0)

    samples = asyncio.run(run())
    assert 25 < len(samples) < 80
    assert sum(sample.seconds > 0.1 for sample in samples) > 5, "all that came during the stall waited"


@pytest.mark.parametrize(
    ("status", "results", "error"),
    [
        (200, [{"user_id": "user-0", "memory": "x", "score": 0.5}], ""),
        (200, [], "nothing was found"),
        (200, [{"user_id": "user-0", "memory": "what is most recent", "score": 0.0}], "nothing was found"),
        (200, [{"user_id": "stranger", "memory": "x", "score": 0.5}], "a memory of another user"),
        (503, [], "HTTP 503"),
    ],
)
def test_a_wrong_answer_to_a_search_is_an_error(status: int, results: list[dict[str, Any]], error: str) -> None:
    async def run() -> Outcome:
        answer = httpx.MockTransport(lambda request: httpx.Response(status, json={"results": results}))
        told = crowd()
        told.users = ["user-0"]
        async with httpx.AsyncClient(transport=answer, base_url="http://test") as http:
            return await search(http, told)

    assert asyncio.run(run()) == Outcome(error)


def test_an_add_that_stores_something_else_is_an_error() -> None:
    async def run() -> Outcome:
        answer = httpx.MockTransport(lambda request: httpx.Response(200, json={"results": [{"memory": "else"}]}))
        async with httpx.AsyncClient(transport=answer, base_url="http://test") as http:
            return await add(http, crowd())

    assert asyncio.run(run()) == Outcome("another memory was stored")


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(1, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], percent: float) -> None:
    found = percentile(sorted(values), percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent / 100 * len(values) - 1e-9


def test_errors_count_and_are_named(tmp_path: Path) -> None:
    samples = [Sample(0.01, found=True)] * 97 + [Sample(10.5, "ReadTimeout")] + [Sample(0.001, "HTTP 503")] * 2
    row = row_of(samples)
    assert (row.requests, row.success, row.errors) == (100, 0.97, "2 HTTP 503; 1 ReadTimeout")
    assert (row.p50, row.p99, row.longest) == (0.01, TIMEOUT, 10.5), "an instant failure does not make a server fast"
    assert row.found == 1.0
    options = read_options(["load", "--out", str(tmp_path / "out"), "--seconds", "1"])
    assert isinstance(options, LoadOptions)
    write_load(options, MACHINE, [row, row_of(samples, "add")], [Size("lexical", 9, 1, 2, 3)])
    told = json.loads((options.out / "load.json").read_text())
    assert told["summary"][0]["p99"] == TIMEOUT and str(tmp_path) not in (options.out / "load.json").read_text()
    lines = (options.out / "load.csv").read_text().splitlines()
    assert [line["operation"] for line in csv.DictReader(lines)] == ["search", "add"]
    assert (options.out / "load.png").stat().st_size > 10_000


def test_the_memory_that_is_asked_for_is_noticed() -> None:
    told = crowd()
    told.users = ["user-0"]
    results = [{"user_id": "user-0", "memory": told.known["user-0"].statement, "score": 0.5}]

    async def run() -> Outcome:
        answer = httpx.MockTransport(lambda request: httpx.Response(200, json={"results": results}))
        async with httpx.AsyncClient(transport=answer, base_url="http://test") as http:
            return await search(http, told)

    assert asyncio.run(run()) == Outcome(found=True)


def test_what_is_measured_must_be_what_the_row_says() -> None:
    found, unfound = Sample(0.01, found=True), Sample(0.01)
    check(row_of([found] * 9 + [unfound]), chatting=False)
    check(row_of([unfound] * 10, "add", done=3, failed=1), chatting=True)
    with pytest.raises(CheckFailed, match="only 10%"):
        check(row_of([found] + [unfound] * 9), chatting=False)
    with pytest.raises(CheckFailed, match="0 chats were answered"):
        check(row_of([found]), chatting=True)
    with pytest.raises(CheckFailed, match="had no vector"):
        check(replace(row_of([found]), awaiting=11), chatting=False)


@pytest.mark.parametrize(
    ("words", "arms", "embedded"),
    [
        ([], ("lexical", "chatting"), 100_000),
        (["--arms", "chatting"], ("chatting",), 100_000),
        (["--embedder", "x"], ("lexical", "chatting", "fused"), 100_000),
        (["--embedder", "x", "--arms", "fused", "--embedded", "5000"], ("fused",), 5_000),
    ],
)
def test_a_part_can_be_measured_alone(words: list[str], arms: tuple[str, ...], embedded: int) -> None:
    options = read_options(["load", *words])
    assert isinstance(options, LoadOptions)
    assert (options.arms, options.embedded) == (arms, embedded)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--arms", "fused"], None),
        (["--arms", "lexical", "--embedder", "x"], None),
        (["--arms", "lexical,lexical"], "must be of lexical, chatting, fused"),
        (["--rates", "10,ten"], "must be whole numbers with commas between them"),
    ],
)
def test_arms_and_rates_that_make_no_sense_are_refused(
    words: list[str], complaint: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit if complaint else StartError, match=None if complaint else "--embedder"):
        read_options(["load", *words])
    assert (complaint or "") in capsys.readouterr().err


def test_more_users_than_memories_are_refused() -> None:
    with pytest.raises(StartError, match="--users"):
        read_options(["load", "--users", "10", "--memories", "5"])
    with pytest.raises(StartError, match="--users"):
        read_options(["load", "--users", "10", "--embedder", "x", "--embedded", "5"])
