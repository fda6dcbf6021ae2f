"""The LMDB environment: transactions, a map that grows, several threads and processes, no forks.

LMDB's rules that shape this file: an environment is opened once a process and never used across a fork; a write
transaction belongs to one thread; a resize of the map invalidates every open transaction of the process, so it waits
until there is none and keeps new ones out.
"""

import errno
import logging
import mmap
import os
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import lmdb
import lmdb.verify

from memos_vllm.errors import MemosError, NotAVault, StartError, VaultFull, VaultUnavailable, VaultUnwritable
from memos_vllm.vault import meta
from memos_vllm.vault.gate import Gate
from memos_vllm.vault.keys import DATABASES, DUPSORT
from memos_vllm.vault.lock import Use
from memos_vllm.vault.reserve import Reserve
from memos_vllm.vault.together import Together
from memos_vllm.vault.txn import RawTxn, Txn

__all__ = ["Environment", "Txn", "acquire", "page_problems", "release", "sync"]

log = logging.getLogger(__name__)

MAX_READERS = 512
_VERIFY_BYTES = 64 << 20  # one to two seconds
_LITTLE_SPACE = 1 << 20
_LOOKS = 3
"""At pages that a writer may be changing."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
_MISCOUNTED = re.compile(rf"main/({'|'.join(sorted(DUPSORT))}) DB: walked \d+ (branch|leaf) pages\b")
"""LMDB 0.9.36 keeps too high a count of the pages of a DUPSORT database that shrank; nothing but `stat` reads it."""

Result = TypeVar("Result")


class Environment:
    """One LMDB environment of this process, shared by every vault object on the same folder."""

    def __init__(
        self, folder: Path, *, readonly: bool, map_bytes: int, max_bytes: int | None, alone: bool = False
    ) -> None:
        """alone: no other process, and no other environment of this one, may have the vault open. Raises StartError."""
        self.folder = folder
        self.readonly = readonly
        self.users = 0
        self._max_bytes = _pages(max_bytes) if max_bytes else None
        self._pid = os.getpid()
        self._gate = Gate()
        self._writer = threading.Lock()
        self._together = Together(self.write)
        self._closed = False
        start = min(_pages(map_bytes), self._max_bytes) if self._max_bytes else _pages(map_bytes)
        self._reserve = Reserve(folder)
        self._use = Use(folder, alone=alone)
        try:
            if readonly:
                self._refuse_torn()
            self._env = self._open(start)
            self._prepare()
            if not readonly:
                self._reserve.fill()
        except BaseException:
            self._use.end()
            raise

    def _prepare(self) -> None:
        try:
            self._verify()
            self._databases = self._open_databases()
        except (VaultFull, VaultUnavailable) as error:
            self._env.close()
            raise StartError(str(error)) from error
        except BaseException:
            self._env.close()
            raise

    @property
    def is_ready(self) -> bool:
        """Whether a transaction would begin at once now; while the map grows it waits for those that are open."""
        return self._gate.is_open

    def read(self, work: Callable[[Txn], Result]) -> Result:
        """`work` on a snapshot. Raises VaultUnavailable."""
        return self._run(lambda txn: work(Txn(txn, self._databases)), write=False)

    def write(self, work: Callable[[Txn], Result], *, frees: bool = False) -> Result:
        """`work` as one transaction, on disk when this returns; it runs again after the map has grown.

        frees: the write makes room, so it may go beyond `max_bytes` for a moment.
        Raises VaultFull and VaultUnavailable; then, and when `work` raises, nothing of it is stored.
        """
        with self._writer:
            outcome = self._run(lambda txn: self._outcome(work, Txn(txn, self._databases)), write=True, frees=frees)
            self._tidy(frees)
        return outcome()

    def _tidy(self, frees: bool) -> None:
        """After a write, which stands: what fails here is tried again after the next one."""
        try:
            self._give_back_spare()
            if frees:
                self._reserve.fill()
        except (MemosError, OSError) as error:
            log.warning("The vault in %s stays larger than it should for now: %s", self.folder, error)

    def _outcome(self, work: Callable[[Txn], Result], txn: Txn) -> Callable[[], Result]:
        """What a caller of `work` is to get. What it raises before it has written anything calls for no abort."""
        try:
            result = work(txn)
        except lmdb.Error:
            raise  # the transaction's, not the work's
        except Exception as error:
            if txn.writes:
                raise
            return partial(_raise, error)
        return lambda: result

    def write_together(self, work: Callable[[Txn], Result]) -> Result:
        """As `write`, but in one transaction with what other threads write just now: they share the wait for the disk.

        `work` may run more than once. What it raises undoes it alone.
        """
        return self._together.run(work)

    def _run(self, work: Callable[[RawTxn], Result], *, write: bool, frees: bool = False) -> Result:
        while True:
            self._check_usable(writing=write)
            try:
                with self._gate.transaction():
                    return self._write_once(work) if write else self._read_once(work)
            except lmdb.MapFullError as error:
                self._grow(frees, error)
            except lmdb.MapResizedError:
                self._resize(0)
            except lmdb.ReadersFullError as error:
                if not self._env.reader_check():
                    raise VaultUnavailable(f"More than {MAX_READERS} readers at once; try again.") from error
            except lmdb.Error as error:
                if not (frees and self._is_full(error) and self._reserve.release()):
                    raise self._unavailable(error) from error

    def _read_once(self, work: Callable[[RawTxn], Result]) -> Result:
        with self._env.begin() as txn:
            return work(txn)

    def _write_once(self, work: Callable[[RawTxn], Result]) -> Result:
        txn = self._env.begin(write=True)
        try:
            result = work(txn)
        except BaseException:
            # py-lmdb 3.0 aborts a write only when no other thread is inside a call: busy readers would hold it up.
            with self._gate.alone():
                txn.abort()
            raise
        txn.commit()
        return result

    def problems(self) -> list[str]:
        """What is wrong with the pages of the data file; no writer may change it meanwhile."""
        return page_problems(self.data_file)

    @property
    def data_file(self) -> Path:
        return self.folder / "data.mdb"

    def sizes(self) -> dict[str, int]:
        """Bytes of the map and of the pages in use (free pages counted in), and the limit (0: none)."""
        self._check_usable()
        map_bytes = self._env.info()["map_size"]
        return {"map_bytes": map_bytes, "used_bytes": self._used(), "max_bytes": self._max_bytes or 0}

    def close(self) -> None:
        """Waits for the transactions that are open."""
        if self._closed or os.getpid() != self._pid:
            return
        with self._writer, self._gate.resize():
            self._closed = True
            self._env.close()
            self._use.end()

    def _open(self, map_size: int, tries: int = 10) -> lmdb.Environment:
        try:
            return lmdb.open(
                str(self.folder),
                map_size=map_size,
                readonly=self.readonly,
                mode=0o700,
                max_readers=MAX_READERS,
                max_dbs=len(DATABASES),
                readahead=False,
            )
        except lmdb.MapResizedError as error:  # another process has just grown it
            if tries == 1:
                raise self._no_start(error) from error
            return self._open(map_size, tries - 1)
        except lmdb.Error as error:
            raise self._no_start(error) from error

    def _no_start(self, error: lmdb.Error) -> StartError:
        if error.code in _NO_ACCESS:
            return VaultUnwritable(f"Cannot open {self.folder}: {error.reason}; give this user access to it.")
        if isinstance(error, lmdb.InvalidError | lmdb.VersionMismatchError | lmdb.CorruptedError):
            return NotAVault(f"{self.data_file} is damaged or no LMDB file; restore it from a backup.")
        return StartError(f"Cannot open {self.folder}: {error}.")

    def _verify(self) -> None:
        """Refuse a truncated or overwritten file: LMDB itself would end the process with SIGBUS or an assertion.

        The write transaction keeps the file still. A reader cannot do this; see `_refuse_torn`.
        """

        def work(_: RawTxn) -> list[str]:
            size = self.data_file.stat().st_size
            return self.problems() if size < max(_VERIFY_BYTES, self._used()) else []

        problems = [] if self.readonly else self._run(work, write=True)
        if problems:
            raise NotAVault(f"{self.folder} is damaged; restore it from a backup ({problems[0]}).")

    def _refuse_torn(self) -> None:
        """Refuse a file that lacks pages, before LMDB maps it. It may be a little short where all goes well."""
        for _ in range(_LOOKS):
            pages = meta.pages_bytes(self.data_file)
            if self.data_file.stat().st_size >= pages or not (problems := self.problems()):
                return
        raise NotAVault(f"{self.folder} is damaged; restore it from a backup ({problems[0]}).")

    def _open_databases(self) -> dict[str, "lmdb._Database"]:
        def create(txn: RawTxn) -> dict[str, "lmdb._Database"]:
            return {name: self._env.open_db(name.encode(), txn=txn, **_duplicates(name)) for name in DATABASES}

        def find(_: RawTxn) -> dict[str, "lmdb._Database"]:
            """Each in a transaction of its own: a handle from a transaction that only read ends with it."""
            try:
                return {name: self._env.open_db(name.encode(), create=False, **_duplicates(name)) for name in DATABASES}
            except lmdb.NotFoundError as error:
                raise NotAVault(
                    f"{self.folder} lacks a database of this vault format; start the server with it once."
                ) from error

        return self._run(find, write=False) if self.readonly else self._run(create, write=True)

    def _used(self) -> int:
        return (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]

    def _check_usable(self, *, writing: bool = False) -> None:
        if os.getpid() != self._pid:
            raise VaultUnavailable("The vault was opened before this process was forked; open it after the fork.")
        if self._closed:
            raise VaultUnavailable("The vault is closed.")
        if writing and self.readonly:
            raise VaultUnavailable("The vault is open for reading only.")

    def _resize(self, size: int) -> None:
        """Set the map's size in this process; 0 takes over what another process has set."""
        with self._gate.resize():
            self._check_usable()
            try:
                self._env.set_mapsize(size)
            except lmdb.Error as error:
                raise self._unavailable(error) from error

    def _grow(self, frees: bool, cause: lmdb.MapFullError) -> None:
        """Twice the map, up to the limit. Pages that a dead reader held are tried first."""
        if self._env.reader_check():
            return
        size = self._env.info()["map_size"]
        limit = self._limit(frees)
        if limit is not None and size >= limit:
            raise VaultFull(
                f"The vault is full ({self._max_bytes} bytes); delete memories or raise the limit."
            ) from cause
        self._resize(2 * size if limit is None else min(2 * size, limit))

    def _limit(self, frees: bool) -> int | None:
        """LMDB copies pages on write, so even a delete needs some room."""
        if self._max_bytes is None:
            return None
        return self._max_bytes + _pages((1 << 20) + self._max_bytes // 8) if frees else self._max_bytes

    def _give_back_spare(self) -> None:
        """After a delete went beyond the limit; LMDB keeps the map at least as large as its pages in use."""
        if self._max_bytes is not None and self._env.info()["map_size"] > self._max_bytes:
            self._resize(self._max_bytes)

    def _unavailable(self, error: lmdb.Error) -> VaultFull | VaultUnavailable:
        if self._is_full(error):
            return VaultFull(f"The disk under {self.folder} is full; nothing was stored. Free some space.")
        return VaultUnavailable(f"The vault at {self.folder} failed: {error}; check it and restart.")

    def _is_full(self, error: lmdb.Error) -> bool:
        """Whether the disk is the cause; LMDB reports a short write as EIO."""
        disk = os.statvfs(self.folder)
        little = disk.f_bavail * disk.f_frsize < _LITTLE_SPACE
        return error.code in _DISK_FULL or (error.code == errno.EIO and little)


def page_problems(data_file: Path) -> list[str]:
    """What is wrong with the pages of a data file, which nobody changes meanwhile; LMDB does not map it."""
    try:
        found: list[str] = lmdb.verify.verify(str(data_file))  # type: ignore[no-untyped-call]
    except lmdb.verify.VerifyError as error:
        found = [str(error)]
    return [f"vault/data.mdb: {problem}" for problem in found if not _MISCOUNTED.match(problem)]


def _duplicates(database: str) -> dict[str, Any]:
    """Flags of a database with several values of one size under a key."""
    return {"dupsort": True, "dupfixed": True} if database in DUPSORT else {}


def sync(path: Path) -> None:
    """A file's content, or a folder's entries, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise(error: Exception) -> NoReturn:
    raise error


def _pages(size: int) -> int:
    """Rounded up to whole pages, as LMDB wants its map."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


_opened: dict[tuple[int, Path], Environment] = {}
_opened_lock = threading.Lock()


def acquire(folder: Path, *, readonly: bool, map_bytes: int, max_bytes: int | None) -> Environment:
    """The process's environment on a folder, opened by the first caller with its sizes. Pair with `release`."""
    key = (os.getpid(), folder.resolve())
    with _opened_lock:
        if any(path == key[1] and pid != key[0] for pid, path in _opened):
            raise VaultUnavailable(f"{folder} was open when this process was forked; close it before, or spawn.")
        env = _opened.get(key)
        if env is None:
            env = Environment(folder, readonly=readonly, map_bytes=map_bytes, max_bytes=max_bytes)
            _opened[key] = env
        elif env.readonly and not readonly:
            raise VaultUnavailable(f"{folder} is open for reading only in this process; close that first.")
        env.users += 1
        return env


def release(env: Environment) -> None:
    """Closes the environment when its last user is gone."""
    with _opened_lock:
        env.users -= 1
        if env.users == 0:
            _opened.pop((os.getpid(), env.folder.resolve()), None)
            env.close()
