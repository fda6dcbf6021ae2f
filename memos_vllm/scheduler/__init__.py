"""MemScheduler: which memories a prompt gets, in which order and form; and what becomes of them with time."""

from memos_vllm.scheduler.plan import MemoryPlan, MemScheduler

__all__ = ["MemScheduler", "MemoryPlan"]
