"""Tenants beside one another on one server: nobody's slow requests hold up those of others."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi.routing import APIRoute

from memos_vllm.server.middleware import GENERATING_PATHS, OPEN_PATHS, takes_thread
from memos_vllm.server.routes import router
from tests.server.conftest import Server

pytestmark = pytest.mark.server

MEMORIES = 300
REQUESTS = 80
"""At once of the busy tenant; anyio has 40 threads."""
MANY = 20
"""Of these that may be answered before the other tenant's one is; without places it waits for 41."""


def test_a_flood_of_one_tenant_does_not_hold_up_another(open_api: Server, user: str, other: str) -> None:
    open_api.remember(user, *(f"note {number} {'tea ' * 50}" for number in range(MEMORIES)))
    open_api.remember(other, "My favourite tea is oolong.")
    answered = 0

    async def slow(client: httpx.AsyncClient) -> None:
        nonlocal answered
        (await client.get("/v1/memories", params={"user_id": user, "limit": MEMORIES})).raise_for_status()
        answered += 1

    async def session() -> int:
        limits = httpx.Limits(max_connections=REQUESTS + 1)
        async with httpx.AsyncClient(base_url=open_api.url, timeout=60, limits=limits) as client:
            flood = [asyncio.create_task(slow(client)) for _ in range(REQUESTS)]
            await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
            before = answered
            search = await client.post("/v1/memories/search", json={"query": "tea", "user_id": other})
            passed = answered - before
            assert len(search.json()["results"]) == 1
            await asyncio.gather(*flood)
        return passed

    assert asyncio.run(session()) < MANY
    assert answered == REQUESTS


def test_every_memory_route_takes_a_place_of_its_tenant() -> None:
    paths = {route.path for route in router.routes if isinstance(route, APIRoute)}
    assert len(paths) > 40
    assert {path for path in paths if not takes_thread(path)} <= OPEN_PATHS
    assert not any(map(takes_thread, GENERATING_PATHS | {"/v1/models", "/v1/memoriesx"}))
