"""`bench load`: the clock charges those who wait, errors are counted, figures are what they say."""

from __future__ import annotations

import asyncio
import csv
import json
import time
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_vllm.bench.load_client import Crowd, Sample, add, at_rate, search
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


async def stalled(http: httpx.AsyncClient, told: Crowd) -> str:
    """The first request blocks everything for a while, as a server that stalls does."""
    if not told.known.pop("stall", None):
        return ""
    time.sleep(0.4)  # noqa: ASYNC251
    return ""


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
        (200, [{"user_id": "user-0", "memory": "x"}], ""),
        (200, [], "nothing was found"),
        (200, [{"user_id": "stranger", "memory": "x"}], "a memory of another user"),
        (503, [], "HTTP 503"),
    ],
)
def test_a_wrong_answer_to_a_search_is_an_error(status: int, results: list[dict[str, str]], error: str) -> None:
    async def run() -> str:
        answer = httpx.MockTransport(lambda request: httpx.Response(status, json={"results": results}))
        told = crowd()
        told.users = ["user-0"]
        async with httpx.AsyncClient(transport=answer, base_url="http://test") as http:
            return await search(http, told)

    assert asyncio.run(run()) == error


def test_an_add_that_stores_something_else_is_an_error() -> None:
    async def run() -> str:
        answer = httpx.MockTransport(lambda request: httpx.Response(200, json={"results": [{"memory": "else"}]}))
        async with httpx.AsyncClient(transport=answer, base_url="http://test") as http:
            return await add(http, crowd())

    assert asyncio.run(run()) == "another memory was stored"


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(1, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], percent: float) -> None:
    found = percentile(sorted(values), percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent / 100 * len(values) - 1e-9


def test_errors_count_and_are_named(tmp_path: Path) -> None:
    samples = [Sample(0.01)] * 97 + [Sample(10.0, "ReadTimeout")] * 2 + [Sample(0.02, "HTTP 503")]
    row = Measured.of("lexical", "search", 100, samples, 0, 0)
    assert (row.requests, row.success, row.errors) == (100, 0.97, "2 ReadTimeout; 1 HTTP 503")
    assert (row.p50, row.p99, row.longest) == (0.01, 10.0, 10.0)
    options = read_options(["load", "--out", str(tmp_path / "out"), "--seconds", "1"])
    assert isinstance(options, LoadOptions)
    write_load(
        options, MACHINE, [row, Measured.of("lexical", "add", 100, samples, 0, 0)], [Size("lexical", 9, 1, 2, 3)]
    )
    told = json.loads((options.out / "load.json").read_text())
    assert told["summary"][0]["p99"] == 10.0 and str(tmp_path) not in (options.out / "load.json").read_text()
    lines = (options.out / "load.csv").read_text().splitlines()
    assert [line["operation"] for line in csv.DictReader(lines)] == ["search", "add"]
    assert (options.out / "load.png").stat().st_size > 10_000


def test_more_users_than_memories_are_refused() -> None:
    with pytest.raises(StartError, match="--users"):
        read_options(["load", "--users", "10", "--memories", "5"])
