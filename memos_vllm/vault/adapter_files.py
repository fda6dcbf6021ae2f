"""Files of adapters: where they lie, which stored cubes name them, and when they go.

    adapters/<cube id>-<digest>/    adapter_config.json and adapter_model.safetensors, which never change
    adapters/.<random>.partial/     being written; its writer holds a lock on the folder until its rows are on disk

A folder belongs to one adapter, so nobody can find out by adding files whether somebody else has the same ones, and
files that were made to share a digest can only meet in the hands of their maker. The lock stays with the folder when it
is renamed and ends with its process: a folder without rows and without a lock was left by a crash.
"""

import errno
import fcntl
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from filecmp import cmp
from pathlib import Path

import xxhash

from memos_vllm.cube import MemCube, Parameter, is_id
from memos_vllm.errors import Conflict, MemosError, VaultFull, VaultUnavailable
from memos_vllm.vault import keys
from memos_vllm.vault.env import Txn, sync
from memos_vllm.vault.records import Damaged, decode
from memos_vllm.vault.tables import load, store

ADAPTERS = "adapters"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)

_CHUNK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PARTIAL = ".partial"
_GONE = ".gone"


def key_of(cube: MemCube) -> bytes | None:
    """What the files of a cube are counted under; None where it has none."""
    payload = cube.payload
    if not isinstance(payload, Parameter) or not payload.name or not is_id(payload.digest):
        return None
    return keys.of_adapter_files(cube.id, payload.digest)


def place(memory_dir: Path, cube_id: str, digest: str) -> Path:
    """The folder of an adapter's files."""
    return memory_dir / ADAPTERS / f"{cube_id}-{digest}"


def digest_of(folder: Path) -> str:
    """32 hex digits over names, lengths and contents of both files. Raises OSError."""
    hasher = xxhash.xxh3_128()
    for name in FILES:
        file = folder / name
        hasher.update(b"%s:%d:" % (name.encode(), file.stat().st_size))
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                hasher.update(chunk)
    return hasher.hexdigest()


def bytes_of(folder: Path) -> int:
    """Raises OSError."""
    return sum((folder / name).stat().st_size for name in FILES)


def fault_of(folder: Path, digest: str) -> str:
    """What is wrong with the files in a folder, which are to have a digest; "" where nothing is."""
    try:
        return "" if digest_of(folder) == digest else "changed or cut short, the digest differs"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def failure(folder: Path, error: OSError) -> MemosError:
    """What a file system's refusal to write below a folder is answered with."""
    if error.errno in _FULL:
        return VaultFull(f"The disk under {folder} is full; nothing was stored. Free some space.")
    return VaultUnavailable(f"Cannot write below {folder}: {error.strerror or error}; nothing was stored.")


def hold(txn: Txn, cube: MemCube) -> int:
    """One more stored cube names its files; returns the bytes that this adds to its owner's."""
    key = key_of(cube)
    if key is None:
        return 0
    held = load(txn, "adapter_files", key, int) or 0
    store(txn, "adapter_files", key, held + 1)
    txn.delete("adapter_doomed", key)
    return _bytes(cube) if held == 0 else 0


def let_go(txn: Txn, database: str, row: bytes, stored: bytes) -> int:
    """A stored cube goes, or another takes its row; returns the bytes that this takes from its owner's.

    Files that nobody names any more are noted for removal, so that a crash cannot leave them behind.
    """
    cube = _stored_adapter(database, row, stored)
    key = key_of(cube) if cube else None
    if cube is None or key is None:
        return 0
    held = load(txn, "adapter_files", key, int) or 0
    if held > 1:
        store(txn, "adapter_files", key, held - 1)
        return 0
    txn.delete("adapter_files", key)
    txn.put("adapter_doomed", key)
    return _bytes(cube)


def settle(txn: Txn, memory_dir: Path, folder: Path, cube: MemCube) -> Path:
    """Bring a whole, synced folder to its place, before the cube that names it is stored; returns where it is then.

    Files that are there already stay if they are the same and sound, for others may read them. Raises Conflict where
    they are others under the same digest.
    """
    key, payload = key_of(cube), cube.payload
    assert key is not None and isinstance(payload, Parameter)
    target = place(memory_dir, cube.id, payload.digest)
    if folder == target:
        return target  # this write runs again
    if txn.get("adapter_files", key) is not None and not fault_of(target, payload.digest):
        if not all(cmp(folder / name, target / name, shallow=False) for name in FILES):
            raise Conflict("These files differ from an earlier version's but have its digest; train the adapter anew.")
        return folder
    if target.exists():
        _remove(target)
    folder.rename(target)
    sync(target.parent)
    return target


@contextmanager
def new_folder(memory_dir: Path) -> Iterator[Path]:
    """An empty folder for the files of an adapter, for this user alone, locked until the end of the block.

    What is in it then is removed, unless `settle` gave it a place. Raises OSError.
    """
    parent = memory_dir / ADAPTERS
    if not parent.is_dir():
        parent.mkdir(mode=0o700, exist_ok=True)
        sync(memory_dir)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def bury(txn: Txn, memory_dir: Path) -> None:
    """Remove the folders whose cubes are gone; one that cannot be removed is tried again at the next start."""
    for key, _ in list(txn.scan("adapter_doomed")):
        if _cleared(place(memory_dir, *keys.split_adapter_files(key))):
            txn.delete("adapter_doomed", key)


def held(txn: Txn) -> list[tuple[str, str]]:
    """Cube id and digest of every folder that stored cubes name."""
    return [keys.split_adapter_files(key) for key, _ in txn.scan("adapter_files")]


def strays(txn: Txn, memory_dir: Path) -> list[Path]:
    """Folders that were left by a crash: no row names them and no writer is at work on them."""
    found = []
    for folder in _folders(memory_dir):
        if not _is_named(txn, folder):
            with _claimed(folder) as claimed:
                found += [folder] if claimed else []
    return found


def sweep(txn: Txn, memory_dir: Path) -> None:
    """Remove what a crash has left. In a write transaction, so that no folder gets its rows meanwhile."""
    for folder in _folders(memory_dir):
        if not _is_named(txn, folder):
            _cleared(folder)


def problems(txn: Txn, memory_dir: Path) -> Iterator[str]:
    """Faults of the files themselves, which are read to their end."""
    for cube_id, digest in held(txn):
        folder = place(memory_dir, cube_id, digest)
        if fault := fault_of(folder, digest):
            yield f"{folder.relative_to(memory_dir)}: {fault}"
    for key, _ in txn.scan("adapter_doomed"):
        folder = place(memory_dir, *keys.split_adapter_files(key))
        if folder.exists():
            yield f"{folder.relative_to(memory_dir)}: to be removed with its memory, but still there"
    for folder in strays(txn, memory_dir):
        yield f"{folder.relative_to(memory_dir)}: folder without a memory, left by a crash; the next start removes it"


class Count:
    """The rows of `adapter_files` as they have to be, and the bytes of each owner, from all stored cubes."""

    def __init__(self) -> None:
        self.rows: Counter[bytes] = Counter()

    def enter(self, cube: MemCube) -> int:
        """Count a stored cube; returns the bytes that it adds to its owner's."""
        key = key_of(cube)
        if key is None:
            return 0
        self.rows[key] += 1
        return _bytes(cube) if self.rows[key] == 1 else 0


def _bytes(cube: MemCube) -> int:
    assert isinstance(cube.payload, Parameter)
    return cube.payload.bytes


def _stored_adapter(database: str, row: bytes, stored: bytes) -> MemCube | None:
    """The cube in a record, if it may be an adapter. A damaged one names nothing that could be found."""
    if b"parameter" not in stored:  # the payload's tag: other cubes need not be decoded
        return None
    try:
        return decode(stored, MemCube, database, row)
    except Damaged:
        return None


def _locked_folder(parent: Path) -> tuple[Path, int]:
    while True:
        folder = parent / f".{uuid.uuid4().hex}{_PARTIAL}"
        folder.mkdir(mode=0o700)
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # swept before it was locked
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether no living process writes to a folder; if so, none begins to before the end of the block."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield False
        return
    try:
        yield _locked(descriptor)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody else has it, or the file system knows no locks
        return False
    return True


def _cleared(folder: Path) -> bool:
    """Remove a folder that no living process writes to; whether it is gone."""
    with _claimed(folder) as claimed:
        return (claimed and _remove(folder)) or not folder.exists()


def _folders(memory_dir: Path) -> list[Path]:
    """Folders of adapters and those on their way; what somebody else put there is not ours to judge."""
    parent = memory_dir / ADAPTERS
    if not parent.is_dir():
        return []
    return sorted(entry for entry in parent.iterdir() if entry.is_dir() and _is_ours(entry.name))


def _is_ours(name: str) -> bool:
    cube_id, _, digest = name.partition("-")
    return (is_id(cube_id) and is_id(digest)) or (name.startswith(".") and name.endswith((_PARTIAL, _GONE)))


def _is_named(txn: Txn, folder: Path) -> bool:
    cube_id, _, digest = folder.name.partition("-")
    if not digest or folder.name.startswith("."):
        return False
    key = keys.of_adapter_files(cube_id, digest)
    return txn.get("adapter_files", key) is not None or txn.get("adapter_doomed", key) is not None


def _remove(folder: Path) -> bool:
    """Out of the way at once, then file by file; False where that failed."""
    gone = folder.with_name(f".{uuid.uuid4().hex}{_GONE}")
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return not gone.exists()
