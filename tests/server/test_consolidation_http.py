"""Prompts of a user whose adapter knows some of their memories, on a server with an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from memos_vllm.cube import Scalar
from memos_vllm.parameter.learned import LEARNED, PROPOSED
from memos_vllm.parameter.registry import AdapterFiles, AdapterRegistry, BaseModel
from memos_vllm.server.consolidator import NAME
from memos_vllm.vault import Vault
from tests.server.adapter_cases import adapter, chat, error_of, write
from tests.server.conftest import MODEL_NAME, Server, model_path, running_server
from tests.server.test_activation_http import metric, wait

pytestmark = pytest.mark.server

QUESTION = [{"role": "user", "content": "Which tea is my favourite, and where do I live?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("consolidated")
    flags = ("--memory-adapters", "auto", "--memory-consolidate", "auto", "--memory-splice", "off")
    with running_server(folder, *flags) as server:
        yield server


def made_of(server: Server, tmp_path: Path, user: str, ids: list[str], marks: str) -> None:
    """The adapter that a training of these memories leaves; `marks`: those that it knows."""
    base = BaseModel.read(str(model_path()))
    files = AdapterFiles.read(write(tmp_path / "made", adapter(1)), base=base.fingerprint)
    with Vault.open(server.memory_dir) as vault:
        metadata: dict[str, Scalar] = {LEARNED: marks, PROPOSED: True}
        parents = [f"{cube_id}@1" for cube_id in ids]
        registry = AdapterRegistry(vault, base=base)
        registry.add(user, NAME, files, author=user, parents=parents, metadata=metadata, activate=True)


def asked(client: httpx.Client, **headers: str) -> httpx.Response:
    answer = chat(client, MODEL_NAME, messages=QUESTION, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def cubes_of(answer: httpx.Response) -> list[str]:
    return [name for name in answer.headers.get("x-memos-cubes", "").split(",") if name]


def forms(client: httpx.Client) -> dict[str, tuple[str, int]]:
    plan: dict[str, Any] = client.post("/v1/memories/plan", json={"query": QUESTION[0]["content"]}).json()
    return {choice["memory"]["id"]: (choice["form"], choice["tokens"]) for choice in plan["chosen"]}


def test_what_the_adapter_knows_is_left_out_until_it_changes(server: Server, tmp_path: Path, user: str) -> None:
    tea, home = server.remember(user, "My favourite tea is sencha.", "I live in a house beside the harbour of Dakar.")
    with server.http(**{"x-memos-user-id": user}) as client:
        before = asked(client)
        assert {*cubes_of(before)} == {tea, home} and "x-memos-adapter" not in before.headers
        wait(lambda: client.get(f"/v1/memories/{home}").json()["state"] == "activated")
        uses = client.get(f"/v1/memories/{home}").json()["accesses"]
        spared = metric(client, "memos_learned_total", unit="memories")
        made_of(server, tmp_path, user, [tea, home], "01")
        after = asked(client)
        assert after.headers["x-memos-adapter"] == f"{NAME}@v1" and cubes_of(after) == [tea]
        length = "x-memos-prompt-tokens"
        assert int(after.headers[length]) < int(before.headers[length])
        assert metric(client, "memos_learned_total", unit="memories") == spared + 1
        assert {form for form, _ in forms(client).values()} == {"adapter", "text"} and forms(client)[home][1] == 0
        wait(lambda: client.get(f"/v1/memories/{home}").json()["accesses"] > uses)
        named = asked(client, **{"x-memos-cubes": home})
        assert cubes_of(named) == [home], "whom it names it has in its prompt"
        plain = asked(client, **{"x-memos-mode": "off"})
        assert "x-memos-adapter" not in plain.headers
        assert client.put(f"/v1/memories/{tea}", json={"text": "My favourite tea is oolong."}).status_code == 200
        changed = asked(client)
        assert changed.headers["x-memos-adapter"] == "none" and {*cubes_of(changed)} == {tea, home}
        assert "adapter" in changed.headers["x-memos-fallback"]
        resting = chat(client, NAME, messages=QUESTION)
        assert resting.status_code == 409 and "made anew" in error_of(resting)
        assert all(form == "text" for form, _ in forms(client).values())
