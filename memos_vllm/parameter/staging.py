"""Private copies of adapters, one folder for each start of a server.

vLLM's workers read an adapter's files when they need them, and again after they evicted it; a file that is missing then
ends the engine for everybody. So the engine is given copies that nothing outside of the server touches. What is wrong
with the files of the vault is found when a copy is made, by the request that needs it.

    <room>/memos-vllm-<uid>-<start>/alive        locked by every API server of the start; without it the folder is dead
                                   /<number>/    the files of one adapter version
                                   /<number>.lock  shared: a process uses the copy; exclusive: it is being removed
                                   /<number>.making  a process makes the copy

The kernel frees the locks of processes that die.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memos_vllm.errors import StartError
from memos_vllm.vault.adapter_files import FILES

STAGE_ENV = "MEMOS_STAGE"
"""The folder, chosen at start, in which all API servers of one server keep their copies."""
ALIVE = "alive"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the folders made in it are for their owner alone


@dataclass(frozen=True)
class Staged:
    """A copy. bytes: its files together; used: when it was last taken or given back (seconds, Unix time)."""

    number: int
    bytes: int
    used: float


class Hold:
    """A lock on one copy, until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        os.close(self._descriptor)


class Stage:
    """The copies of one server; every API server of it has one of these on the same folder. Its methods block."""

    def __init__(self, folder: Path, alive: int) -> None:
        self.folder, self._alive = folder, alive

    @classmethod
    def open(cls, folder: Path) -> Stage:
        """Make the folder, or join the API servers that did. Raises StartError where it is somebody else's."""
        while True:
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
                _check_private(folder)
                alive = _locked(folder / ALIVE, "shared")
            except FileNotFoundError:  # swept as dead before it was locked
                continue
            except FileExistsError as error:
                if folder.exists():
                    raise StartError(f"adapters cannot be copied to {folder}: it is no folder") from error
            except OSError as error:
                raise StartError(f"adapters cannot be copied to {folder}: {error.strerror}") from error
            if alive is not None:
                return cls(folder, alive)

    def close(self) -> None:
        """Leave; the last one to leave removes the folder."""
        os.close(self._alive)
        _remove_dead(self.folder)

    def path(self, number: int) -> Path:
        return self.folder / str(number)

    def hold(self, number: int) -> Hold | None:
        """Keep a copy, or the place of one, from removal; None while it is being removed."""
        return self._lock(number, "shared")

    def seize(self, number: int) -> Hold | None:
        """Keep everybody from a copy; None while one is held."""
        return self._lock(number, "exclusive")

    def has(self, number: int) -> bool:
        """Whether there is a whole copy: cleaners of temporary files take single files away."""
        return all(os.path.isfile(f"{self.folder}/{number}/{name}") for name in FILES)  # noqa: PTH113 - asked often

    def copy(self, number: int, fill: Callable[[Path], object]) -> None:
        """Have a copy, in a place that is held. `fill` makes a new folder with the files, or raises and leaves none.

        Raises OSError, and what `fill` raises.
        """
        with self._alone(number):
            if self.has(number):  # another API server was faster
                return
            made = self._aside()
            fill(made)
            self._drop(number)
            made.rename(self.path(number))

    @contextmanager
    def _alone(self, number: int) -> Iterator[None]:
        """One process makes a copy at a time."""
        path = self.folder / f"{number}.making"
        while (descriptor := _locked(path, "exclusive")) is None:
            time.sleep(0.01)
        try:
            yield
        finally:
            path.unlink()
            os.close(descriptor)

    def used(self, number: int, at: float) -> None:
        """Note when a copy was last in use (seconds, Unix time)."""
        with suppress(FileNotFoundError):
            os.utime(self.path(number), (at, at))

    def remove(self, number: int) -> None:
        """Remove a copy that was seized."""
        self._drop(number)
        (self.folder / f"{number}.lock").unlink(missing_ok=True)

    def _drop(self, number: int) -> None:
        """Remove what there is: first its name, so that no half of it is ever found."""
        aside = self._aside()
        with suppress(FileNotFoundError):
            self.path(number).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _aside(self) -> Path:
        return self.folder / f".{secrets.token_hex(8)}"

    def copies(self) -> list[Staged]:
        """Every copy there is, the one used longest ago first."""
        return sorted(self._copies(), key=lambda staged: staged.used)

    def _copies(self) -> Iterator[Staged]:
        for entry in os.scandir(self.folder):
            if entry.name.isdigit():
                try:
                    size = sum(file.stat().st_size for file in os.scandir(entry))
                    yield Staged(int(entry.name), size, entry.stat().st_mtime)
                except FileNotFoundError:
                    continue

    def _lock(self, number: int, kind: Literal["shared", "exclusive"]) -> Hold | None:
        descriptor = _locked(self.folder / f"{number}.lock", kind)
        return None if descriptor is None else Hold(descriptor)


def new_folder(room: int) -> Path:
    """The path of a new server's folder, where there is room for so many bytes: in RAM, else among temporary files."""
    in_ram = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)
    parent = SHARED_MEMORY if in_ram and shutil.disk_usage(SHARED_MEMORY).free >= room else Path(tempfile.gettempdir())
    return parent / f"{_prefix()}{secrets.token_hex(8)}"


def sweep() -> None:
    """Remove what servers of this user that were killed have left."""
    for parent in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        for folder in parent.glob(f"{_prefix()}*"):
            with suppress(OSError, StartError):  # somebody else's, or going already
                _check_private(folder)
                _remove_dead(folder)


def _prefix() -> str:
    return f"memos-vllm-{os.getuid()}-"


def _remove_dead(folder: Path) -> None:
    try:
        alive = _locked(folder / ALIVE, "exclusive")
    except FileNotFoundError:  # another one removed it as dead meanwhile
        return
    if alive is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(alive)


def _check_private(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise StartError(f"{folder} is not a private folder of this user: remove it")


def _locked(path: Path, kind: Literal["shared", "exclusive"]) -> int | None:
    """A descriptor of the file of that name, locked; None where another one's lock forbids it. Raises OSError."""
    mode = fcntl.LOCK_SH if kind == "shared" else fcntl.LOCK_EX
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            if _is_named(descriptor, path):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the open file still has its name: who removed it took the name along."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
