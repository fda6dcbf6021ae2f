"""Search under the clearance of the request's key: every search of a server goes through here, chat's too."""

from __future__ import annotations

from typing import Any

from memos_vllm.governance.acl import Context
from memos_vllm.retrieval.base import Hit, Operator
from memos_vllm.server.injection import current_memory


class GovernedOperator:
    """An operator for whose searches there is nothing that the request's key is not cleared for."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operator, name)

    def search(self, principals: Any, query: str, *, top_k: int, **options: Any) -> list[Hit]:
        """See `Operator.search`."""
        options.setdefault("clearance", request_context().clearance)
        return self._operator.search(principals, query, top_k=top_k, **options)


def request_context() -> Context:
    """What the key of the request being served is cleared for; all where no request is."""
    memory = current_memory.get()
    return Context() if memory is None or memory.caller is None else memory.caller.context("api")
