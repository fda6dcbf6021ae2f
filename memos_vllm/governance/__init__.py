"""MemGovernance: who the caller is, and what they may do with a cube."""

from memos_vllm.governance.acl import may_read, may_share, may_write
from memos_vllm.governance.identity import Caller, KeyRing, resolve

__all__ = ["Caller", "KeyRing", "may_read", "may_share", "may_write", "resolve"]
