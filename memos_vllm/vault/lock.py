"""Who uses a vault: every process that has it open shares a lock; work on the whole file takes it alone.

flock(2) on the folder itself: the kernel frees it when the process dies, and LMDB's own lock file stays as it is.
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
            if alone:
                _refuse_opened(folder / "lock.mdb")
        except BlockingIOError:
            self.end()
            raise VaultInUse((_ALONE if alone else _SHARED).format(folder.parent)) from None
        except OSError:
            self.end()
            raise

    def end(self) -> None:
        os.close(self._descriptor)


def _refuse_opened(lock_file: Path) -> None:
    """Raises BlockingIOError where an older version of this program, which takes no lock of ours, has the vault open.

    LMDB itself keeps a shared lock on the first byte of its lock file in every process that does.
    """
    if lock_file.exists():
        with lock_file.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)


_ALONE = "Another process uses the vault {}; stop the server and every command on it first."
_SHARED = "Another process migrates, compacts or restores {}; try again when it is done."
