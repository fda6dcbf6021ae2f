"""Room that is kept back on the disk, so that memories can be deleted when it is full.

LMDB copies a page before it changes it: even a delete needs some pages, and only the next write can use the old ones.
"""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

RESERVE_BYTES = 256 << 10


class Reserve:
    """A file of RESERVE_BYTES in a vault's folder, given up for a write that makes room and filled again after it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "reserve"

    def fill(self) -> None:
        """Nothing where the disk has too little room; the next call tries again."""
        if self._path.exists():
            return
        disk = os.statvfs(self._path.parent)
        if disk.f_bavail * disk.f_frsize < 2 * RESERVE_BYTES:
            return
        try:
            with self._path.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError as error:
            log.warning("cannot keep %d bytes back in %s (%s)", RESERVE_BYTES, self._path, error.strerror)
            self._path.unlink(missing_ok=True)

    def release(self) -> bool:
        """Whether that made room."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True
