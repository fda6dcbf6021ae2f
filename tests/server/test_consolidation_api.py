"""What the scheduler proposes to a user, and the user's leave, on servers without an engine."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from memos_vllm.governance.consent import willing
from memos_vllm.scheduler.clock import DAY
from memos_vllm.vault import LogQuery, Vault
from tests.server.adapter_cases import error_of
from tests.server.conftest import API_ONLY, KEYS, SERVICE_KEY, Server, key_file, running_server
from tests.server.test_memories_api import add

pytestmark = pytest.mark.server

PATH = "/v1/me/consolidation"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("consolidation")
    flags = ("--memory-consolidate", "auto", "--memory-adapters", "auto", "--memory-keys", str(key_file(folder)))
    with running_server(folder, *flags, program=API_ONLY) as server:
        yield server


@pytest.fixture
def maya(server: Server) -> Iterator[httpx.Client]:
    with server.http(authorization=f"Bearer {KEYS['maya']}") as client:
        yield client


@pytest.fixture
def tom(server: Server) -> Iterator[httpx.Client]:
    with server.http(authorization=f"Bearer {KEYS['tom']}") as client:
        yield client


def often_used(server: Server, ids: list[str]) -> None:
    """As after weeks of chats: the vault is told of uses, and that the memories are old."""
    with Vault.open(server.memory_dir) as vault:
        vault.transition_all(ids, "activated", actor="maya")
        vault.add_uses(dict.fromkeys(ids, 12), time.time())


def test_a_user_is_told_what_an_adapter_should_know(server: Server, maya: httpx.Client, tom: httpx.Client) -> None:
    ids = [add(maya, text=text)["id"] for text in ("I live in Dakar.", "My favourite tea is sencha.")]
    often_used(server, ids)
    body = maya.get(PATH).json()
    assert (body["user_id"], body["mode"], body["adapter"], body["allowed"]) == ("maya", "auto", "consolidated", False)
    assert body["memories"] == [], f"nothing is unchanged for days, {DAY} seconds each"
    assert (body["worth"], body["saved_tokens"], body["training"]) == (False, 0, None)
    assert "allows it" in body["why_not"]
    assert tom.get(PATH).json()["user_id"] == "tom"


def test_leave_is_given_and_taken_back(server: Server, maya: httpx.Client) -> None:
    body = maya.put(PATH, json={"allowed": True}).json()
    assert body["allowed"] and body["why_not"].startswith("it would save")
    with Vault.open(server.memory_dir, readonly=True) as vault:
        assert willing(vault) == ["maya"]
        (entry,) = vault.log(LogQuery(owner="maya", action="consolidation.put"))
    assert (entry.actor, entry.target) == ("maya", "maya")
    assert maya.put(PATH, json={"allowed": False}).json()["allowed"] is False
    assert maya.get(PATH).json()["allowed"] is False
    maya.put(PATH, json={"allowed": True})
    assert maya.delete("/v1/me").json()["traces"] == {}
    with Vault.open(server.memory_dir, readonly=True) as vault:
        assert willing(vault) == []


def test_nobody_gives_it_for_others(server: Server, tom: httpx.Client) -> None:
    assert tom.put(PATH, json={"allowed": True, "user_id": "maya"}).status_code == 403
    assert tom.get(PATH, params={"user_id": "maya"}).status_code == 403
    with server.http() as nobody:
        assert nobody.get(PATH).status_code == 401
    with server.http(authorization=f"Bearer {SERVICE_KEY}") as service:
        assert service.get(PATH).status_code == 400, "it does not say for whom"
    with Vault.open(server.memory_dir, readonly=True) as vault:
        assert willing(vault) == []


def test_it_is_off_until_it_is_turned_on(keyed_api: Server) -> None:
    with keyed_api.http(authorization=f"Bearer {KEYS['maya']}") as client:
        for answer in (client.get(PATH), client.put(PATH, json={"allowed": True})):
            assert answer.status_code == 409 and "--memory-consolidate propose" in error_of(answer)
