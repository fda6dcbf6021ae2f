"""Every API key that a server knows: those of its key file and those of its vault."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from memos_vllm.errors import Unauthorized
from memos_vllm.governance.directory import Directory
from memos_vllm.governance.identity import NOBODY, Bearer
from memos_vllm.governance.keyfile import read_key_file
from memos_vllm.governance.keys import bearer_of, id_of, sha256


@dataclass(frozen=True)
class KeyRing:
    """in_file: the key file's, by their SHA-256, None without a file. directory: the vault's; None where there is none.

    Keys are required where there is a key file, and where the vault ever had a key.
    """

    in_file: Mapping[str, Bearer] | None = field(default=None, repr=False)
    directory: Directory | None = field(default=None, repr=False)

    @classmethod
    def load(cls, path: Path | None, directory: Directory | None = None) -> Self:
        """Raises StartError, which names the line or the field of the key file."""
        return cls(None if path is None else read_key_file(path), directory)

    @property
    def required(self) -> bool:
        return self.in_file is not None or (self.directory is not None and self.directory.rules.keys_required)

    def bearer(self, key: str | None) -> Bearer:
        """Who holds a key; NOBODY for an unknown one where none is required. Raises Unauthorized."""
        found = self._known(key) if key else None
        if found is None and self.required:
            raise Unauthorized("This API key is not known." if key else "Send an API key: Authorization: Bearer …")
        return found or NOBODY

    def _known(self, key: str) -> Bearer | None:
        """Raises Unauthorized for a key of the vault that was revoked or has expired."""
        if self.in_file is not None and (found := self.in_file.get(sha256(key))):
            return found
        key_id = id_of(key)
        row = self.directory.rules.keys.get(key_id) if self.directory is not None and key_id else None
        return bearer_of(key, key_id, row) if row is not None and key_id else None
