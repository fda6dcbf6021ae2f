"""MemGovernance: who the caller is, what they may do with a cube, how much they may store, and what may leave."""

from memos_vllm.governance.acl import Context, may_read, may_share, may_write
from memos_vllm.governance.identity import Caller, caller_of, checked_user, group_principal
from memos_vllm.governance.ring import KeyRing

__all__ = [
    "Caller",
    "Context",
    "KeyRing",
    "caller_of",
    "checked_user",
    "group_principal",
    "may_read",
    "may_share",
    "may_write",
]
