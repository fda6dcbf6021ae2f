"""The OpenAPI document of a server: whole, with examples, and true. schemathesis draws requests from it.

MEMOS_FUZZ_SECONDS: how long; the suite gives it a short while.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.conftest import Server

pytestmark = pytest.mark.server

FUZZ_SECONDS = float(os.environ.get("MEMOS_FUZZ_SECONDS", "20"))
OURS = ("/v1/adapters", "/v1/memories", "/v1/snapshots", "/v1/pipelines", "/v1/audit", "/v1/me/", "/v1/me")
TRAINING = ("/v1/adapters/train", "/v1/adapters/retrain")
"""A training takes minutes of a processor: no fuzzer starts one."""
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FULL = 507
"""A vault that is full says so; a fuzzer may fill it."""


def is_ours(path: str) -> bool:
    return path == "/v1/me" or path.startswith(tuple(prefix for prefix in OURS if prefix != "/v1/me"))


@pytest.fixture(scope="module")
def document(open_api: Server) -> dict[str, Any]:
    with open_api.http() as client:
        return dict(client.get("/openapi.json").json())


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, methods in document["paths"].items()
        if is_ours(path)
        for method, operation in methods.items()
    ]


def test_every_operation_is_described(operations: list[tuple[str, str, dict[str, Any]]]) -> None:
    assert len(operations) >= 28
    for method, path, operation in operations:
        where = f"{method} {path}"
        assert operation["description"], where
        assert operation["tags"], where
        for status in ("400", "401", "403", "429", "503", "4XX"):
            answer = operation["responses"][status]
            assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody"), f"{where} {status}"
        assert "422" not in operation["responses"], f"{where}: malformed requests are answered with 400"


def test_every_body_has_an_example(document: dict[str, Any], operations: list[tuple[str, str, dict[str, Any]]]) -> None:
    for method, path, operation in operations:
        if "application/json" in operation.get("requestBody", {}).get("content", {}):
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert document["components"]["schemas"][name]["examples"], f"{method} {path}"


def test_examples_of_bodies_are_accepted(
    document: dict[str, Any], operations: list[tuple[str, str, dict[str, Any]]], open_api: Server, user: str
) -> None:
    """Save for ids, which nobody has: those are not found."""
    with open_api.http() as client:
        for method, path, operation in operations:
            if "application/json" not in operation.get("requestBody", {}).get("content", {}):
                continue
            if "{" in path or path in TRAINING:
                continue
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            for example in document["components"]["schemas"][name]["examples"]:
                answer = client.request(method, path, json={**example, "user_id": user})
                assert answer.status_code in (200, 404), f"{method} {path}: {answer.text}"


@pytest.fixture(scope="module")
def seeded(open_api: Server) -> Iterator[tuple[httpx.Client, list[str]]]:
    """A client that speaks for one user, and ids of some of their memories."""
    with open_api.http(**{"x-memos-user-id": "fuzz"}) as client:
        added = client.post(
            "/v1/memories", json={"messages": [{"role": "user", "content": f"n {i}"} for i in range(40)]}
        )
        yield client, [memory["id"] for memory in added.json()["results"]]


def test_no_request_breaks_the_promises_of_the_document(
    open_api: Server, document: dict[str, Any], seeded: tuple[httpx.Client, list[str]]
) -> None:
    client, ids = seeded
    schema = schemathesis.openapi.from_dict(document)
    found = (result for result in schema.get_all_operations() if isinstance(result, Ok))
    drawn = [result.ok() for result in found if is_ours(result.ok().path) and result.ok().path not in TRAINING]
    assert len(drawn) >= 28
    deadline = time.monotonic() + FUZZ_SECONDS
    rounds = 0
    while time.monotonic() < deadline:
        for operation in drawn:
            _draw(operation, open_api.url, ids, seconds=max(deadline - time.monotonic(), 0.1), seed=rounds)
        rounds += 1
    assert client.get("/v1/memories/health").status_code == 200


def _draw(operation: Any, url: str, ids: list[str], *, seconds: float, seed: int) -> None:
    """Some requests of one operation, valid ones and others; each answer must be one that the document promises."""
    until = time.monotonic() + seconds

    @given(
        case=st.one_of(operation.as_strategy(), operation.as_strategy(schemathesis.GenerationMode.NEGATIVE)),
        known=st.one_of(st.none(), st.sampled_from(ids)),
    )
    @settings(
        max_examples=10 + seed,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any, known: str | None) -> None:
        if time.monotonic() > until:
            return
        if known and "memory_id" in (case.path_parameters or {}):
            case.path_parameters["memory_id"] = known
        response = case.call(base_url=url, headers={"x-memos-user-id": "fuzz"})
        if response.status_code != FULL:
            case.validate_response(response, checks=CHECKS)

    run()
