"""The adapter routes, on servers without an engine: what is stored, told, exported, and to whom."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load

from memos_vllm.vault import LogQuery, Vault
from tests.server.adapter_cases import CONFIG, WEIGHTS, adapter, add, error_of, upload, weights_of
from tests.server.conftest import KEYS, SERVICE_KEY, Server

pytestmark = pytest.mark.server


@pytest.fixture
def client(keyed_api: Server, user: str) -> Iterator[httpx.Client]:
    """Speaks for a user nobody else has."""
    with keyed_api.http(authorization=f"Bearer {SERVICE_KEY}", **{"x-memos-user-id": user}) as client:
        yield client


@pytest.fixture
def stranger(keyed_api: Server, other: str) -> Iterator[httpx.Client]:
    with keyed_api.http(authorization=f"Bearer {SERVICE_KEY}", **{"x-memos-user-id": other}) as client:
        yield client


def post(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_versions_are_added_activated_and_taken_back(client: httpx.Client, user: str) -> None:
    first = add(client, "style", 1, tags=["work", "style"])
    assert (first["name"], first["owner"], first["active"], first["default"]) == ("style", user, 1, True)
    (version,) = first["versions"]
    assert (version["model"], version["rank"], version["scale"], version["tags"]) == (
        *("style@v1", 4, 2.0),
        ["work", "style"],
    )
    assert version["author"] == user and version["bytes"] > 10_000
    second = add(client, "style", 2, activate=False)
    assert second["active"] == 1 and [one["version"] for one in second["versions"]] == [1, 2]
    assert second["versions"][0]["digest"] != second["versions"][1]["digest"]
    assert post(client, "/v1/adapters/style/activate")["active"] == 2
    assert post(client, "/v1/adapters/style/activate", version=1)["active"] == 1
    assert post(client, "/v1/adapters/style/rollback")["active"] == 2
    assert "active" not in post(client, "/v1/adapters/style/deactivate")
    assert client.get(f"/v1/adapters/{user}/style").json() == client.get("/v1/adapters/style").json()
    assert client.post("/v1/adapters/style/activate", json={"version": 3}).status_code == 404


def test_memories_are_listed_and_deleted_without_adapters(client: httpx.Client) -> None:
    add(client, "style", 1)
    post(client, "/v1/memories", text="I like oolong.")
    for answer in (client.get("/v1/memories").json(), client.get("/v1/memories", params={"limit": 1}).json()):
        assert [memory["memory"] for memory in answer["results"]] == ["I like oolong."]
    assert client.delete("/v1/memories").json()["deleted"] == 1
    assert client.get("/v1/memories").json()["results"] == []
    assert client.get("/v1/adapters/style").json()["active"] == 1


def test_one_version_or_all_are_removed(client: httpx.Client, keyed_api: Server) -> None:
    add(client, "style", 1)
    body = add(client, "style", 2)
    assert client.delete("/v1/adapters/style", params={"version": 2}).status_code == 409, "the active one stays"
    assert client.delete("/v1/adapters/style", params={"version": 1}).json() == {"name": "style", "version": 1}
    assert [one["version"] for one in client.get("/v1/adapters/style").json()["versions"]] == [2]
    assert client.delete("/v1/adapters/style").json() == {"name": "style"}
    assert (
        client.get("/v1/adapters/style").status_code == 404 and client.delete("/v1/adapters/style").status_code == 404
    )
    assert list((keyed_api.memory_dir / "adapters").glob(f"{body['id']}*")) == []
    with Vault.open(keyed_api.memory_dir, readonly=True) as vault:
        actions = [entry.action for entry in vault.log(LogQuery(target=body["id"]))]
    assert actions[0] == "add" and actions[-1] == "delete" and "adapter.activate" in actions


def test_an_export_is_what_was_added(client: httpx.Client) -> None:
    add(client, "style", 1)
    add(client, "style", 2)
    for version, seed in ((1, 1), (2, 2)):
        answer = client.get(f"/v1/adapters/style/files/{WEIGHTS}", params={"version": version})
        weights = load(answer.content)
        assert {name: tensor.tolist() for name, tensor in weights.items()} == {
            name: tensor.tolist() for name, tensor in weights_of(seed).items()
        }
    config = client.get(f"/v1/adapters/style/files/{CONFIG}").json()
    assert (config["r"], config["lora_alpha"], sorted(config["target_modules"])) == (4, 8, ["q_proj", "v_proj"])
    assert client.get("/v1/adapters/style/files/adapter_model.bin").status_code == 400


@pytest.mark.parametrize(
    "extra",
    [{"base_model_name_or_path": "/etc/tiny"}, {"revision": "/etc"}, {"auto_mapping": {"base_model_class": "/etc"}}],
)
def test_what_a_client_wrote_into_the_configuration_goes_nowhere(client: httpx.Client, extra: dict[str, Any]) -> None:
    answer = upload(client, "style", adapter(1, **extra))
    assert answer.status_code == 200, answer.text
    assert "/etc" not in client.get(f"/v1/adapters/style/files/{CONFIG}").text + client.get("/v1/adapters").text


def test_readers_see_what_they_may_use_and_no_more(
    client: httpx.Client, stranger: httpx.Client, user: str, other: str
) -> None:
    cube = add(client, "style", 1, tags=["private"])["id"]
    assert stranger.get(f"/v1/adapters/{user}/style").status_code == 404
    post(client, f"/v1/memories/{cube}/access", principal=other, rights=["read"])
    seen = stranger.get(f"/v1/adapters/{user}/style").json()
    assert seen["model"] == f"{user}/style" and seen["versions"][0]["model"] == f"{user}/style@v1"
    assert not {"access", "author", "tags", "parents", "metadata"} & {*seen, *seen["versions"][0]}
    assert stranger.get("/v1/adapters").json()["results"] == [seen]
    assert stranger.delete(f"/v1/adapters/{user}/style").status_code == 403
    assert stranger.get("/v1/adapters/style").status_code == 404


def test_uploads_say_how_long_they_are(client: httpx.Client) -> None:
    def stream() -> Iterator[bytes]:
        yield b"--x\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/v1/adapters", content=stream(), headers=headers)
    assert answer.status_code == 400 and "Content-Length" in error_of(answer)
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
    connection.putrequest("POST", "/v1/adapters")
    for name, value in (*client.headers.items(), *headers.items(), ("content-length", str(1 << 40))):
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413, "refused before a byte of it is sent"
    connection.close()


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({CONFIG: b"{}"}, WEIGHTS),
        ({CONFIG: b"{}", "adapter_model.bin": b"\x80"}, "adapter_model.bin"),
        ({CONFIG: b"{}", f"../{WEIGHTS}": b""}, WEIGHTS),
        ({CONFIG: b"no json", WEIGHTS: b""}, ""),
        (adapter(1) | {"readme.md": b""}, "readme.md"),
    ],
)
def test_other_files_are_refused(client: httpx.Client, files: dict[str, bytes], told: str) -> None:
    answer = upload(client, "style", files)
    assert answer.status_code == 400 and told in error_of(answer)
    assert client.get("/v1/adapters").json() == {"results": []}


def test_the_key_says_whose_adapter_it_is(keyed_api: Server) -> None:
    with keyed_api.http(authorization=f"Bearer {KEYS['maya']}") as maya:
        answer = upload(maya, "style", adapter(1), user_id="tom")
        assert answer.status_code == 200 and answer.json()["owner"] == "maya", "the form names nobody else"
        assert maya.delete("/v1/adapters/style").status_code == 200
        assert maya.get("/v1/adapters", params={"user_id": "tom"}).status_code == 403


def test_being_forgotten_takes_adapters_along(client: httpx.Client, keyed_api: Server) -> None:
    body = add(client, "style", 1)
    client.delete("/v1/me").raise_for_status()
    assert client.get("/v1/adapters").json() == {"results": []}
    assert list((keyed_api.memory_dir / "adapters").glob(f"{body['id']}*")) == []


def test_a_training_is_started_watched_and_cancelled(
    client: httpx.Client, stranger: httpx.Client, keyed_api: Server
) -> None:
    assert client.post("/v1/adapters/train", json={"name": "facts"}).status_code == 400, "there is nothing to learn"
    post(client, "/v1/memories", text="My favourite tea is oolong.", tags=["tea"])
    refused = client.post("/v1/adapters/train", json={"name": "facts", "recipe": {"rank": 500}})
    assert refused.status_code == 400 and "rank" in error_of(refused)
    job = post(client, "/v1/adapters/train", name="facts", tags=["tea"], recipe={"epochs": 200})
    assert (job["name"], job["state"]) == ("facts", "queued")
    path = f"/v1/adapters/train/{job['id']}"
    assert client.get("/v1/adapters/train").json()["results"][0]["id"] == job["id"]
    for answer in (stranger.get(path), stranger.delete(path), stranger.post(f"{path}/resume", json={})):
        assert answer.status_code == 404
    assert stranger.get("/v1/adapters/train").json() == {"results": []}
    client.delete(path).raise_for_status()
    deadline = time.monotonic() + 60
    while client.get(path).json()["state"] != "cancelled":
        assert time.monotonic() < deadline, client.get(path).text
        time.sleep(0.2)
    spec = json.loads((Path(keyed_api.memory_dir) / "jobs" / job["id"] / "spec.json").read_bytes())
    assert len(spec["cubes"]) == 1 and spec["recipe"]["device"] == "cpu"
    client.delete("/v1/me").raise_for_status()
    assert not (keyed_api.memory_dir / "jobs" / job["id"]).exists()
