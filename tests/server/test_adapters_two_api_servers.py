"""Adapters behind two API servers: what one copies, loads, activates or removes is right for the other."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.server.adapter_cases import Streamed, adapter, add, chat, ids_of, write
from tests.server.conftest import Server, running_server
from tests.server.test_activation_http import metric, wait

pytestmark = pytest.mark.server

ROUNDS = 12
"""Connections, which the kernel spreads over the API servers."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("two-api-servers")
    plain = [f"plain-{seed}={write(folder / f'plain-{seed}', adapter(seed))}" for seed in (1, 2)]
    flags = (
        *("--api-server-count", "2", "--memory-splice", "off"),
        *("--memory-adapters", "named", "--memory-adapter-gib", "0.0001"),
        *("--max-loras", "2", "--max-cpu-loras", "2", "--max-lora-rank", "8", "--lora-modules", *plain),
    )
    with running_server(folder, *flags) as server:
        yield server


def clients(server: Server, user: str) -> Iterator[httpx.Client]:
    """A connection of its own each time."""
    for _ in range(ROUNDS):
        with server.http(**{"x-memos-user-id": user}) as client:
            yield client


def answers(server: Server, user: str, model: str) -> list[list[int]]:
    return [ids_of(chat(client, model)) for client in clients(server, user)]


def test_both_serve_what_one_took_in(server: Server) -> None:
    with server.http(**{"x-memos-user-id": "maya"}) as maya, server.http(**{"x-memos-user-id": "tom"}) as tom:
        expected = {seed: ids_of(chat(maya, f"plain-{seed}")) for seed in (1, 2)}
        assert expected[1] != expected[2]
        add(maya, "style", 1)
        add(tom, "style", 2)
        for user, seed in (("maya", 1), ("tom", 2), ("maya", 1)):
            assert answers(server, user, "style") == [expected[seed]] * ROUNDS
        streams = [Streamed(maya, "style"), Streamed(tom, "style")]
        add(maya, "style", 2)
        tom.delete("/v1/adapters/style").raise_for_status()
        assert answers(server, "maya", "style") == [expected[2]] * ROUNDS
        assert {chat(client, "style").status_code for client in clients(server, "tom")} == {404}
        whole = [ids_of(chat(maya, f"plain-{seed}", tokens=200)) for seed in (1, 2)]
        assert [stream.all_ids() for stream in streams] == whole
        wait(lambda: metric(maya, "memos_adapter_evictions_total") >= 1)
        assert answers(server, "maya", "style@v1") == [expected[1]] * ROUNDS
