"""MemReader: messages become memories, a question becomes a MemoryCall."""

from memos_vllm.reader.base import Draft, MemReader, Spoken
from memos_vllm.reader.call import MemoryCall, call_of
from memos_vllm.reader.model import ModelReader
from memos_vllm.reader.reconcile import Action, Add, Skip, Update, reconcile
from memos_vllm.reader.rules import RuleReader

__all__ = [
    "Action",
    "Add",
    "Draft",
    "MemReader",
    "MemoryCall",
    "ModelReader",
    "RuleReader",
    "Skip",
    "Spoken",
    "Update",
    "call_of",
    "reconcile",
]
