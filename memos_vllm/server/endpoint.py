"""vLLM's endpoint plugin: the memory routes, the middleware, and the hooks of the chat routes."""

from __future__ import annotations

import logging
import os
import secrets
from argparse import Namespace
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import State
from starlette.responses import JSONResponse

from memos_vllm import config as settings
from memos_vllm.activation.repair import DECOY
from memos_vllm.errors import MemosError
from memos_vllm.governance.identity import KeyRing
from memos_vllm.retrieval.lexical import LexicalOperator
from memos_vllm.scheduler.plan import MemScheduler
from memos_vllm.server import metrics
from memos_vllm.server.chat import ChatHooks
from memos_vllm.server.errors import error_response
from memos_vllm.server.injection import Splicer
from memos_vllm.server.middleware import MemoryMiddleware
from memos_vllm.server.pieces import PieceCutter
from memos_vllm.server.prompt import PromptBuilder
from memos_vllm.server.rendering import ChatRenderer
from memos_vllm.server.routes import router
from memos_vllm.server.service import MemoryService
from memos_vllm.server.uses import UseBook
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

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Open the vault and hook into chat. Raises StartError when memory cannot work as configured."""
        config = settings.from_env()
        if engine_client is None or config.memory_dir is None:
            return
        metrics.create()
        prompts = PromptBuilder(state.online_renderer.renderer.get_tokenizer())
        renderer = ChatRenderer(state.online_renderer, prompts)
        state.memos = await open_service(config, engine_client, prompts, renderer)
        models = state.openai_serving_models
        ChatHooks(state.memos, renderer, state.online_renderer, models, engine_client).install()
        logger.info("memory is on: %s", config.memory_dir)


async def open_service(
    config: settings.MemoryConfig, engine_client: Any, prompts: PromptBuilder, renderer: ChatRenderer
) -> MemoryService:
    """Everything one API server needs for memory. Raises StartError."""
    assert config.memory_dir is not None
    ring = KeyRing.load(config.keys)
    vault = Vault.open(config.memory_dir, max_bytes=config.max_bytes)
    operator = LexicalOperator(vault)
    uses = UseBook(vault)
    uses.start()
    secret = bytes.fromhex(os.environ[SECRET_ENV]) if SECRET_ENV in os.environ else secrets.token_bytes(32)
    return MemoryService(
        vault=vault,
        ring=ring,
        operator=operator,
        scheduler=MemScheduler(operator, top_k=config.top_k, token_budget=config.token_budget),
        prompts=prompts,
        secret=secret,
        uses=uses,
        cutter=PieceCutter(prompts, secret),
        splicer=_splicer(config, engine_client, vault, secret, uses, prompts) if config.splice else None,
        scaffold=await renderer.usual_scaffold(),
    )


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
    return error_response(error)
