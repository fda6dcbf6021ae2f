"""A client of the memory routes: conversations go in turn by turn, questions are searched."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from memos_vllm.bench.client import Client
from memos_vllm.bench.retrieval_data import Chunk
from memos_vllm.bench.servers import Server

EMBEDDING_SECONDS = 1800.0
PAGE = 1000
LIKE = 100
"""Memories searched for one that may have the same text as others."""


class MemoryClient(Client):
    """One connection to one server. Every method raises ServerFailed when the server does not do as asked."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.name = server.name

    def tell_session(self, user: str, session: Sequence[Chunk]) -> list[str]:
        """Add the memories of one session, each told by its speaker at the session's date; returns their ids.

        A memory of several turns has no speaker of its own.
        """
        first = session[0].turns[0]
        body = {
            "user_id": user,
            "run_id": f"session-{first.session}",
            "timestamp": first.at,
            "infer": False,
            "messages": [_message(chunk) for chunk in session],
        }
        return [memory["id"] for memory in self._post("/v1/memories", body)["results"]]

    def memories(self, user: str) -> dict[str, str]:
        """Id and text of everything that a user has."""
        found: dict[str, str] = {}
        while True:
            query: dict[str, str | int] = {"user_id": user, "limit": PAGE, "after": next(reversed(found), "")}
            page = self._get("/v1/memories", query)["results"]
            found.update((memory["id"], memory["memory"]) for memory in page)
            if len(page) < PAGE:
                return found

    def wait_for_vector(self, user: str, memory: str, text: str) -> None:
        """Wait until a memory is found by the meaning of its own text. Vectors are made in order of the memories.

        A search that finds nothing answers with the latest memories, of score 0.
        """
        deadline = time.monotonic() + EMBEDDING_SECONDS
        while self.scores(user, text, LIKE, ("dense",)).get(memory, 0.0) == 0.0:
            if time.monotonic() > deadline:
                raise self._server.failure(f"did not embed its memories within {EMBEDDING_SECONDS:.0f} s")
            time.sleep(0.5)

    def search(self, user: str, query: str, top_k: int, using: Sequence[str]) -> tuple[list[str], float]:
        """Ids of the memories found, best first, and the seconds from sending the request to its answer.

        using: parts of the ranking; none for all that the server has.
        """
        began = time.perf_counter()
        return list(self.scores(user, query, top_k, using)), time.perf_counter() - began

    def scores(self, user: str, query: str, top_k: int, using: Sequence[str]) -> dict[str, float]:
        """Score of the memories found by id, best first; as `search`."""
        body = {"user_id": user, "query": query, "top_k": top_k, **({"using": list(using)} if using else {})}
        answer = self._post("/v1/memories/search", body)
        return {memory["id"]: memory["score"] for memory in answer["results"]}


def _message(chunk: Chunk) -> dict[str, Any]:
    spoken = {"name": chunk.turns[0].speaker} if len(chunk.turns) == 1 else {}
    return {"role": "user", "content": chunk.text, **spoken}
