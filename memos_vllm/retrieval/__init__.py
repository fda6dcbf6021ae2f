"""MemOperator: finds the memories that a query is about, among those that its caller may read."""

from memos_vllm.retrieval.base import Hit, Operator, TimeWindow
from memos_vllm.retrieval.operator import MemOperator
from memos_vllm.retrieval.ranking import Ranking

__all__ = ["Hit", "MemOperator", "Operator", "Ranking", "TimeWindow"]
