"""MemVault: cubes with versions and snapshots, grants, the audit log, and the KV manifest in LMDB."""

from memos_vllm.vault.audit import LogEntry, LogQuery
from memos_vllm.vault.forgetting import ForgetReport
from memos_vllm.vault.lora import HeldAdapter, HeldVersion
from memos_vllm.vault.provenance import Ancestor
from memos_vllm.vault.records import AdapterRecord, Event, KVRecord, Snapshot, Usage, Uses
from memos_vllm.vault.snapshots import Restored
from memos_vllm.vault.vault import Vault

__all__ = [
    "AdapterRecord",
    "Ancestor",
    "Event",
    "ForgetReport",
    "HeldAdapter",
    "HeldVersion",
    "KVRecord",
    "LogEntry",
    "LogQuery",
    "Restored",
    "Snapshot",
    "Usage",
    "Uses",
    "Vault",
]
