"""Spliced memories over HTTP: the right answers, honest headers, nothing left behind for others."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.server.conftest import KEYS, MODEL_NAME, SERVICE_KEY, Server

pytestmark = pytest.mark.server

QUESTION = "What is my favourite tea?"
QUESTIONS = {"What is my favourite tea?": "tea", "Where do I live?": "town", "What is my dog called?": "dog"}
FACTS = {
    "maya": {"tea": "oolong", "town": "Lisbon", "dog": "Biscuit"},
    "tom": {"tea": "rooibos", "town": "Krakow", "dog": "Shadow"},
}


def sentences(user: str) -> list[str]:
    facts = FACTS[user]
    return [
        f"My favourite tea is {facts['tea']}.",
        f"My home town is {facts['town']}.",
        f"My dog is {facts['dog']}.",
        "The train was late on Monday because of the rain.",
    ]


def ask(server: Server, question: str, headers: dict[str, str], **extra: Any) -> httpx.Response:
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 24,
    }
    with server.http(**headers) as client:
        return client.post("/v1/chat/completions", json=body | extra)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def wait_for_kv(server: Server, headers: dict[str, str], question: str = "What is my favourite tea?") -> httpx.Response:
    """Ask until every cube of the answer came from KV; the capture runs in the background."""
    deadline = time.monotonic() + 60
    while True:
        answer = ask(server, question, headers, max_tokens=1)
        assert answer.status_code == 200, answer.text
        if "x-memos-fallback" not in answer.headers and int(answer.headers["x-memos-spliced-tokens"]):
            return answer
        assert time.monotonic() < deadline, dict(answer.headers)
        time.sleep(0.2)


@pytest.fixture(scope="module")
def told(keyed_server: Server) -> Server:
    """The server, once both users have told it their facts, and nothing else, and their K/V are there."""
    for user, key in KEYS.items():
        with keyed_server.http(authorization=f"Bearer {key}") as client:
            client.delete("/v1/memories").raise_for_status()
            messages = [{"role": "user", "content": sentence} for sentence in sentences(user)]
            client.post("/v1/memories", json={"messages": messages}).raise_for_status()
        wait_for_kv(keyed_server, {"authorization": f"Bearer {key}"})
    return keyed_server


def service(user: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {SERVICE_KEY}", "x-memos-user-id": user} | {
        name.replace("_", "-"): value for name, value in more.items()
    }


def ids_of(server: Server, user: str) -> list[str]:
    """The user's memories, oldest first."""
    with server.http(**service(user)) as client:
        return sorted(memory["id"] for memory in client.get("/v1/memories").json()["results"])


@pytest.mark.parametrize("user", KEYS)
@pytest.mark.parametrize(("question", "topic"), QUESTIONS.items())
def test_each_user_gets_the_own_fact(told: Server, user: str, question: str, topic: str) -> None:
    """Chat, streamed chat and Responses, through the unchanged OpenAI client."""
    client, fact = told.openai(KEYS[user]), FACTS[user][topic]
    messages: Any = [{"role": "user", "content": question}]
    chat = client.chat.completions.create(model=MODEL_NAME, messages=messages, temperature=0, max_tokens=24)
    stream = client.chat.completions.create(
        model=MODEL_NAME, messages=messages, temperature=0, max_tokens=24, stream=True
    )
    response = client.responses.create(model=MODEL_NAME, input=question, temperature=0, max_output_tokens=24)
    assert fact in (chat.choices[0].message.content or "")
    assert fact in "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert fact in response.output_text


def test_a_stranger_gets_nobodys_fact(told: Server) -> None:
    known = {fact for facts in FACTS.values() for fact in facts.values()}
    for question in QUESTIONS:
        answer = ask(told, question, service("stranger"))
        assert not any(fact in text_of(answer) for fact in known)
        assert answer.headers["x-memos-cubes"] == ""


def test_headers_account_for_every_token_of_the_prompt(told: Server) -> None:
    cubes = ",".join(ids_of(told, "maya"))
    wait_for_kv(told, service("maya", x_memos_cubes=cubes))
    answer = ask(told, QUESTION, service("maya", x_memos_repair="head:4", x_memos_cubes=cubes))
    kinds = ("cached", "spliced", "repaired", "computed")
    counts = {kind: int(answer.headers[f"x-memos-{kind}-tokens"]) for kind in kinds}
    assert sum(counts.values()) == int(answer.headers["x-memos-prompt-tokens"])
    assert counts["repaired"] == 4 * 3, "all but the first of the four cubes stand away from their origin"
    assert answer.headers["x-memos-kv-source"] == "ram"
    assert answer.headers["x-memos-cubes"] == cubes


def test_full_repair_answers_token_for_token_as_text(told: Server) -> None:
    for question in QUESTIONS:
        options: dict[str, Any] = {"logprobs": True, "top_logprobs": 5, "return_token_ids": True, "max_tokens": 8}
        full = ask(told, question, service("maya", x_memos_repair="full"), **options).json()["choices"][0]
        text = ask(told, question, service("maya", x_memos_repair="off"), **options).json()["choices"][0]
        assert full["token_ids"] == text["token_ids"]
        for ours, theirs in zip(full["logprobs"]["content"], text["logprobs"]["content"], strict=True):
            assert abs(ours["logprob"] - theirs["logprob"]) <= 1e-3


def test_a_splice_leaves_nothing_in_the_prefix_cache_for_others(told: Server) -> None:
    """The same tokens, asked plainly before and after an unrepaired splice, and by another tenant, answer the same."""
    spliced = ask(told, "Where do I live?", service("maya", x_memos_repair="none"), return_token_ids=True)
    ids = spliced.json()["prompt_token_ids"]
    assert int(spliced.headers["x-memos-spliced-tokens"]) > 0

    def plain(salt: str | None) -> Any:
        body = {"model": MODEL_NAME, "prompt": ids, "max_tokens": 4, "temperature": 0, "logprobs": 5}
        with told.http(**service("tom")) as client:
            answer = client.post("/v1/completions", json=body | ({"cache_salt": salt} if salt else {}))
        return answer.json()["choices"][0]["logprobs"]

    reference, shared = plain("nobody-else-has-this-salt"), plain(None)
    assert shared["tokens"] == reference["tokens"]
    assert shared["token_logprobs"] == pytest.approx(reference["token_logprobs"], abs=1e-3)


def test_a_tenant_with_the_same_words_shares_no_blocks(told: Server) -> None:
    wait_for_kv(told, service("maya"))
    with told.http(**service("copycat")) as client:
        messages = [{"role": "user", "content": sentence} for sentence in sentences("maya")]
        client.post("/v1/memories", json={"messages": messages}).raise_for_status()
    first = ask(told, "What is my favourite tea?", service("copycat"))
    assert first.headers["x-memos-cached-tokens"] == "0"
    assert FACTS["maya"]["tea"] in text_of(first)


def test_a_request_may_choose_its_cubes_and_their_order(told: Server) -> None:
    ids = ids_of(told, "maya")
    chosen = ",".join([ids[2], ids[0]])
    answer = ask(told, QUESTION, service("maya", x_memos_cubes=chosen))
    assert answer.headers["x-memos-cubes"] == chosen
    assert FACTS["maya"]["tea"] in text_of(answer)


def test_another_users_cube_cannot_be_chosen(told: Server) -> None:
    ids = wait_for_kv(told, service("maya")).headers["x-memos-cubes"]
    foreign = ask(told, "What is my favourite tea?", service("tom", x_memos_cubes=ids))
    missing = ask(told, "What is my favourite tea?", service("tom", x_memos_cubes="0" * 32))
    assert (foreign.status_code, missing.status_code) == (404, 404)
    assert foreign.json()["error"]["type"] == missing.json()["error"]["type"]


def test_an_unknown_repair_policy_is_a_clear_400(told: Server) -> None:
    answer = ask(told, "Where do I live?", service("maya", x_memos_repair="most"))
    assert answer.status_code == 400
    assert "none, head:K" in answer.json()["error"]["message"]


def test_vllm_keeps_as_many_cores_as_without_a_connector(told: Server) -> None:
    """It would leave one more to a KV connector of the worker, beside that of its scheduler."""
    assert "local_world_size=1, reserve_cpu_num=1\n" in told.log.read_text()
