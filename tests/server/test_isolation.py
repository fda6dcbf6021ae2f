"""Twenty tenants on one server: whatever they do, nobody sees text, ids, names, counts or scores of another."""

from __future__ import annotations

import concurrent.futures
import os
import statistics
import time
import uuid
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from memos_vllm.cube import new_id
from memos_vllm.governance import keys
from memos_vllm.vault import Vault
from tests.server.conftest import SERVICE_KEY, Server
from tests.server.isolation_life import Tenants
from tests.server.isolation_model import CLEARANCE
from tests.server.isolation_traffic import TENANTS, Doors
from tests.server.test_splice_http import ask

pytestmark = pytest.mark.server

HISTORIES = int(os.environ.get("MEMOS_ISOLATION_HISTORIES", "5"))
STEPS = 60
LEVEL = (0.6, 1.7)
"""Within which the ratio of two medians counts as the same time."""


@pytest.fixture(scope="module")
def doors(keyed_server: Server) -> Iterator[Doors]:
    """A service key that is cleared for everything, and one that is not."""
    with Vault.open(keyed_server.memory_dir) as vault, keyed_server.http() as http:
        key_id, limited = keys.create(vault, clearance=CLEARANCE, actor="operator:test")
        yield Doors(http, SERVICE_KEY, limited, vault)
        keys.revoke(vault, key_id, actor="operator:test")


def test_no_history_of_twenty_tenants_shows_one_to_another(doors: Doors) -> None:
    run_state_machine_as_test(
        lambda: Tenants(doors),  # type: ignore[arg-type]
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=STEPS,
            deadline=None,
            phases=[Phase.generate],  # a history on a real server is not worth the hours that shrinking takes
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@pytest.mark.parametrize("door", ["", "/history", "/versions", "/provenance", "/access"])
def test_time_does_not_tell_whether_a_private_memory_exists(open_api: Server, user: str, other: str, door: str) -> None:
    private = open_api.remember(user, *(f"Note {number}: the lantern is in box {number}." for number in range(40)))
    with open_api.http(**{"x-memos-user-id": other}) as http:
        pairs = [(f"/v1/memories/{cube}{door}", f"/v1/memories/{new_id()}{door}") for cube in private * 5]
        _check_same_time(http, pairs, 404)


def test_time_does_not_tell_whom_the_audit_log_knows(open_api: Server, user: str, other: str) -> None:
    open_api.remember(user, "I was here.")
    open_api.remember(other, *(f"Note {number}." for number in range(400)))
    with open_api.http(**{"x-memos-user-id": other}) as http:
        assert http.get(f"/v1/audit?actor={user}").json() == http.get("/v1/audit?actor=nobody-ever").json()
        pairs = [(f"/v1/audit?actor={user}", f"/v1/audit?actor=nobody-{number:06d}") for number in range(40)]
        _check_same_time(http, pairs, 200)


def _check_same_time(http: httpx.Client, pairs: list[tuple[str, str]], status: int) -> None:
    """Of paths to what is there and to what is not."""

    def seconds(path: str) -> float:
        began = time.perf_counter()
        assert http.get(path).status_code == status
        return time.perf_counter() - began

    times = [(seconds(there), seconds(missing)) for there, missing in pairs]
    there, missing = (statistics.median(some) for some in zip(*times, strict=True))
    assert LEVEL[0] < there / missing < LEVEL[1], f"{there * 1e3:.2f} ms against {missing * 1e3:.2f} ms"


def test_chats_of_twenty_tenants_at_a_time_use_nobody_elses_memories(keyed_server: Server) -> None:
    run = uuid.uuid4().hex[:8]
    towns = {f"guest-{run}-{number}": f"Zq{uuid.uuid4().hex[:6]}" for number in range(TENANTS)}
    own: dict[str, set[str]] = {}

    def chat(tenant: str) -> list[httpx.Response]:
        who = {"authorization": f"Bearer {SERVICE_KEY}", "x-memos-user-id": tenant}
        with keyed_server.http(**who) as http:
            texts = [f"My home town is {towns[tenant]}.", "The train was late on Monday."]
            messages = [{"role": "user", "content": text} for text in texts]
            added = http.post("/v1/memories", json={"messages": messages}).raise_for_status()
            own[tenant] = {memory["id"] for memory in added.json()["results"]}
        return [ask(keyed_server, "What is my home town?", who) for _ in range(3)]

    with concurrent.futures.ThreadPoolExecutor(TENANTS) as pool:
        answers = dict(zip(towns, pool.map(chat, towns), strict=True))
    for tenant, replies in answers.items():
        for reply in replies:
            assert reply.status_code == 200, reply.text
            used = reply.headers["x-memos-cubes"].split(",")
            assert used[0] and {*used} <= own[tenant]
            raw = reply.text + repr(reply.headers.raw)
            assert not [town for other, town in towns.items() if other != tenant and town in raw]
