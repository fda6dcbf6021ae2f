"""vLLM's endpoint plugin: the memory routes, the middleware, and the hooks of the chat routes."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import State
from starlette.responses import JSONResponse

from memos_vllm import config as settings
from memos_vllm.activation.repair import DECOY
from memos_vllm.errors import Forbidden, MemosError, QuotaExceeded, StartError
from memos_vllm.governance.directory import Directory
from memos_vllm.governance.logs import redact_logs
from memos_vllm.governance.quota import MIB, Limits, RateLimiter
from memos_vllm.governance.ring import KeyRing
from memos_vllm.parameter.job import Jobs
from memos_vllm.parameter.registry import AdapterRegistry, BaseModel
from memos_vllm.parameter.staging import STAGE_ENV, Stage, new_folder, sweep
from memos_vllm.reader import ModelReader, RuleReader
from memos_vllm.retrieval import MemOperator
from memos_vllm.retrieval.embedders import QueryEmbedder, make_embedder
from memos_vllm.retrieval.embedding import EmbeddingWorker
from memos_vllm.scheduler.lifecycle import Lifecycle
from memos_vllm.scheduler.plan import MemScheduler
from memos_vllm.server import metrics
from memos_vllm.server.adapter_door import AdapterDoor
from memos_vllm.server.adapters import AdapterDesk
from memos_vllm.server.ageing import Ageing
from memos_vllm.server.asking import ServedModel
from memos_vllm.server.chat import ChatHooks
from memos_vllm.server.claims import claimed
from memos_vllm.server.consolidating import Consolidating
from memos_vllm.server.consolidator import Consolidator
from memos_vllm.server.errors import error_response
from memos_vllm.server.governed import GovernedOperator
from memos_vllm.server.injection import Splicer, current_memory
from memos_vllm.server.knowledge import Knowledge
from memos_vllm.server.mem0_door import Mem0Door
from memos_vllm.server.middleware import MemoryMiddleware
from memos_vllm.server.pieces import PieceCutter
from memos_vllm.server.private import PrivateRequests
from memos_vllm.server.prompt import PromptBuilder
from memos_vllm.server.rendering import ChatRenderer
from memos_vllm.server.routes import router
from memos_vllm.server.service import MemoryService
from memos_vllm.server.trail import AccessTrail
from memos_vllm.server.uses import UseBook
from memos_vllm.server.writing import MemoryWriter, TurnWriter
from memos_vllm.vault import Vault

logger = logging.getLogger(__name__)

SECRET_ENV = "MEMOS_PLAN_SECRET"
"""Hex key, made at start, that signs splice plans and keys cache salts in all processes of one server."""


class MemosEndpoint:
    """See `vllm.plugins.endpoint_plugins.interface.EndpointPlugin`."""

    name = "memos"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the memory routes, and the middleware innermost: vLLM adds its own around it afterwards."""
        app.include_router(router)
        app.add_exception_handler(MemosError, _answer)
        app.add_middleware(MemoryMiddleware)
        app.add_middleware(Mem0Door)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Open the vault and hook into chat. Raises StartError when memory cannot work as configured."""
        config = settings.from_env()
        if engine_client is None or config.memory_dir is None:
            return
        redact_logs()
        metrics.create()
        prompts = PromptBuilder(state.online_renderer.renderer.get_tokenizer())
        renderer = ChatRenderer(state.online_renderer, prompts)
        state.memos = await open_service(config, engine_client.vllm_config, engine_client, prompts, renderer)
        if config.reader == "model":
            serving = state.openai_serving_chat
            state.memos.writer.reader = model_reader(engine_client, serving, state.memos.secret)
        models = state.openai_serving_models
        desk = state.memos.desk
        if desk is not None:
            state.memos.door = AdapterDoor(desk, models, state.memos.uses, state.memos.consolidator.knowledge)
            state.memos.door.install()
        if resumed := await asyncio.to_thread(state.memos.jobs.resume_all):
            logger.info("%d trainings go on", resumed)
        ChatHooks(state.memos, renderer, state.online_renderer, models, engine_client).install()
        logger.info("memory is on: %s", config.memory_dir)


async def open_service(
    config: settings.MemoryConfig, vllm_config: Any, engine_client: Any, prompts: PromptBuilder, renderer: ChatRenderer
) -> MemoryService:
    """Everything one API server needs for memory; without an engine, all but what runs on it. Raises StartError."""
    assert config.memory_dir is not None
    vault = Vault.open(config.memory_dir, max_bytes=config.max_bytes)
    directory = govern(vault, config)
    ring = KeyRing.load(config.keys, directory)
    embedder = await asyncio.to_thread(make_embedder, config.embedder)
    operator = GovernedOperator(MemOperator(vault, QueryEmbedder(embedder) if embedder else None))
    if embedder is not None:
        tell = metrics.vectors_waiting().set
        EmbeddingWorker(vault, embedder, partial(claimed, vault.path, "embedding"), tell).start()
    ageing = Ageing(Lifecycle(vault, half_life_days=config.half_life))
    uses = UseBook(vault, ageing.used)
    uses.start()
    adapters, jobs = open_registry(config, vllm_config, vault), Jobs(config.memory_dir)
    knowledge = Knowledge(
        adapters, uses, prompts, auto=config.adapters == "auto", leave_out=config.consolidate != "off"
    )
    model = vllm_config.model_config.model
    consolidator = Consolidator(knowledge, jobs, uses, prompts, model=model, mode=config.consolidate)
    desk = None if config.adapters == "off" or engine_client is None else open_desk(config, engine_client, adapters)
    secret = bytes.fromhex(os.environ[SECRET_ENV]) if SECRET_ENV in os.environ else secrets.token_bytes(32)
    service = MemoryService(
        vault=vault,
        directory=directory,
        limiter=RateLimiter(),
        ring=ring,
        operator=operator,
        scheduler=MemScheduler(
            operator,
            top_k=config.top_k,
            token_budget=config.token_budget,
            policy=config.policy,
            uses=uses.of,
            vectors=operator.vectors_of if embedder else None,
        ),
        prompts=prompts,
        secret=secret,
        uses=uses,
        cutter=PieceCutter(prompts, secret),
        adapters=adapters,
        jobs=jobs,
        model=model,
        consolidator=consolidator,
        desk=desk,
        splicer=_splicer(config, engine_client, vault, secret, uses, prompts) if config.splice else None,
        scaffold=await renderer.usual_scaffold(),
        mode=config.mode,
    )
    if service.splicer is not None:
        ageing.forget = service.splicer.forget
    ageing.start()
    if config.consolidate == "auto":
        Consolidating(consolidator).start()
    service.trail = AccessTrail(vault, config.audit)
    service.trail.start()
    service.writer = MemoryWriter(service, RuleReader())
    service.turn_writer = TurnWriter(service.writer)
    service.turn_writer.start()
    return service


def open_registry(config: settings.MemoryConfig, vllm_config: Any, vault: Vault) -> AdapterRegistry:
    """The adapters of a vault, checked against the engine's model. Raises StartError where they are to be served and
    that model cannot be read.
    """
    model, lora = vllm_config.model_config, vllm_config.lora_config
    if config.adapters != "off" and lora is None:
        raise StartError("--memory-adapters needs vLLM's --enable-lora: start with memos-vllm serve, which sets it")
    try:
        base = BaseModel.read(model.model, model.revision)
    except (MemosError, OSError, ValueError) as error:
        if config.adapters != "off":
            raise StartError(f"--memory-adapters: the model cannot be read: {error}") from error
        return AdapterRegistry(vault)
    return AdapterRegistry(vault, base=base, **({"max_rank": lora.max_lora_rank} if lora else {}))


def open_desk(config: settings.MemoryConfig, engine_client: Any, registry: AdapterRegistry) -> AdapterDesk:
    """The way of adapters into the engine, guarded from now on. Raises StartError."""
    sweep()
    given = os.environ.get(STAGE_ENV)
    stage = Stage.open(Path(given) if given else new_folder(config.adapter_bytes))
    desk = AdapterDesk(registry, stage, engine_client, config.adapter_bytes)
    desk.start()
    return desk


def model_reader(engine_client: Any, serving_chat: Any, secret: bytes) -> ModelReader:
    """The reader that asks the served model. `engine_client` must not be hooked into yet."""
    ask = ServedModel(serving_chat, PrivateRequests(engine_client, secret).has_room, secret)
    return ModelReader(ask, lambda cause: metrics.reader_fallbacks().labels(cause).inc(), max_chars=ask.max_chars)


def govern(vault: Vault, config: settings.MemoryConfig) -> Directory:
    """The rules of a vault, read, with its quotas in force. Raises VaultUnavailable."""
    size = None if config.quota_mib is None else config.quota_mib * MIB
    directory = Directory(vault, Limits(config.quota_cubes, size, config.quota_rps))
    directory.refresh()
    vault.quota_guard = directory.check_quota
    return directory


def _splicer(
    config: settings.MemoryConfig,
    engine_client: Any,
    vault: Vault,
    secret: bytes,
    uses: UseBook,
    prompts: PromptBuilder,
) -> Splicer:
    from memos_vllm.server.splicing import make_splicer

    return make_splicer(engine_client, config, vault, secret, uses, prompts.memory_ids(DECOY))


async def _answer(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MemosError)
    memory = current_memory.get()
    caller = memory.caller if memory is not None else None
    user = caller.user if caller is not None else ""
    if isinstance(error, Forbidden):
        request.app.state.memos.trail.note(user, "refuse", target=request.path_params.get("memory_id", ""))
    if isinstance(error, QuotaExceeded) and (caller is None or error.owner != user or caller.clearance is not None):
        error = error.for_others()
    return error_response(error)
