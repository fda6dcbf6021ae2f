"""Which memories are K/V and why, over HTTP: promotion, pins, deletion, metrics, and what would make K/V wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from memos_vllm.engine.metrics import COUNTERS, GAUGES, HISTOGRAMS
from memos_vllm.vault import Vault
from tests.server.conftest import MODEL_NAME, SERVICE_KEY, Server
from tests.unit.test_dashboard import metric_names

pytestmark = pytest.mark.server

SERVICE = {"authorization": f"Bearer {SERVICE_KEY}"}


@pytest.fixture
def client(keyed_server: Server, user: str) -> Iterator[httpx.Client]:
    """Speaks for a user of its own, on a server that promotes everything."""
    with keyed_server.http(**SERVICE, **{"x-memos-user-id": user}) as client:
        yield client
        client.delete("/v1/memories").raise_for_status()


def tell(client: httpx.Client, text: str, **fields: Any) -> str:
    answer = client.post("/v1/memories", json={"text": text, **fields})
    answer.raise_for_status()
    return str(answer.json()["results"][0]["id"])


def ask(client: httpx.Client, question: str = "What is my favourite tea?", **headers: str) -> httpx.Response:
    body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": question}], "max_tokens": 1}
    answer = client.post("/v1/chat/completions", json=body, headers=headers)
    answer.raise_for_status()
    return answer


def activation(client: httpx.Client, memory: str) -> dict[str, Any]:
    state: dict[str, Any] = client.get(f"/v1/memories/{memory}").json()["activation"]
    return state


def wait(done: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_kv(client: httpx.Client, memory: str) -> dict[str, Any]:
    wait(lambda: activation(client, memory)["state"] == "kv")
    return activation(client, memory)


def kv_files(server: Server) -> set[Path]:
    return {path for path in (server.memory_dir / "kv").rglob("*") if path.is_file()}


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = (sample for family in families for sample in family.samples if sample.name == name)
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def test_a_memory_says_in_which_form_it_is_used_and_why(client: httpx.Client) -> None:
    memory = tell(client, "My favourite tea is oolong.")
    state = wait_for_kv(client, memory)
    assert state["reason"] == "--memory-promote is all"
    assert state["bytes"] > 0 and 5 <= state["tokens"] <= 15
    assert (state["uses"], state["pinned"]) == (0, False)
    for _ in range(2):
        ask(client)
    assert activation(client, memory)["uses"] == 2
    (listed,) = client.get("/v1/memories").json()["results"]
    assert listed["activation"] == activation(client, memory)


def test_the_form_is_for_the_owner_to_see(client: httpx.Client, keyed_server: Server, other: str) -> None:
    memory = tell(client, "Our tea is shared.", access=[other])
    with keyed_server.http(**SERVICE, **{"x-memos-user-id": other}) as reader:
        assert "activation" not in reader.get(f"/v1/memories/{memory}").json()
        assert reader.post(f"/v1/memories/{memory}/pin").status_code == 403
        assert reader.delete(f"/v1/memories/{memory}/pin").status_code == 403
        assert reader.post(f"/v1/memories/{'0' * 32}/pin").status_code == 404


def test_a_pin_is_set_and_taken_off(client: httpx.Client, keyed_server: Server) -> None:
    memory = tell(client, "My favourite tea is oolong.")
    wait_for_kv(client, memory)
    pinned = client.post(f"/v1/memories/{memory}/pin").json()
    assert (pinned["id"], pinned["version"], pinned["activation"]["pinned"]) == (memory, 1, True)
    with Vault.open(keyed_server.memory_dir, readonly=True) as vault:
        (record,) = vault.kv_of(memory)
        assert record.pinned and record.key in vault.pinned_keys()
        assert not client.delete(f"/v1/memories/{memory}/pin").json()["activation"]["pinned"]
        assert record.key not in vault.pinned_keys()


def test_an_update_replaces_the_kv(client: httpx.Client, keyed_server: Server) -> None:
    memory = tell(client, "My favourite tea is oolong.")
    wait_for_kv(client, memory)
    with Vault.open(keyed_server.memory_dir, readonly=True) as vault:
        (before,) = vault.kv_of(memory)
        client.put(f"/v1/memories/{memory}", json={"text": "My favourite tea is sencha."}).raise_for_status()
        assert not (keyed_server.memory_dir / before.path).exists()
        wait_for_kv(client, memory)
        (after,) = vault.kv_of(memory)
    assert after.cube_version == 2 and after.key != before.key


def test_deleted_memories_leave_disk_and_ram(client: httpx.Client, keyed_server: Server) -> None:
    ask(client)
    before = metric(client, "memos_kv_resident_cubes")
    files = kv_files(keyed_server)
    memories = [tell(client, f"My favourite tea is number {number}.") for number in range(3)]
    for memory in memories:
        wait_for_kv(client, memory)
    ask(client)
    wait(lambda: metric(client, "memos_kv_resident_cubes") >= before + 3)
    client.delete(f"/v1/memories/{memories[0]}").raise_for_status()
    client.delete("/v1/memories").raise_for_status()
    assert kv_files(keyed_server) <= files
    ask(client)
    wait(lambda: metric(client, "memos_kv_resident_cubes") <= before)


def test_kv_whose_file_is_lost_are_made_again(client: httpx.Client, keyed_server: Server) -> None:
    memory = tell(client, "My favourite tea is oolong.")
    wait_for_kv(client, memory)
    with Vault.open(keyed_server.memory_dir, readonly=True) as vault:
        (record,) = vault.kv_of(memory)
    (keyed_server.memory_dir / record.path).unlink()
    assert activation(client, memory)["state"] == "text"
    assert ask(client).headers["x-memos-fallback"] == "kv-missing"
    wait_for_kv(client, memory)


def test_of_the_memories_that_a_request_names_the_last_are_left_out(client: httpx.Client) -> None:
    text = "The train was late on Monday because of the rain. " * 60
    memories = [tell(client, f"{number} {text}") for number in range(3)]
    named = [memories[1], memories[2], memories[0]]
    answer = ask(client, **{"x-memos-cubes": ",".join(named)})
    used = answer.headers["x-memos-cubes"].split(",")
    assert 0 < len(used) < 3 and used == named[: len(used)]
    assert "x-memos-fallback" in answer.headers


@pytest.mark.parametrize("path", ["/update_weights", "/start_weight_update", "/collective_rpc"])
def test_other_weights_are_refused(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json={})
    assert answer.status_code == 409
    assert "--memory-splice off" in answer.json()["error"]["message"]


def test_totals_are_for_those_with_a_key(keyed_server: Server) -> None:
    with keyed_server.http() as stranger:
        assert stranger.get("/v1/memories/health").json() == {"status": "ok", "splice": True}
    with keyed_server.http(**SERVICE) as known:
        assert known.get("/v1/memories/health").json()["vault"]["cubes"] >= 0


def test_metrics_count_what_happened(client: httpx.Client) -> None:
    def counts() -> dict[str, float]:
        return {
            "spliced": metric(client, "memos_prompts_total", form="spliced"),
            "tokens": metric(client, "memos_prompt_tokens_total"),
            "done": metric(client, "memos_captures_total", outcome="done"),
            "promoted": metric(client, "memos_promotions_total", reason="all"),
            "searches": metric(client, "memos_search_seconds_count"),
            "deleted": metric(client, "memos_demotions_total", cause="deleted"),
        }

    before = counts()
    memory = tell(client, "My favourite tea is oolong.")
    wait_for_kv(client, memory)
    tokens = int(ask(client).headers["x-memos-prompt-tokens"])
    client.delete(f"/v1/memories/{memory}").raise_for_status()
    wait(lambda: counts()["done"] > before["done"])
    grown = {name: value - before[name] for name, value in counts().items()}
    assert grown == {"spliced": 1, "tokens": tokens, "done": 1, "promoted": 1, "searches": 1, "deleted": 1}


def test_the_dashboard_asks_for_what_there_is(client: httpx.Client) -> None:
    tell(client, "My favourite tea is oolong.")
    ask(client)
    suffixes = {"histogram": ("_bucket",), "counter": ("_total",), "gauge": ("",)}
    families = text_string_to_metric_families(client.get("/metrics").text)
    names = {family.name + suffix for family in families for suffix in suffixes.get(family.type, ())}
    engine = {*GAUGES, *(f"{name}_total" for name in COUNTERS), *(f"{name}_bucket" for name in HISTOGRAMS)}
    assert metric_names() <= names | {f"memos_kv_{name}" for name in engine}
    assert {f"memos_kv_{name}" for name in engine} <= metric_names() & names


def test_the_api_describes_pins_and_forms(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]["/v1/memories/{memory_id}/pin"]) == {"post", "delete"}
    fields = schema["components"]["schemas"]["ActivationState"]["properties"]
    assert set(fields) == {"state", "reason", "tokens", "bytes", "uses", "saves_ms", "pinned"}
