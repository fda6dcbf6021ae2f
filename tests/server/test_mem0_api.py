"""mem0's paths and shapes: by its own client where there is one, and by requests like its own everywhere."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import API_ONLY, KEYS, SERVICE_KEY, Server, running_server
from tests.server.test_memories_api import refusal, texts

pytestmark = pytest.mark.server

MEM0_PYTHON = os.environ.get("MEMOS_TEST_MEM0_PYTHON") or (sys.executable if importlib.util.find_spec("mem0") else "")
"""An interpreter with `mem0ai`, which does not go together with vLLM's protobuf."""


@pytest.fixture
def maya(keyed_api: Server) -> Iterator[httpx.Client]:
    """As mem0's client speaks: the key as a token, paths with a slash at their end."""
    with keyed_api.http(authorization=f"Token {KEYS['maya']}") as client:
        client.delete("/v1/memories/").raise_for_status()
        yield client


def results(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return list(answer.json()["results"])


def test_a_key_is_good_or_not(maya: httpx.Client, keyed_api: Server) -> None:
    assert maya.get("/v1/ping/").json()["status"] == "ok"
    with keyed_api.http(authorization="Token sk-wrong") as stranger:
        refusal(stranger.get("/v1/ping/"), 401)


@pytest.mark.parametrize("path", ["/v1/memories/", "/v3/memories/add/"])
def test_adding(maya: httpx.Client, path: str) -> None:
    body = {"messages": [{"role": "user", "content": "I row."}], "user_id": "maya", "infer": False, "version": "v2"}
    (memory,) = results(maya.post(path, json=body))
    assert (memory["memory"], memory["event"], memory["user_id"]) == ("I row.", "ADD", "maya")
    assert maya.get(f"/v1/memories/{memory['id']}/").json()["memory"] == "I row."


@pytest.mark.parametrize("path", ["/v1/memories/search/", "/v2/memories/search/", "/v3/memories/search/"])
def test_searching(maya: httpx.Client, path: str) -> None:
    for text, topic in (("Tea at five.", "habit"), ("Tea is from China.", "fact")):
        maya.post("/v1/memories/", json={"text": text, "metadata": {"topic": topic}})
    filters = {"AND": [{"user_id": "maya"}, {"metadata": {"topic": "fact"}}, {"created_at": {"gte": "2020-01-01"}}]}
    assert texts(maya.post(path, json={"query": "tea", "filters": filters})) == ["Tea is from China."]
    either = {"OR": [{"topic": "fact"}, {"topic": "habit"}]}
    assert len(results(maya.post(path, json={"query": "tea", "filters": either}))) == 2
    refusal(maya.post(path, json={"query": "tea", "filters": {"NOT": [{"topic": "fact"}]}}), 400)


@pytest.mark.parametrize("path", ["/v2/memories/", "/v3/memories/"])
def test_listing_in_pages(maya: httpx.Client, path: str) -> None:
    for number in range(3):
        maya.post("/v1/memories/", json={"text": f"fact {number}", "run_id": f"run {number % 2}"})
    body = {"filters": {"user_id": "maya"}}
    first = maya.post(path, json=body, params={"page": 1, "page_size": 2}).json()
    assert (first["count"], [memory["memory"] for memory in first["results"]]) == (3, ["fact 2", "fact 1"])
    assert first["previous"] is None
    last = maya.post(path, json=body, params={"page": 2, "page_size": 2}).json()
    assert ([memory["memory"] for memory in last["results"]], last["next"]) == (["fact 0"], None)
    of_run = maya.post(path, json={"filters": {"AND": [{"user_id": "maya"}, {"run_id": "run 0"}]}}).json()
    assert of_run["count"] == 2


def test_pages_of_a_list_leave_out_what_expired(maya: httpx.Client) -> None:
    for number in range(5):
        expires = "2020-01-01" if number in (1, 4) else ""
        maya.post("/v1/memories/", json={"text": f"fact {number}", "expires": expires, "run_id": "run"})
    whole = maya.get("/v1/memories/").json()
    assert (whole["count"], texts_in(whole), whole.get("next")) == (3, ["fact 3", "fact 2", "fact 0"], None)
    filtered = maya.get("/v1/memories/", params={"run_id": "run", "page_size": 2}).json()
    assert (filtered["count"], texts_in(filtered)) == (3, ["fact 3", "fact 2"]) and filtered["next"]
    read, path = [], "/v1/memories/?page=1&page_size=2"
    while path:
        page = maya.get(path).json()
        read += texts_in(page)
        path = page.get("next")
    assert read == ["fact 3", "fact 2", "fact 0"]
    assert maya.get("/v1/memories/", params={"page": 9}).json()["results"] == []


def texts_in(page: dict[str, Any]) -> list[str]:
    return [memory["memory"] for memory in page["results"]]


def test_a_history_is_a_plain_list(maya: httpx.Client) -> None:
    (memory,) = results(maya.post("/v1/memories/", json={"text": "I row."}))
    maya.put(f"/v1/memories/{memory['id']}/", json={"text": "I run."})
    history = maya.get(f"/v1/memories/{memory['id']}/history/").json()
    assert [(change["event"], change["new_memory"]) for change in history] == [("ADD", "I row."), ("UPDATE", "I run.")]


def test_batches_are_all_or_none(maya: httpx.Client) -> None:
    ids = [results(maya.post("/v1/memories/", json={"text": text}))[0]["id"] for text in ("one", "two")]
    batch = {"memories": [{"memory_id": ids[0], "text": "first"}, {"memory_id": "0" * 32, "text": "lost"}]}
    refusal(maya.put("/v1/batch/", json=batch), 404)
    assert texts(maya.get("/v1/memories")) == ["one", "two"]
    assert maya.put("/v1/batch/", json={"memories": batch["memories"][:1]}).status_code == 200
    assert maya.request("DELETE", "/v1/batch/", json={"memories": [{"memory_id": ids[1]}]}).status_code == 200
    assert texts(maya.get("/v1/memories")) == ["first"]


def test_metadata_alone_brings_no_older_text_back(maya: httpx.Client) -> None:
    (memory,) = results(maya.post("/v1/memories/", json={"text": "one"}))
    twice = [{"memory_id": memory["id"], "text": "two"}, {"memory_id": memory["id"], "metadata": {"n": 1}}]
    refusal(maya.put("/v1/batch/", json={"memories": twice}), 409)
    assert maya.put("/v1/batch/", json={"memories": twice[1:]}).status_code == 200
    changed = maya.get(f"/v1/memories/{memory['id']}/").json()
    assert (changed["memory"], changed["metadata"], changed["version"]) == ("one", {"n": 1}, 2)


@pytest.mark.parametrize("path", ["/v1/memories/", "/v1/memories"])
def test_deleting_a_run_leaves_the_others(maya: httpx.Client, path: str) -> None:
    for run in ("s1", "s2", "s1"):
        maya.post("/v1/memories/", json={"text": f"said in {run}", "run_id": run})
    assert texts(maya.get(path, params={"run_id": "s2"})) == ["said in s2"]
    assert maya.delete(path, params={"user_id": "maya", "run_id": "s1"}).json()["deleted"] == 2
    assert texts(maya.get("/v1/memories")) == ["said in s2"]
    for mistyped in ({"filters": "{'run_id': 's2'}"}, {"runid": "s2"}, {"run_id": "s1", "session_id": "s2"}):
        assert repr(max(mistyped)) in refusal(maya.delete(path, params=mistyped), 400)
    assert maya.delete(path, params={"run_id": "s1", "org_id": "o", "project_id": "p"}).json()["deleted"] == 0
    assert texts(maya.get("/v1/memories")) == ["said in s2"]
    assert maya.delete("/v2/entities/run/s2/").json()["deleted"] == 1


def test_entities_are_ones_own(maya: httpx.Client) -> None:
    maya.post("/v1/memories/", json={"text": "I row."})
    assert [entity["name"] for entity in results(maya.get("/v1/entities/"))] == ["maya"]
    refusal(maya.delete("/v2/entities/user/tom/"), 404)
    assert maya.delete("/v2/entities/user/maya/").json()["deleted"] == 1


@pytest.mark.parametrize(
    "path", ["/v1/memories/search/", "/v2/memories/search/", "/v3/memories/search/", "/v3/memories/"]
)
@pytest.mark.parametrize("filters", [{"user_id": "tom"}, {"AND": [{"user_id": "tom"}]}])
def test_a_user_in_filters_is_a_claim_like_any_other(maya: httpx.Client, path: str, filters: dict[str, Any]) -> None:
    refusal(maya.post(path, json={"query": "tea", "filters": filters}), 403)


def test_filters_say_for_whom_a_service_key_speaks(keyed_api: Server, user: str) -> None:
    with keyed_api.http(authorization=f"Token {SERVICE_KEY}") as client:
        added = client.post("/v3/memories/add/", json={"messages": "I row.", "filters": {"user_id": user}})
        assert [memory["user_id"] for memory in results(added)] == [user]
        assert client.post("/v3/memories/", json={"filters": {"AND": [{"user_id": user}]}}).json()["count"] == 1
        refusal(client.post("/v3/memories/", json={"filters": {"user_id": "*"}}), 400)


def test_strangers_get_nowhere(keyed_api: Server) -> None:
    with keyed_api.http() as stranger:
        for path in ("/v3/memories/add/", "/v3/memories/search/", "/v2/memories/"):
            refusal(stranger.post(path, json={"text": "x", "query": "x", "user_id": "maya"}), 401)


def test_a_strangers_body_is_not_even_read(keyed_api: Server) -> None:
    """The answer comes while most of the body is still to be sent."""
    address = keyed_api.url.removeprefix("http://").split(":")
    for path in ("/v2/memories/", "/v3/memories/add/", "/v1/memories"):
        with socket.create_connection((address[0], int(address[1])), timeout=10) as stranger:
            head = ["Host: x", "Content-Type: application/json", "Content-Length: 9000000", "", '{"text"']
            stranger.sendall("\r\n".join([f"POST {path} HTTP/1.1", *head]).encode())
            assert stranger.recv(12) == b"HTTP/1.1 401"


def test_vllms_own_key_does_not_leave_v3_open(tmp_path: Path) -> None:
    with running_server(tmp_path, "--api-key", "sk-vllm", program=API_ONLY) as server, server.http() as stranger:
        refusal(stranger.post("/v3/memories/search/", json={"query": "tea", "user_id": "maya"}), 404)
        assert stranger.post("/v1/memories/search/", json={"query": "tea", "user_id": "maya"}).status_code == 401


@pytest.mark.skipif(not MEM0_PYTHON, reason="needs mem0ai: MEMOS_TEST_MEM0_PYTHON names an interpreter that has it")
def test_mem0s_own_client_works_unchanged(keyed_api: Server, tmp_path: Path) -> None:
    script = Path(__file__).with_name("mem0_session.py")
    environ = {**os.environ, "MEM0_TELEMETRY": "False", "MEM0_DIR": str(tmp_path)}
    arguments = [MEM0_PYTHON, str(script), keyed_api.url, KEYS["tom"], "tom"]
    run = subprocess.run(arguments, capture_output=True, text=True, env=environ, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["add"]["results"][0]["memory"] == "My favourite tea is oolong."
    assert [memory["memory"] for memory in told["search"]["results"]] == ["My favourite tea is oolong."]
    assert told["get"]["metadata"] == {"topic": "tea", "run_id": "s1"}
    assert (told["get_all"]["count"], told["page"]["count"]) == (2, 1)
    assert (told["update"]["memory"], told["update"]["version"]) == ("My favourite tea is sencha.", 2)
    assert [change["event"] for change in told["history"]] == ["ADD", "UPDATE"]
    assert told["users"]["results"][0]["name"] == "tom"
    assert told["moved"] == "I live in Porto."
    assert (told["delete_run"]["deleted"], told["delete_all"]["deleted"]) == (1, 1)
    assert (told["delete"]["deleted"], told["left"], told["missing"]) == (1, 0, "MemoryNotFoundError")
    assert told["async"] == ["I row on Sundays."]
