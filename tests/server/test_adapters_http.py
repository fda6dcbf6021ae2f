"""Users' adapters on one server: whose answers, which version, and that nothing one user does reaches another.

The server has two API servers, and room for two adapters in the engine and for the copies of one or two, so that both
are evicted all the time. `plain-N` are the same weights as vLLM's own modules: what each adapter has to answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tests.server.adapter_cases import (
    CONFIG,
    WEIGHTS,
    Streamed,
    adapter,
    add,
    chat,
    error_of,
    ids_of,
    upload,
    write,
)
from tests.server.adapter_damage import DAMAGES
from tests.server.conftest import KEYS, MODEL_NAME, SERVICE_KEY, Server, key_file, running_server
from tests.server.test_activation_http import metric, wait
from tests.unit.adapter_cases import share_slower

pytestmark = pytest.mark.server

SEEDS = (1, 2, 3)
CONNECTIONS = 10
COPIES_GIB = "0.0002"
"""Two copies."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("adapters")
    plain = [f"plain-{seed}={write(folder / f'plain-{seed}', adapter(seed))}" for seed in SEEDS]
    flags = (
        *("--api-server-count", "2", "--memory-adapters", "auto", "--memory-adapter-gib", COPIES_GIB),
        *("--max-loras", "2", "--max-cpu-loras", "2", "--max-lora-rank", "8", "--lora-modules", *plain),
        *("--memory-keys", str(key_file(folder)), "--memory-promote", "all"),
    )
    with running_server(folder, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def expected(server: Server) -> Callable[..., list[int]]:
    """The tokens that vLLM's own module with the weights of a seed answers; seed 0 is the base model."""
    known: dict[int, list[int]] = {}

    def tokens_of(seed: int, tokens: int = 16) -> list[int]:
        if len(known.get(seed, ())) < tokens:
            with server.http(authorization=f"Bearer {SERVICE_KEY}") as client:
                known[seed] = ids_of(chat(client, f"plain-{seed}" if seed else MODEL_NAME, tokens=tokens))
        return known[seed][:tokens]

    return tokens_of


@pytest.fixture
def maya(server: Server) -> Iterator[httpx.Client]:
    with server.http(authorization=f"Bearer {KEYS['maya']}") as client:
        yield client
        remove_all(client)


@pytest.fixture
def tom(server: Server) -> Iterator[httpx.Client]:
    with server.http(authorization=f"Bearer {KEYS['tom']}") as client:
        yield client
        remove_all(client)


def remove_all(client: httpx.Client) -> None:
    for found in client.get("/v1/adapters").json()["results"]:
        if found["model"] == found["name"]:  # not somebody else's
            client.delete(f"/v1/adapters/{found['name']}").raise_for_status()


def models_of(client: httpx.Client) -> set[str]:
    return {card["id"] for card in client.get("/v1/models").json()["data"]}


PLAIN = {MODEL_NAME, *(f"plain-{seed}" for seed in SEEDS)}


def test_the_same_name_is_another_adapter_for_another_user(
    maya: httpx.Client, tom: httpx.Client, expected: Callable[..., list[int]]
) -> None:
    for client, seed in ((maya, 1), (tom, 2)):
        added = add(client, "style", seed)
        assert (added["active"], added["default"], added["model"]) == (1, True, "style")
    assert len({tuple(expected(seed)) for seed in (0, 1, 2)}) == 3
    for _ in range(2):
        for client, seed in ((maya, 1), (tom, 2)):
            answer = chat(client, "style")
            assert ids_of(answer) == expected(seed)
            assert answer.json()["model"] == answer.headers["x-memos-adapter"] == "style@v1"
    streams = [Streamed(maya, "style", 64), Streamed(tom, "style", 64)]
    for stream, seed in zip(streams, (1, 2), strict=True):
        assert stream.all_ids() == expected(seed, 64) and stream.models == {"style@v1"}


def test_every_route_that_answers_takes_the_adapter(maya: httpx.Client, expected: Callable[..., list[int]]) -> None:
    add(maya, "style", 1)
    ask: dict[str, Any] = {"model": "style", "max_tokens": 4, "temperature": 0}
    messages = [{"role": "user", "content": "Hello"}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": messages},
        "/v1/completions": {"prompt": "Hello"},
        "/v1/messages": {"messages": messages},
        "/v1/responses": {"input": "Hello", "max_output_tokens": 16},
        "/invocations": {"messages": messages},
    }
    for path, body in bodies.items():
        named = {"x-amzn-sagemaker-adapter-identifier": "style"} if path == "/invocations" else {}
        answer = maya.post(path, json=ask | body, headers=named)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        assert answer.headers["x-memos-adapter"] == "style@v1", path
        assert answer.json().get("model", "style@v1") == "style@v1", path


def test_a_default_adapter_answers_in_the_base_models_place(
    maya: httpx.Client, tom: httpx.Client, expected: Callable[..., list[int]]
) -> None:
    add(maya, "style", 1)
    answer = chat(maya, MODEL_NAME)
    assert (ids_of(answer), answer.json()["model"]) == (expected(1), "style@v1")
    plain = chat(maya, MODEL_NAME, headers={"x-memos-mode": "off"})
    assert (ids_of(plain), plain.json()["model"]) == (expected(0), MODEL_NAME)
    other = chat(tom, MODEL_NAME)
    assert (ids_of(other), other.json()["model"]) == (
        expected(0),
        MODEL_NAME,
    ) and "x-memos-adapter" not in other.headers
    maya.post("/v1/adapters/style/activate", json={"default": False}).raise_for_status()
    assert ids_of(chat(maya, MODEL_NAME)) == expected(0) and ids_of(chat(maya, "style")) == expected(1)


def test_nobody_learns_of_anothers_adapter(maya: httpx.Client, tom: httpx.Client) -> None:
    """Whatever is asked of another's adapter is answered as for a name that nobody has."""
    add(maya, "secret", 1)
    add(tom, "own", 2)
    assert models_of(maya) == PLAIN | {"secret"} and models_of(tom) == PLAIN | {"own"}
    assert [found["name"] for found in tom.get("/v1/adapters").json()["results"]] == ["own"]
    assert "secret" not in tom.get("/metrics").text

    def asked(name: str) -> list[tuple[int, str]]:
        answers = [
            *(chat(tom, f"{prefix}{name}{version}") for prefix in ("", "maya/") for version in ("", "@v1", "@v2")),
            tom.get(f"/v1/adapters/maya/{name}"),
            tom.get(f"/v1/adapters/maya/{name}/files/{WEIGHTS}"),
            tom.delete(f"/v1/adapters/maya/{name}"),
            *(tom.post(f"/v1/adapters/maya/{name}/{verb}", json={}) for verb in ("activate", "deactivate", "rollback")),
        ]
        return [(answer.status_code, answer.text.replace(name, "NAME")) for answer in answers]

    told = asked("secret")
    assert told == asked("absent") and {status for status, _ in told} == {404}
    with httpx.Client(base_url=str(tom.base_url)) as stranger:
        assert stranger.get("/v1/models").status_code == 401
        assert stranger.get("/v1/adapters").status_code == 401


def test_the_time_an_answer_takes_tells_nothing_of_anothers_adapter(maya: httpx.Client, tom: httpx.Client) -> None:
    """Not even of one that the engine holds ready."""
    add(maya, "secret", 1)
    assert chat(maya, "secret").status_code == 200

    def seconds(name: str) -> tuple[float, float]:
        answers = chat(tom, f"maya/{name}"), tom.get(f"/v1/adapters/maya/{name}")
        assert [answer.status_code for answer in answers] == [404, 404]
        return answers[0].elapsed.total_seconds(), answers[1].elapsed.total_seconds()

    times: dict[str, list[tuple[float, float]]] = {"secret": [], "absent": []}
    rng = Random(0)
    for _ in range(100):
        for name in rng.sample([*times], 2):
            times[name].append(seconds(name))
    for there, absent in zip(zip(*times["secret"], strict=True), zip(*times["absent"], strict=True), strict=True):
        assert 0.3 < share_slower(there, absent) < 0.7


def test_what_is_shared_may_be_named_with_its_owner(
    maya: httpx.Client, tom: httpx.Client, expected: Callable[..., list[int]]
) -> None:
    cube = add(maya, "style", 1)["id"]
    maya.post(f"/v1/memories/{cube}/access", json={"principal": "tom", "rights": ["read"]}).raise_for_status()
    answer = chat(tom, "maya/style")
    assert (ids_of(answer), answer.json()["model"]) == (expected(1), "maya/style@v1")
    assert chat(tom, "style").status_code == 404 and models_of(tom) == PLAIN | {"maya/style"}
    assert ids_of(chat(tom, MODEL_NAME)) == expected(0), "another's adapter is nobody's default"
    assert tom.post("/v1/adapters/maya/style/deactivate", json={}).status_code == 403
    maya.delete(f"/v1/memories/{cube}/access", params={"principal": "tom"}).raise_for_status()
    assert chat(tom, "maya/style").status_code == 404 and models_of(tom) == PLAIN


def test_vllms_own_routes_and_names_load_nothing(server: Server, tom: httpx.Client, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", adapter(9))
    for path, body in (
        ("/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": str(folder)}),
        ("/v1/unload_lora_adapter", {"lora_name": "plain-1"}),
        ("/adapters", {"name": "mine", "src": str(folder)}),
    ):
        answer = tom.post(path, json=body)
        assert answer.status_code == 403 and "/v1/adapters" in error_of(answer)
    assert tom.delete("/adapters/plain-1").status_code == 403
    for name in (str(folder), "../mine", "tom/../mine", "mine@v1/../..", "tom/mine@v0", "a" * 5000, "é", "tom/"):
        assert chat(tom, name).status_code == 404, name
    assert models_of(tom) == PLAIN


def test_a_stream_ends_as_the_version_it_began_with(maya: httpx.Client, expected: Callable[..., list[int]]) -> None:
    add(maya, "style", 1)
    stream = Streamed(maya, "style")
    added = add(maya, "style", 2)
    assert added["active"] == 2 and [version["version"] for version in added["versions"]] == [1, 2]
    answer = chat(maya, "style")
    assert stream.running, "the stream must outlast the change"
    assert (ids_of(answer), answer.json()["model"]) == (expected(2), "style@v2")
    assert stream.all_ids() == expected(1, 200) and stream.models == {"style@v1"}
    assert ids_of(chat(maya, "style@v1")) == expected(1)
    maya.post("/v1/adapters/style/rollback", json={}).raise_for_status()
    assert ids_of(chat(maya, "style")) == expected(1) and ids_of(chat(maya, "style@v2")) == expected(2)
    maya.post("/v1/adapters/style/deactivate", json={}).raise_for_status()
    inactive = chat(maya, "style")
    assert inactive.status_code == 409 and "style" in error_of(inactive)
    assert models_of(maya) == PLAIN and ids_of(chat(maya, MODEL_NAME)) == expected(0)


def test_what_one_api_server_does_holds_for_the_other(
    server: Server, maya: httpx.Client, expected: Callable[..., list[int]]
) -> None:
    """The kernel spreads connections over them."""
    add(maya, "style", 1)
    for seed in (1, 2):
        assert [ids_of(answer) for answer in over_new_connections(server)] == [expected(seed)] * CONNECTIONS
        add(maya, "style", 2)
    maya.delete("/v1/adapters/style").raise_for_status()
    assert {answer.status_code for answer in over_new_connections(server)} == {404}


def over_new_connections(server: Server) -> Iterator[httpx.Response]:
    for _ in range(CONNECTIONS):
        with server.http(authorization=f"Bearer {KEYS['maya']}") as client:
            yield chat(client, "style")


def test_kv_of_memories_are_those_of_the_version(maya: httpx.Client) -> None:
    """Behind the scaffold a memory's K/V are exact: spliced or computed, each version answers as its weights do."""
    answer = maya.post("/v1/memories", json={"text": "The harbour of Aveiro was deepened in the year 1703. " * 8})
    memory = answer.json()["results"][0]["id"]
    for number, seed in ((1, 1), (2, 2)):
        add(maya, "style", seed)
        text = chat(maya, f"plain-{seed}", headers={"x-memos-repair": "off"})
        assert int(text.headers["x-memos-spliced-tokens"]) == 0
        first = chat(maya, "style", headers={"x-memos-repair": "none"})
        assert int(first.headers["x-memos-spliced-tokens"]) == 0, "K/V of another version were used"
        assert ids_of(first) == ids_of(text) and first.json()["model"] == f"style@v{number}"

        def spliced() -> httpx.Response | None:
            answer = chat(maya, "style", headers={"x-memos-repair": "none"})
            return answer if int(answer.headers["x-memos-spliced-tokens"]) > 50 else None

        wait(spliced)
        last = spliced()
        assert last is not None and ids_of(last) == ids_of(text)
    maya.delete(f"/v1/memories/{memory}").raise_for_status()


def test_a_removed_adapter_answers_to_the_end_and_leaves_the_engine(
    maya: httpx.Client, expected: Callable[..., list[int]]
) -> None:
    gone = metric(maya, "memos_adapter_evictions_total")
    add(maya, "style", 3)
    stream = Streamed(maya, "style")
    maya.delete("/v1/adapters/style").raise_for_status()
    assert chat(maya, "style").status_code == 404 and models_of(maya) == PLAIN
    assert stream.running, "the stream must outlast the removal"
    assert stream.all_ids() == expected(3, 200)
    wait(lambda: metric(maya, "memos_adapter_evictions_total") > gone)


def folder_of(server: Server, body: dict[str, Any]) -> Path:
    """Where the files of an adapter's newest version lie."""
    digest = body["versions"][-1]["digest"]
    (found,) = (server.memory_dir / "adapters").glob(f"*{digest}")
    return found


def test_damaged_files_are_an_answer_and_no_more(
    server: Server, maya: httpx.Client, tom: httpx.Client, expected: Callable[..., list[int]]
) -> None:
    """While another user's stream goes on, and two slots change hands all the time."""
    add(maya, "steady", 1)
    for seed in (2, 3):
        add(tom, f"good-{seed}", seed)
    for number, damage in enumerate(DAMAGES):
        damage(folder_of(server, add(tom, f"bad-{number}", 10 + number)))
    stream = Streamed(maya, "steady", 400)
    for number, damage in enumerate(DAMAGES):
        answer = chat(tom, f"bad-{number}")
        assert answer.status_code == 409, f"{damage.__name__}: {answer.text}"
        assert f"bad-{number}" in error_of(answer) and str(server.memory_dir) not in answer.text
        seed = 2 + number % 2
        assert ids_of(chat(tom, f"good-{seed}")) == expected(seed)
    base = chat(tom, MODEL_NAME, headers={"x-memos-mode": "off"})
    assert ids_of(base) == expected(0), "the base model is not touched by the adapters beside it"
    assert stream.running, "the stream must outlast the damage"
    tom.post("/v1/adapters/bad-0/activate", json={"default": True}).raise_for_status()
    fallen = chat(tom, MODEL_NAME)
    assert ids_of(fallen) == expected(0) and fallen.json()["model"] == MODEL_NAME
    assert (fallen.headers["x-memos-adapter"], fallen.headers["x-memos-fallback"]) == ("none", "adapter-unusable")
    assert stream.all_ids() == expected(1, 400)


REFUSED = {
    "rank": (adapter(1, rank=16), {}),
    "dora": (adapter(1, use_dora=True), {}),
    "bias": (adapter(1, bias="all"), {}),
    "modules": (adapter(1, modules_to_save=["lm_head"]), {}),
    "base": (adapter(1, hidden=128), {}),
    "pickle": ({CONFIG: adapter(1)[CONFIG], "adapter_model.bin": b"\x80\x04."}, {}),
    "path": ({CONFIG: adapter(1)[CONFIG], f"../{WEIGHTS}": adapter(1)[WEIGHTS]}, {}),
    "header": (adapter(1) | {WEIGHTS: b"\xff" * 64}, {}),
    "name": (adapter(1), {"name": "../style"}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_engine_could_not_run_is_not_stored(maya: httpx.Client, case: str) -> None:
    files, fields = REFUSED[case]
    answer = upload(maya, "style", files) if not fields else upload(maya, fields["name"], files)
    assert answer.status_code == 400, answer.text
    assert maya.get("/v1/adapters").json()["results"] == []


def test_the_memory_directory_may_go_while_adapters_run(
    server: Server, maya: httpx.Client, tom: httpx.Client, expected: Callable[..., list[int]]
) -> None:
    """With more adapters than slots: what runs, and what was copied, goes on; what would have to be read is refused."""
    add(maya, "steady", 1)
    for seed in (2, 3):
        add(tom, f"good-{seed}", seed)
    add(tom, "late", 2)
    assert ids_of(chat(tom, "good-2")) == expected(2)
    stream = Streamed(maya, "steady", 300)
    moved = server.memory_dir.with_name("moved")
    server.memory_dir.rename(moved)
    try:
        for model in ("good-3", "late", "good-3", "late"):
            answer = chat(tom, model)
            assert answer.status_code == 409 and model in error_of(answer), answer.text
            assert ids_of(chat(tom, "plain-2")) == expected(2) and ids_of(chat(tom, "plain-3")) == expected(3)
        assert stream.running, "the stream must outlast the move"
        assert stream.all_ids() == expected(1, 300)
    finally:
        moved.rename(server.memory_dir)
    assert ids_of(chat(tom, "good-3")) == expected(3) and ids_of(chat(tom, "late")) == expected(2)
