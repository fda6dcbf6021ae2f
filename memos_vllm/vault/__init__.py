"""MemVault: cubes, versions, grants and the KV manifest in LMDB."""

from memos_vllm.vault.records import Event, KVRecord, Uses
from memos_vllm.vault.vault import Vault

__all__ = ["Event", "KVRecord", "Uses", "Vault"]
