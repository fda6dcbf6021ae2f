"""Which adapter answers a request: the one its model names, or its caller's default, and what a caller sees of them.

A name is looked up for the caller of the request alone. Where it finds nothing, be it nobody's or somebody else's, vLLM
answers as it does for every model that it does not have.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelList, ModelPermission

from memos_vllm.engine import lora_resolver
from memos_vllm.engine.lora_resolver import OpenedAdapter, opened_adapter
from memos_vllm.errors import BadInput, MemosError, NotFound
from memos_vllm.governance.identity import Caller
from memos_vllm.parameter.learned import is_proposed
from memos_vllm.parameter.registry import AdapterEntry, AdapterVersion
from memos_vllm.server import metrics
from memos_vllm.server.chat import fall_back
from memos_vllm.server.injection import RequestMemory, current_memory
from memos_vllm.server.lookups import looked_up
from memos_vllm.vault.states import HOT

if TYPE_CHECKING:
    from memos_vllm.server.adapters import AdapterDesk, Seat
    from memos_vllm.server.knowledge import Knowledge
    from memos_vllm.server.uses import UseBook

logger = logging.getLogger(__name__)

NO_ADAPTER = "none"
"""What the header says where a default adapter could not answer."""


class AdapterDoor:
    """Opens requests their adapters. models: vLLM's `OpenAIServingModels`."""

    def __init__(self, desk: AdapterDesk, models: Any, uses: UseBook, knowledge: Knowledge) -> None:
        self.desk, self.uses, self.knowledge = desk, uses, knowledge
        self._registry = desk.registry
        self._models, self._plain_list = models, models.show_available_models

    def install(self) -> None:
        """Hook into vLLM's models; once."""
        lora_resolver.install(self._models)
        self._models.show_available_models = self.show_available_models

    async def open(self, memory: RequestMemory) -> Seat | None:
        """Open the request's adapter to vLLM; None where the base model answers, or vLLM that there is no such model.

        Raises MemosError for an adapter that the request names and that cannot be run; in the place of a default one
        the base model answers.
        """
        caller = memory.caller
        if caller is None:
            return None
        named = memory.model if memory.model and not self._models.is_base_model(memory.model) else None
        seat = await (self._named(caller, named) if named else self._default(caller, memory))
        if seat is None:
            return None
        memory.adapter = seat.version.name_for(caller.user)
        memory.known = self.knowledge.of(seat.version, caller)
        self.uses.note([seat.version.cube_id])
        metrics.adapter_requests().labels("named" if named else "default").inc()
        opened_adapter.set(OpenedAdapter(memory.model, memory.adapter, seat.lora))
        return seat

    def close(self, seat: Seat) -> None:
        """The request is over."""
        opened_adapter.set(None)
        self.desk.leave(seat)

    async def _named(self, caller: Caller, model: str) -> Seat | None:
        try:
            version = await looked_up(self._registry.vault, self._registry.resolve, caller, model)
            await self._check(version)
        except (NotFound, BadInput):  # it may be one of vLLM's own modules
            return None
        return await self.desk.take(version)

    async def _check(self, version: AdapterVersion) -> None:
        """Raises AdapterInactive, VaultUnavailable."""
        if is_proposed(version):  # then every memory it was made of is looked at
            await to_thread.run_sync(self.knowledge.checked, version)

    async def _default(self, caller: Caller, memory: RequestMemory) -> Seat | None:
        if not (self.knowledge.auto and memory.generates and memory.mode in ("read", "readwrite")):
            return None
        try:
            version = await looked_up(self._registry.vault, self._registry.default_of, caller)
            if version is None:
                return None
            await self._check(version)
            return await self.desk.take(version)
        except MemosError as error:
            logger.warning("the base model answers in place of a default adapter: %s", error)
            memory.adapter = NO_ADAPTER
            fall_back(memory, "adapter-unusable")
            return None

    async def show_available_models(self) -> ModelList:
        """vLLM's list, and the adapters that the caller of the request may name."""
        listed: ModelList = await self._plain_list()
        memory = current_memory.get()
        if memory is None or memory.caller is None:
            return listed
        entries = await to_thread.run_sync(self._registry.list, memory.caller)
        cards = [self._card(entry, memory.caller.user) for entry in entries if _may_answer(entry)]
        own = {card.id for card in cards}
        listed.data = [*(card for card in listed.data if card.id not in own), *cards]
        return listed

    def _card(self, entry: AdapterEntry, user: str) -> ModelCard:
        """The model card of an adapter, under the name by which the user may ask for it."""
        active = next(version for version in entry.versions if version.version == entry.active)
        short = entry.owner == user and not self._models.is_base_model(entry.name)
        return ModelCard(
            id=entry.name if short else f"{entry.owner}/{entry.name}",
            created=int(datetime.fromisoformat(active.created).timestamp()),
            owned_by=entry.owner,
            root=active.name_for(user),
            parent=self._models.base_model_paths[0].name,
            permission=[ModelPermission()],
        )


def _may_answer(entry: AdapterEntry) -> bool:
    return entry.active is not None and entry.state in HOT
