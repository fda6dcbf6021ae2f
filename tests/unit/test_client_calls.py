"""Every operation of the memory API has a method of the clients, which reaches every field of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI

from memos_vllm.client import AsyncMemosClient, Grant, MemosClient, account_calls, adapter_calls, calls
from memos_vllm.client.call import Call
from memos_vllm.server.routes import router

ID = "0198c0de7a1b7c3d9e5f6a7b8c9d0e1f"
GIVEN: dict[str, Any] = {
    "infer": True,
    "top_k": 3,
    "limit": 3,
    "threshold": 0.5,
    "archived": True,
    "neighbours": False,
    "expect": 2,
    "half_life_days": 1.5,
    "version": 1,
    "snapshots": True,
    "newest_first": True,
    "redact": False,
    "watermark": False,
    "activate": False,
    "allowed": False,
    "default": False,
    "metadata": {"topic": "tea"},
    "filters": {"topic": "tea"},
    "messages": [{"role": "user", "content": "tea"}],
    "steps": [{"type": "add", "text": "tea"}],
    "recipe": {"rank": 8},
    "access": ["tom", Grant("group:kitchen", ("read", "write")), {"principal": "ana", "rights": ["share"]}],
    **{name: ["a", "b"] for name in ("tags", "types", "using", "sensitivity", "clearance", "rights")},
    **{name: [ID] for name in ("memory_ids", "without")},
}
"""What a test gives for an argument of a name; a text for any other."""

TABLE: dict[tuple[str, str], str] = {
    ("POST", "/v1/memories"): "add",
    ("GET", "/v1/memories"): "get_all",
    ("DELETE", "/v1/memories"): "delete_all",
    ("GET", "/v1/memories/health"): "health",
    ("POST", "/v1/memories/search"): "search",
    ("POST", "/v1/memories/delete"): "delete_many",
    ("POST", "/v1/memories/plan"): "plan",
    ("POST", "/v1/memories/export"): "export",
    ("GET", "/v1/memories/{memory_id}"): "get",
    ("PUT", "/v1/memories/{memory_id}"): "update",
    ("PATCH", "/v1/memories/{memory_id}"): "edit",
    ("DELETE", "/v1/memories/{memory_id}"): "delete",
    ("POST", "/v1/memories/{memory_id}/pin"): "pin",
    ("DELETE", "/v1/memories/{memory_id}/pin"): "unpin",
    ("GET", "/v1/memories/{memory_id}/history"): "history",
    ("GET", "/v1/memories/{memory_id}/versions"): "versions",
    ("POST", "/v1/memories/{memory_id}/rollback"): "rollback",
    ("PUT", "/v1/memories/{memory_id}/state"): "set_state",
    ("GET", "/v1/memories/{memory_id}/provenance"): "provenance",
    ("GET", "/v1/memories/{memory_id}/access"): "access",
    ("PUT", "/v1/memories/{memory_id}/access"): "set_access",
    ("POST", "/v1/memories/{memory_id}/access"): "share",
    ("DELETE", "/v1/memories/{memory_id}/access"): "revoke",
    ("GET", "/v1/snapshots"): "snapshots",
    ("POST", "/v1/snapshots"): "snapshot",
    ("POST", "/v1/snapshots/{name}/restore"): "restore_snapshot",
    ("DELETE", "/v1/snapshots/{name}"): "drop_snapshot",
    ("POST", "/v1/pipelines"): "pipeline",
    ("GET", "/v1/audit"): "log",
    ("GET", "/v1/audit/verify"): "verify_log",
    ("GET", "/v1/me/usage"): "usage",
    ("GET", "/v1/me/consolidation"): "consolidation",
    ("PUT", "/v1/me/consolidation"): "allow_consolidation",
    ("DELETE", "/v1/me"): "forget_me",
    ("GET", "/v1/adapters"): "adapters",
    ("POST", "/v1/adapters"): "add_adapter",
    ("GET", "/v1/adapters/{name}"): "adapter",
    ("DELETE", "/v1/adapters/{name}"): "remove_adapter",
    ("GET", "/v1/adapters/{name}/files/{file}"): "adapter_file",
    ("POST", "/v1/adapters/{name}/activate"): "activate_adapter",
    ("POST", "/v1/adapters/{name}/deactivate"): "deactivate_adapter",
    ("POST", "/v1/adapters/{name}/rollback"): "rollback_adapter",
    ("POST", "/v1/adapters/train"): "train",
    ("GET", "/v1/adapters/train"): "trainings",
    ("GET", "/v1/adapters/train/{training_id}"): "training",
    ("DELETE", "/v1/adapters/train/{training_id}"): "cancel_training",
    ("POST", "/v1/adapters/train/{training_id}/resume"): "resume_training",
    ("POST", "/v1/adapters/retrain"): "retrain",
}
"""Operation → method. A route that is new needs a method of the clients, and a line here."""

OTHER_NAMES: dict[tuple[str, str], set[str]] = {
    ("POST", "/v1/memories"): {"text", "content", "expiration_date", "timestamp"},
    ("PUT", "/v1/memories/{memory_id}"): {"content", "timestamp"},
    ("POST", "/v1/memories/search"): {"limit"},
}
"""Fields that are other names of ones that the clients send. `user_id` goes in a header, for every operation alike."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    app = FastAPI()
    app.include_router(router)
    return app.openapi()


def built(name: str) -> Call[Any]:
    """A call with every argument that it takes."""
    build: Callable[..., Call[Any]] = next(
        found for module in (calls, account_calls, adapter_calls) if (found := getattr(module, name, None))
    )
    parameters = inspect.signature(build).parameters
    return build(**{argument: GIVEN.get(argument, "x") for argument in parameters})


def fields_of(document: dict[str, Any], operation: dict[str, Any]) -> set[str]:
    """Query parameters, and fields of the body, of an operation."""
    names = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"}
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
        names |= schema["properties"].keys()
    return names - {"user_id"}


def test_every_operation_has_a_method(document: dict[str, Any]) -> None:
    operations = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert operations == TABLE.keys()
    for client in (MemosClient, AsyncMemosClient):
        assert [name for name in TABLE.values() if not callable(getattr(client, name, None))] == []
    assert len(set(TABLE.values())) == len(TABLE)


@pytest.mark.parametrize(("operation", "name"), TABLE.items(), ids=lambda value: str(value))
def test_a_method_sends_its_operation_with_every_field(
    document: dict[str, Any], operation: tuple[str, str], name: str
) -> None:
    method, path = operation
    call = built(name)
    assert call.method == method
    assert re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), call.path)
    sent = {*call.params, *(call.body or {}), *({"files"} if call.files else ())}
    assert sent == fields_of(document, document["paths"][path][method.lower()]) - OTHER_NAMES.get(operation, set())


def test_both_clients_have_every_call() -> None:
    for module in (calls, account_calls, adapter_calls):
        public = [name for name, _ in inspect.getmembers(module, inspect.isfunction) if not name.startswith("_")]
        own = [name for name in public if inspect.getmodule(getattr(module, name)) is module]
        assert own and set(own) <= set(TABLE.values())


def test_access_is_sent_as_names_and_grants() -> None:
    wanted = ["tom", {"principal": "group:kitchen", "rights": ("read", "write")}, GIVEN["access"][2]]
    for call in (calls.set_access(ID, GIVEN["access"]), calls.add("tea", access=GIVEN["access"])):
        assert call.body is not None and call.body["access"] == wanted


def test_an_expiry_can_be_taken_away() -> None:
    assert calls.update(ID, expires="").body == {"expiration_date": ""}
