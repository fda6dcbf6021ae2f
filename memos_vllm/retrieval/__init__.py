"""MemOperator: finds the memories of a principal that a query is about."""

from memos_vllm.retrieval.base import Hit, Operator
from memos_vllm.retrieval.lexical import LexicalOperator

__all__ = ["Hit", "LexicalOperator", "Operator"]
