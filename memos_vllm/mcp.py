"""`memos-vllm mcp`: the memories of a running server as tools of the Model Context Protocol, under mem0's names.

Over stdio it speaks for one user, whose key is in MEMOS_API_KEY. Over streamable HTTP each request's `Authorization`
(and `x-memos-user-id`) is passed on; the key of MEMOS_API_KEY stands in for it only where the server listens on this
machine alone.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import msgspec
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from memos_vllm import __version__
from memos_vllm.client import ApiError, AsyncMemosClient, Memory
from memos_vllm.client.http import TIMEOUT
from memos_vllm.errors import BadInput

KEY_ENV = "MEMOS_API_KEY"
LOCAL = ("127.0.0.1", "localhost", "::1")
INSTRUCTIONS = (
    "Long-term memory of the user. Search it before answering what may depend on what the user said earlier; add what "
    "the user wants remembered; update a memory that has changed instead of adding a second one."
)

UserId = Annotated[str | None, Field(description="Whose memories; not needed where the key belongs to a user.")]
MemoryId = Annotated[str, Field(description="Id of a memory, from a search or a list.")]


@dataclass(frozen=True)
class Door:
    """The way to the memory server. shared: whether `api_key` and `user_id` stand in for callers who bring none."""

    url: str
    api_key: str | None = None
    user_id: str | None = None
    shared: bool = True

    @asynccontextmanager
    async def client(
        self, headers: Mapping[str, str] | None, http: httpx.AsyncClient
    ) -> AsyncIterator[AsyncMemosClient]:
        """A client that speaks for the caller. Raises ToolError, with what the server says, where it refuses."""
        key, user = _credentials(headers or {})
        if self.shared and key is None:
            key, user = self.api_key, user or self.user_id
        try:
            yield AsyncMemosClient(self.url, api_key=key, user_id=user, http=http)
        except ApiError as error:
            raise ToolError(str(error)) from error


def make_server(door: Door) -> MCPServer[httpx.AsyncClient]:
    """The MCP server: seven of mem0's tools, those for the memories of one user."""

    @asynccontextmanager
    async def lifespan(_: MCPServer[httpx.AsyncClient]) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(timeout=TIMEOUT) as http:
            yield http

    server: MCPServer[httpx.AsyncClient] = MCPServer(
        "memos-vllm", version=__version__, instructions=INSTRUCTIONS, lifespan=lifespan, log_level="WARNING"
    )

    def memos(context: Context[httpx.AsyncClient]) -> Any:
        return door.client(context.headers, context.request_context.lifespan_context)

    @server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False))
    async def add_memory(
        context: Context[httpx.AsyncClient],
        text: Annotated[str, Field(description="What to remember.")],
        user_id: UserId = None,
        run_id: Annotated[str | None, Field(description="The session that it was said in.")] = None,
        metadata: Annotated[dict[str, Any] | None, Field(description="Flat values, usable as filters.")] = None,
        infer: Annotated[bool, Field(description="Keep what the server finds worth it, not the text itself.")] = False,
    ) -> dict[str, Any]:
        """Remember something about the user."""
        async with memos(context) as client:
            found = await client.add(text, user_id=user_id, run_id=run_id, metadata=metadata, infer=infer)
        return _results(found)

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def search_memories(
        context: Context[httpx.AsyncClient],
        query: Annotated[str, Field(description="What to look for, in plain words.")],
        user_id: UserId = None,
        top_k: Annotated[int, Field(ge=1, le=100, description="Most memories to return.")] = 10,
        filters: Annotated[dict[str, Any] | None, Field(description="Metadata values that they must have.")] = None,
    ) -> dict[str, Any]:
        """Find the memories that fit a question best. Where none does, the latest come back, with score 0."""
        async with memos(context) as client:
            return _results(await client.search(query, top_k=top_k, filters=filters, user_id=user_id))

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def get_memories(
        context: Context[httpx.AsyncClient],
        user_id: UserId = None,
        limit: Annotated[int, Field(ge=1, le=1000)] = 100,
        after: Annotated[str | None, Field(description="Id of the last memory of the page before.")] = None,
    ) -> dict[str, Any]:
        """List the user's memories, oldest first."""
        async with memos(context) as client:
            return _results(await client.get_all(limit=limit, after=after, user_id=user_id))

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def get_memory(
        context: Context[httpx.AsyncClient], memory_id: MemoryId, user_id: UserId = None
    ) -> dict[str, Any]:
        """Read one memory."""
        async with memos(context) as client:
            return _shown(await client.get(memory_id, user_id=user_id))

    @server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False))
    async def update_memory(
        context: Context[httpx.AsyncClient],
        memory_id: MemoryId,
        text: Annotated[str, Field(description="The new text; the old one stays in the memory's history.")],
        user_id: UserId = None,
    ) -> dict[str, Any]:
        """Replace a memory's text by a new version."""
        async with memos(context) as client:
            return _shown(await client.update(memory_id, text, user_id=user_id))

    @server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True))
    async def delete_memory(
        context: Context[httpx.AsyncClient], memory_id: MemoryId, user_id: UserId = None
    ) -> dict[str, Any]:
        """Delete one memory with its history. Only a snapshot can bring it back, where there is one."""
        async with memos(context) as client:
            return _plain(await client.delete(memory_id, user_id=user_id))

    @server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True))
    async def delete_all_memories(context: Context[httpx.AsyncClient], user_id: UserId = None) -> dict[str, Any]:
        """Delete all memories of the user with their history: ask the user first. Only snapshots bring them back."""
        async with memos(context) as client:
            return _plain(await client.delete_all(user_id=user_id))

    return server


def run(argv: Sequence[str]) -> int:
    """Serve until the client leaves or the process is stopped. Raises BadInput."""
    args = _parser().parse_args(argv)
    if not args.url.startswith(("http://", "https://")):
        raise BadInput(f"--url must begin with http:// or https://, not {args.url!r}.")
    shared = not args.http or args.host in LOCAL
    server = make_server(Door(args.url, os.environ.get(KEY_ENV), args.user, shared))
    if args.http:
        server.run("streamable-http", host=args.host, port=args.port, stateless_http=True)
    else:
        server.run("stdio")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="memos-vllm mcp",
        description="Serve the memories of a running server as MCP tools, over stdio or streamable HTTP.",
        epilog=f"The API key is read from the environment variable {KEY_ENV}.",
    )
    parser.add_argument("--url", default="http://localhost:8000", help="the memory server (default: %(default)s)")
    parser.add_argument(
        "--user",
        help="whose memories, where the key is a service key or the server asks for none; "
        "with --http only where --host is this machine",
    )
    parser.add_argument("--http", action="store_true", help="serve streamable HTTP at /mcp instead of stdio")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on with --http (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8765, help="port to listen on with --http (default: %(default)s)")
    return parser


def _credentials(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The key and the user that a request to the MCP server itself carries."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = headers.get("x-api-key") or (token.strip() if scheme.lower() in ("bearer", "token") else "")
    user = headers.get("x-memos-user-id", "").encode("latin-1").decode(errors="replace")  # ASGI hands on Latin-1
    return key or None, user or None


def _results(memories: Sequence[Memory]) -> dict[str, Any]:
    return {"results": [_shown(memory) for memory in memories]}


def _shown(memory: Memory) -> dict[str, Any]:
    """What a model needs of a memory."""
    names = ("id", "memory", "score", "event", "created_at", "happened", "metadata", "tags")
    fields = _plain(memory)
    return {name: fields[name] for name in names if fields.get(name) not in (None, "", [], {})}


def _plain(answer: msgspec.Struct) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(answer)
    return fields
