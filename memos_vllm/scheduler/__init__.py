"""MemScheduler: which memories a prompt gets, and in which form."""

from memos_vllm.scheduler.plan import MemScheduler

__all__ = ["MemScheduler"]
