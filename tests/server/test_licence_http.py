"""Memories with a licence: so many prompts, until a day, and no more; for nobody but their owner to read then."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from memos_vllm.cube import Grant, Header, Licence, MemCube, Plaintext
from memos_vllm.vault import Vault
from tests.server.conftest import Server
from tests.server.test_splice_http import ask, service

pytestmark = pytest.mark.server

QUESTION = "Where is the spare key?"
TEXT = "The spare key is under the blue pot."


@pytest.fixture
def vault(keyed_server: Server) -> Iterator[Vault]:
    with Vault.open(keyed_server.memory_dir) as vault:
        yield vault


def licensed(vault: Vault, owner: str, licence: Licence, *readers: str) -> str:
    header = Header(owner=owner, licence=licence, access=tuple(map(Grant, readers)))
    (cube,) = vault.add([MemCube(header, Plaintext(TEXT))], actor=owner)
    return cube.id


def used(server: Server, user: str, **headers: str) -> str:
    answer = ask(server, QUESTION, service(user, **headers), max_tokens=1)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-memos-cubes"]


def test_a_licence_for_two_prompts(keyed_server: Server, vault: Vault, user: str, other: str) -> None:
    cube = licensed(vault, user, Licence(max_accesses=2), other)
    assert used(keyed_server, user) == cube
    with keyed_server.http(**service(other)) as client:
        assert client.get(f"/v1/memories/{cube}").status_code == 200, "only prompts count"
        assert used(keyed_server, other, x_memos_cubes=cube) == cube
        assert client.get(f"/v1/memories/{cube}").status_code == 404
        assert client.post("/v1/memories/search", json={"query": "spare key"}).json()["results"] == []
    assert ask(keyed_server, QUESTION, service(other, x_memos_cubes=cube)).status_code == 404
    assert used(keyed_server, user) == ""
    with keyed_server.http(**service(user)) as client:
        assert client.get(f"/v1/memories/{cube}").json()["accesses"] == 2
        plan = client.post("/v1/memories/plan", json={"query": QUESTION}).json()
    assert [(left["id"], left["why"]) for left in plan["left_out"]] == [(cube, "its licence has ended")]


def test_prompts_at_the_same_time_share_what_is_left(keyed_server: Server, vault: Vault, user: str) -> None:
    cube = licensed(vault, user, Licence(max_accesses=3))
    with ThreadPoolExecutor(8) as pool:
        named = list(pool.map(lambda _: used(keyed_server, user), range(8)))
    assert sorted(named) == [""] * 5 + [cube] * 3
    assert vault.uses_of([cube])[cube].count == 3


def test_a_licence_that_is_over(keyed_server: Server, vault: Vault, user: str, other: str) -> None:
    cube = licensed(vault, user, Licence(expires="2020-01-01"), other)
    lasting = licensed(vault, user, Licence(expires="2090-01-01"))
    assert used(keyed_server, user) == lasting
    with keyed_server.http(**service(other)) as client:
        assert client.get(f"/v1/memories/{cube}").status_code == 404
    with keyed_server.http(**service(user)) as client:
        assert client.get(f"/v1/memories/{cube}").status_code == 200
