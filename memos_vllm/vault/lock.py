"""Who uses a vault: every process that has it open shares a lock; work on the whole file takes it alone.

flock(2) on the folder itself: the kernel frees it when the process dies, and LMDB's own lock file stays untouched.
"""

import fcntl
import os
from pathlib import Path

from memos_vllm.errors import VaultInUse


class Use:
    """A lock on a vault's folder until `end`, shared or alone. Raises VaultInUse, OSError where it has no access."""

    def __init__(self, folder: Path, *, alone: bool) -> None:
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            self.end()
            raise VaultInUse((_ALONE if alone else _SHARED).format(folder.parent)) from None
        except OSError:
            self.end()
            raise

    def end(self) -> None:
        os.close(self._descriptor)


_ALONE = "Another process uses the vault {}; stop the server and every command on it first."
_SHARED = "Another process migrates, compacts or restores {}; try again when it is done."
