"""The memory API: `/v1/memories` and what belongs to it, and mem0's own paths.

Every handler is a plain function, so FastAPI runs it in its thread pool: vault and search block.
"""

from __future__ import annotations

from fastapi import APIRouter

from memos_vllm.server.routes import account, adapters, consolidation, life, mem0, memories, namespaces, trainings

router = APIRouter()
# Before memories: `/v1/memories/plan` is no memory's id.
router.include_router(account.router)
router.include_router(consolidation.router)
router.include_router(memories.router)
router.include_router(life.router)
router.include_router(namespaces.router)
# Before adapters: a training is no adapter's name.
router.include_router(trainings.router)
router.include_router(adapters.router)
router.include_router(mem0.router)

__all__ = ["router"]
