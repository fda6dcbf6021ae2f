"""Search by meaning over HTTP, with a real model in the server's process."""

import time
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import API_ONLY, running_server
from tests.unit.embed_cases import embedding_server, minilm, openai_answer

pytestmark = pytest.mark.server


def found(client: httpx.Client, query: str, **fields: object) -> list[str]:
    answer = client.post("/v1/memories/search", json={"query": query, **fields})
    assert answer.status_code == 200, answer.text
    return [memory["memory"] for memory in answer.json()["results"]]


def wait_for(client: httpx.Client, *texts: str) -> None:
    """Until each memory is found by its own meaning: a score of 0 says that nothing was."""
    deadline = time.monotonic() + 60
    for text in texts:
        while True:
            answer = client.post("/v1/memories/search", json={"query": text, "using": ["dense"]})
            if any(memory["memory"] == text and memory["score"] > 0 for memory in answer.json()["results"]):
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_meaning_finds_what_words_do_not(tmp_path: Path) -> None:
    memories = ["My kitten naps on the couch.", "The mortgage rate went up."]
    with running_server(tmp_path, "--memory-embedder", minilm(), program=API_ONLY) as server:
        with server.http(**{"x-memos-user-id": "maya"}) as maya:
            for text in memories:
                maya.post("/v1/memories", json={"text": text}).raise_for_status()
            wait_for(maya, *memories)
            assert found(maya, "Where does the pet sleep?", top_k=1) == memories[:1]
            assert found(maya, "How expensive is the house loan?", top_k=1) == memories[1:]
        with server.http(**{"x-memos-user-id": "bo"}) as bo:
            assert found(bo, "Where does the pet sleep?") == []


def test_an_embedding_server_is_asked(tmp_path: Path) -> None:
    with (
        embedding_server(openai_answer) as (url, seen),
        running_server(
            tmp_path, "--memory-embedder", url, environ={"MEMOS_EMBEDDER_KEY": "secret"}, program=API_ONLY
        ) as server,
        server.http(**{"x-memos-user-id": "maya"}) as maya,
    ):
        maya.post("/v1/memories", json={"text": "tea by the lake"}).raise_for_status()
        wait_for(maya, "tea by the lake")
        assert found(maya, "tea?") == ["tea by the lake"]
        assert seen
        assert all(headers["authorization"] == "Bearer secret" for headers in seen)
