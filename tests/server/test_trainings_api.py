"""The routes of trainings, on a server without an engine: whose they are, and that nobody else learns of them.

The tests hold the turn of trainings, so that those they begin wait and load no model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from memos_vllm.parameter.job import Jobs
from memos_vllm.parameter.recipe import recipe_from
from tests.server.adapter_cases import error_of
from tests.server.conftest import KEYS, SERVICE_KEY, Server
from tests.server.test_memories_api import add
from tests.unit.job_cases import turn_taken

pytestmark = pytest.mark.server

NOBODYS = "0198c0de7a1b7c3d9e5f6a7b8c9d0e1f"


@pytest.fixture
def waiting(keyed_api: Server) -> Iterator[Jobs]:
    jobs = Jobs(keyed_api.memory_dir)
    with turn_taken(jobs):
        yield jobs
        for owner in {status.owner for status in jobs.unfinished()}:
            jobs.forget(owner)


@pytest.fixture
def client(keyed_api: Server, waiting: Jobs, user: str) -> Iterator[httpx.Client]:
    """Speaks for a user nobody else has, with memories."""
    with keyed_api.http(authorization=f"Bearer {SERVICE_KEY}", **{"x-memos-user-id": user}) as client:
        for text in ("My favourite tea is sencha.", "I live in Dakar."):
            add(client, text=text)
        yield client


@pytest.fixture
def stranger(keyed_api: Server, waiting: Jobs, other: str) -> Iterator[httpx.Client]:
    with keyed_api.http(authorization=f"Bearer {SERVICE_KEY}", **{"x-memos-user-id": other}) as client:
        add(client, text="My favourite tea is oolong.")
        yield client


def train(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/adapters/train", json={"name": "mine", **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def state_of(client: httpx.Client, training: str, wanted: str) -> dict[str, Any]:
    """The training, once it is in a state."""
    deadline = time.monotonic() + 60
    while (body := client.get(f"/v1/adapters/train/{training}").json())["state"] != wanted:
        assert time.monotonic() < deadline, body
        time.sleep(0.05)
    return dict(body)


def test_a_training_is_begun_looked_at_and_cancelled(client: httpx.Client, waiting: Jobs, user: str) -> None:
    begun = train(client, recipe={"epochs": 1})
    assert (begun["owner"], begun["name"], begun["state"], begun["memories"]) == (user, "mine", "queued", 2)
    assert [one["id"] for one in client.get("/v1/adapters/train").json()["results"]] == [begun["id"]]
    second = client.post("/v1/adapters/train", json={"name": "other"})
    assert second.status_code == 409 and "let it end, go on with it" in error_of(second)
    resumed = client.post(f"/v1/adapters/train/{begun['id']}/resume")
    assert resumed.status_code in (200, 409)
    assert client.delete(f"/v1/adapters/train/{begun['id']}").status_code == 200
    ended = state_of(client, begun["id"], "cancelled")
    assert client.delete(f"/v1/adapters/train/{begun['id']}").json() == ended
    assert client.post(f"/v1/adapters/train/{begun['id']}/resume").status_code == 409
    ((spec, _),) = waiting.specs(user)
    assert spec.author == user and spec.recipe["device"] == "cpu" and not spec.proposed
    assert spec.checked_recipe() == recipe_from({"device": "cpu", "epochs": 1}), "what is not said is as it is measured"


def test_nobody_else_sees_cancels_or_goes_on_with_it(client: httpx.Client, stranger: httpx.Client) -> None:
    training = train(client)["id"]
    path = "/v1/adapters/train"
    for method, end in (("GET", ""), ("DELETE", ""), ("POST", "/resume")):
        theirs, nobodys = (stranger.request(method, f"{path}/{one}{end}") for one in (training, NOBODYS))
        assert theirs.status_code == nobodys.status_code == 404
        assert theirs.json() == {
            "error": {**nobodys.json()["error"], "message": error_of(nobodys).replace(NOBODYS, training)}
        }
    assert stranger.get(path).json() == {"results": []}
    assert client.get(f"{path}/{training}").json()["state"] == "queued"
    assert train(stranger)["state"] == "queued", "another's training takes nobody's place"


def test_nobody_else_trains_on_somebodys_memories(
    client: httpx.Client, stranger: httpx.Client, waiting: Jobs, user: str, other: str
) -> None:
    theirs = client.get("/v1/memories").json()["results"][0]["id"]
    for memory_id in (theirs, NOBODYS):
        refused = stranger.post("/v1/adapters/train", json={"name": "mine", "memory_ids": [memory_id]})
        assert refused.status_code == 400
        assert error_of(refused) == f"Memory {memory_id} is no text of {other!r} that can be learned; leave it out."
    own = train(stranger)
    assert own["memories"] == 1, "of all memories those of its owner are meant"
    ((spec, _),) = waiting.specs(other)
    assert theirs not in str(spec)
    for body in ({"adapter": f"{user}/mine"}, {"adapter": "mine"}):
        missing = stranger.post("/v1/adapters/retrain", json={**body, "without": [theirs]})
        assert missing.status_code == 404 and error_of(missing) == "There is no such adapter."


def test_a_key_speaks_for_its_own_user_alone(keyed_api: Server, client: httpx.Client, user: str) -> None:
    training = train(client)["id"]
    with keyed_api.http(authorization=f"Bearer {KEYS['tom']}") as tom:
        assert tom.get(f"/v1/adapters/train/{training}").status_code == 404
        for claim in ({"user_id": user}, {"owner": user}):
            assert tom.get("/v1/adapters/train", params=claim).status_code == 403
            assert tom.delete(f"/v1/adapters/train/{training}", params=claim).status_code == 403
        assert tom.post("/v1/adapters/train", json={"name": "mine", "user_id": user}).status_code == 403
        assert tom.post("/v1/adapters/train", params={"owner": user}, json={"name": "mine"}).status_code == 403
    with keyed_api.http() as nobody:
        assert nobody.get("/v1/adapters/train").status_code == 401
    assert client.get(f"/v1/adapters/train/{training}").json()["state"] == "queued"


def test_who_is_forgotten_has_no_trainings(client: httpx.Client, waiting: Jobs, user: str) -> None:
    training = train(client)["id"]
    forgotten = client.delete("/v1/me")
    assert forgotten.status_code == 200 and forgotten.json()["traces"] == {}
    assert client.get(f"/v1/adapters/train/{training}").status_code == 404
    left = [path for path in waiting.folder.rglob("*") if path.is_file() and user in path.read_text(errors="replace")]
    assert not (waiting.folder / training).exists() and left == []
    assert client.get("/v1/adapters/train").json() == {"results": []}
