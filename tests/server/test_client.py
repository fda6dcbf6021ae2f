"""The Python client against a real server, its two forms alike."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load

from memos_vllm import client as api
from memos_vllm import errors
from memos_vllm.client import AsyncMemosClient, MemosClient
from memos_vllm.governance.watermark import strip
from tests.server.adapter_cases import adapter, weights_of, write
from tests.server.conftest import KEYS, SERVICE_KEY, Server, free_port

pytestmark = pytest.mark.server


@pytest.fixture
def memos(open_api: Server, user: str) -> Iterator[MemosClient]:
    with MemosClient(open_api.url, user_id=user) as client:
        yield client


def test_a_memory_from_its_first_day_to_its_last(memos: MemosClient, other: str) -> None:
    (tea,) = memos.add("My favourite tea is oolong.", metadata={"topic": "tea"}, tags=["tea"], happened="2025-04-10")
    assert (tea.event, tea.metadata, tea.tags, tea.happened) == ("ADD", {"topic": "tea"}, ("tea",), "2025-04-10")
    (hit,) = memos.search("Which tea?", filters={"topic": "tea"}, since="2025-04-01", until="2025-05-01")
    assert hit.id == tea.id and hit.score is not None
    assert memos.search("Which tea?", since="2025-05-01") == []
    changed = memos.update(tea.id, "My favourite tea is sencha.", expect=1)
    assert (changed.version, changed.event) == (2, "UPDATE")
    assert [version.memory[-7:] for version in memos.versions(tea.id)] == ["oolong.", "sencha."]
    assert [change.event for change in memos.history(tea.id)] == ["ADD", "UPDATE"]
    assert memos.rollback(tea.id, 1).memory == tea.memory
    assert memos.edit(tea.id, priority="high").priority == "high"
    assert memos.share(tea.id, other, ["write"]) == [api.Grant(other, ("read", "write"))] == memos.access(tea.id)
    assert memos.search("tea", user_id=other)[0].id == tea.id
    assert memos.revoke(tea.id, other) == []
    assert memos.provenance(tea.id)[0].id == tea.id
    assert memos.plan("Which tea?").chosen[0].memory.id == tea.id
    assert memos.set_state(tea.id, "archived").state == "archived"
    assert [memory.id for memory in memos.search("tea", archived=True)] == [tea.id]
    assert memos.delete(tea.id).deleted == 1
    with pytest.raises(api.NotFoundError):
        memos.get(tea.id)


def test_many_memories(memos: MemosClient, user: str) -> None:
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "?"}]
    (one,) = memos.add(messages, run_id="session-1")
    assert (one.memory, one.source) == ("one", "session-1")
    assert memos.snapshot("now").memories == 1
    added, merged = memos.pipeline(
        [{"type": "add", "text": "two"}, {"type": "merge", "ids": [one.id, "#0"], "text": "one and two"}]
    )
    assert (added.memory, merged.memory) == ("two", "one and two")
    assert {memory.id for memory in memos.get_all()} == {one.id, added.id, merged.id}
    assert len(memos.get_all(limit=2)) == 2
    restored = memos.restore_snapshot("now")
    assert {memory.id for memory in restored.archived} >= {merged.id}
    assert [snapshot.name for snapshot in memos.snapshots()] == ["now"]
    assert memos.drop_snapshot("now")["message"]
    assert memos.delete_many([one.id]).deleted == 1
    assert memos.usage().cubes == 2
    assert {entry.action for entry in memos.log().results} >= {"add", "merge", "snapshot", "delete"}
    assert memos.delete_all().deleted == 2
    assert not any(memos.forget_me().traces.values())
    assert memos.usage() == api.Usage(user_id=user, cubes=0, bytes=0)


def test_what_is_known_about_a_memory(memos: MemosClient, other: str) -> None:
    assert memos.health().status == "ok"
    (tea,) = memos.add(
        "I like oolong.", app_id="notes", namespace="expert", access=[api.Grant(other, ("read", "write"))]
    )
    assert (tea.namespace, tea.metadata, tea.access) == ("expert", {"app_id": "notes"}, (other,))
    (lake,) = memos.add("The lake is cold.")
    assert [memory.id for memory in memos.get_all(app_id="notes")] == [tea.id]
    assert memos.set_access(tea.id, ["ana", {"principal": "tom", "rights": ["share"]}]) == [
        api.Grant("ana"),
        api.Grant("tom", ("read", "share")),
    ]
    changed = memos.update(tea.id, "I like sencha.", happened="2025-04-10", expires="2030-01-01")
    assert (changed.happened, changed.expires, changed.version) == ("2025-04-10", "2030-01-01", 2)
    assert memos.update(tea.id, expires="").expires == ""
    with pytest.raises(api.ConflictError):
        memos.edit(tea.id, tags=["tea"], expect=1)
    assert memos.edit(tea.id, tags=["tea"], expect=2).tags == ("tea",)
    assert memos.delete_all(app_id="notes").deleted == 1
    assert [memory.id for memory in memos.get_all()] == [lake.id]
    with pytest.raises(api.PermissionDeniedError):
        memos.get_all(owner="group:staff")


def test_adapters_and_trainings(memos: MemosClient, tmp_path: Path) -> None:
    folder = write(tmp_path / "style", adapter(1))
    first = memos.add_adapter("style", folder, tags=["work"], default=False)
    assert (first.name, first.active, first.default, first.versions[0].tags) == ("style", 1, False, ("work",))
    assert memos.add_adapter("style", write(tmp_path / "second", adapter(2)), activate=False).active == 1
    assert [one.id for one in memos.adapters()] == [first.id]
    assert memos.activate_adapter("style", 2).active == 2
    assert memos.rollback_adapter("style").active == 1
    assert memos.deactivate_adapter("style").active is None
    config = json.loads(memos.adapter_file("style", "adapter_config.json", 1))
    weights = memos.adapter_file("style", "adapter_model.safetensors", 1)
    assert config["r"] == 4 and load(weights).keys() == weights_of(1).keys()
    assert memos.remove_adapter("style", 1) == api.AdapterRemoved("style", 1)
    assert [version.version for version in memos.adapter("style").versions] == [2]
    assert memos.remove_adapter("style") == api.AdapterRemoved("style")
    with pytest.raises(FileNotFoundError):
        memos.add_adapter("style", tmp_path / "nowhere")
    with pytest.raises(api.BadRequestError):
        memos.train("facts")
    assert memos.trainings() == []
    for call in (memos.training, memos.cancel_training, memos.resume_training):
        with pytest.raises(api.NotFoundError):
            call("0" * 32)


def test_an_export_comes_line_by_line(memos: MemosClient, open_api: Server, user: str) -> None:
    texts = [f"\u2028 Number {number}: write to ana@example.org. {'tea ' * 200}" for number in range(300)]
    memos.add([{"role": "user", "content": text} for text in texts])
    cubes = [*memos.export("doctor")]
    assert len(cubes) == len(texts) and all(cube["meta"]["watermark"] for cube in cubes)
    for number, cube in enumerate(cubes):
        assert strip(cube["payload"]["content"]).startswith(f"\u2028 Number {number}: write to [email].")
    with pytest.raises(api.BadRequestError):
        next(memos.export(""))

    async def session() -> list[str]:
        async with AsyncMemosClient(open_api.url, user_id=user) as client:
            await client.add(texts[0])
            lines = client.export("doctor", redact=False, watermark=False)
            return [cube["payload"]["content"] async for cube in lines]

    assert asyncio.run(session()) == [*texts, texts[0]]


def test_errors_are_classes_with_status_and_message(memos: MemosClient, keyed_api: Server) -> None:
    (memory,) = memos.add("I like oolong.")
    with pytest.raises(api.ConflictError, match="version") as conflict:
        memos.update(memory.id, "I like chai.", expect=7)
    assert conflict.value.status_code == 409
    assert isinstance(conflict.value, errors.Conflict)
    with pytest.raises(api.BadRequestError):
        memos.add("  ")
    with MemosClient(keyed_api.url, api_key="sk-wrong") as stranger, pytest.raises(api.AuthenticationError):
        stranger.get_all()
    denied = pytest.raises(api.PermissionDeniedError)
    with MemosClient(keyed_api.url, api_key=KEYS["maya"], user_id="tom") as maya, denied as refusal:
        maya.get_all()
    assert refusal.value.kind == "permission_error"
    nobody = pytest.raises(api.ConnectionFailed, match="is the server running")
    with MemosClient(f"http://127.0.0.1:{free_port()}") as lost, nobody:
        lost.get_all()


def test_keys_and_names_of_any_script(keyed_api: Server) -> None:
    with MemosClient(f"{keyed_api.url}/v1", api_key=SERVICE_KEY, user_id="Zoë 象") as memos:
        (memory,) = memos.add("Ich mag Tee. 🍵")
        assert memory.user_id == "Zoë 象"
        assert [found.memory for found in memos.search("Tee")] == ["Ich mag Tee. 🍵"]
        assert memos.get_all(user_id="nobody") == []


def test_the_asynchronous_client_does_the_same(open_api: Server, user: str) -> None:
    async def session() -> None:
        async with AsyncMemosClient(open_api.url, user_id=user) as memos:
            await asyncio.gather(*(memos.add(f"fact {number}") for number in range(5)))
            assert len(await memos.get_all()) == 5
            with pytest.raises(api.NotFoundError):
                await memos.get("0" * 32)
            assert (await memos.delete_all()).deleted == 5

    asyncio.run(session())
