"""One API server captures a cube, the others leave it alone: a lock file for each capture under way."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLAIMS = "claims"


@contextmanager
def claimed(memory_dir: Path, key: str) -> Iterator[bool]:
    """Whether this process may capture `key`; False while another one does. The kernel frees the claims of the dead.

    The file goes with the claim. Who opened it just before holds a file without a name, and finds the capture done.
    """
    folder = memory_dir / CLAIMS
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / key
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
