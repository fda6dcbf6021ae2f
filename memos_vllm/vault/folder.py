"""The memory directory: marker `memos.json`, `vault/` (LMDB) and `kv/` (KV files)."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memos_vllm.errors import NotAVault, VaultUnwritable
from memos_vllm.vault import migrations
from memos_vllm.vault.env import Environment, sync
from memos_vllm.vault.records import SCHEMA, KVRecord

MARKER = "memos.json"
VAULT = "vault"
KV = "kv"
_UNFINISHED = "memos.json.new"
_UPGRADED = "memos.json.upgraded"
_NEW_VAULT_BYTES = 1 << 20


def prepare(path: Path, *, readonly: bool, create: bool) -> None:
    """Make sure that `path` holds a vault of this schema. create: a missing or empty folder becomes one.

    Raises NotAVault and VaultUnwritable.
    """
    try:
        if create:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path):
            if (path / MARKER).exists():
                _upgrade(path, checked(path), readonly=readonly)
            elif not create:
                raise NotAVault(f"There is no vault in {path}; start the server with it once, or name another folder.")
            else:
                _create(path)
    except (NotADirectoryError, FileExistsError) as error:
        raise NotAVault(f"{path} is no folder; name an empty or a new one.") from error
    except FileNotFoundError as error:
        raise NotAVault(f"There is no folder {path}.") from error
    except OSError as error:
        raise VaultUnwritable(f"Cannot use {path} as memory directory: {error.strerror}.") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Processes that start together must not create the vault twice. The kernel frees the lock of one that died."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def checked(path: Path) -> int:
    """The schema that the marker names, if the folder looks whole. Raises NotAVault."""
    try:
        marker: Any = json.loads((path / MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotAVault(f"There is no vault in {path}; name a memory directory or a backup of one.") from error
    except ValueError as error:
        raise NotAVault(f"{path / MARKER} is not JSON; restore it from a backup.") from error
    if not isinstance(marker, dict) or marker.get("format") != "memos-vault" or type(marker.get("schema")) is not int:
        raise NotAVault(f"{path / MARKER} does not mark a memos vault; name another folder.")
    if marker["schema"] > SCHEMA:
        raise NotAVault(f"{path} has vault schema {marker['schema']}, this version reads {SCHEMA}; upgrade memos-vllm.")
    data = path / VAULT / "data.mdb"
    if not data.exists() or data.stat().st_size == 0:
        raise NotAVault(f"{data} is missing or empty; restore it from a backup, or name a new folder.")
    return int(marker["schema"])


def _upgrade(path: Path, schema: int, *, readonly: bool) -> None:
    if schema == SCHEMA:
        return
    if readonly:
        raise NotAVault(
            f"{path} has vault schema {schema}, this version reads {SCHEMA}; migrate it: start the server with it once."
        )
    migrations.migrate(path / VAULT)
    mark(path, _UPGRADED).rename(path / MARKER)
    sync(path)


def page_problems(path: Path) -> list[str]:
    """Faults of the data file's pages. Raises VaultInUse, NotAVault, StartError."""
    checked(path)
    env = Environment(path / VAULT, readonly=True, map_bytes=_NEW_VAULT_BYTES, max_bytes=None, alone=True)
    try:
        return env.problems()
    finally:
        env.close()


def _create(path: Path) -> None:
    """The marker comes last; until then `memos.json.new` tells a start that was cut short from someone's files."""
    present = {entry.name for entry in path.iterdir()} - {"lost+found"}
    if present and _UNFINISHED not in present:
        raise NotAVault(f"{path} is neither empty nor a vault ({sorted(present)[0]!r} is in it); name another folder.")
    unfinished = mark(path, _UNFINISHED)
    (path / KV).mkdir(mode=0o700, exist_ok=True)
    (path / VAULT).mkdir(mode=0o700, exist_ok=True)
    env = Environment(path / VAULT, readonly=False, map_bytes=_NEW_VAULT_BYTES, max_bytes=None)
    try:
        env.write(migrations.stamp)
    finally:
        env.close()
    unfinished.rename(path / MARKER)
    sync(path / VAULT)
    sync(path)


def mark(path: Path, name: str = MARKER) -> Path:
    """Write the marker of a vault of this schema under a name, synced."""
    marker = path / name
    with marker.open("w") as file:
        json.dump({"format": "memos-vault", "schema": SCHEMA}, file)
        file.flush()
        os.fsync(file.fileno())
    return marker


def kv_files(path: Path, record: KVRecord) -> list[Path]:
    """The KV files of a manifest row that exist: the one it names, and those of the other ranks beside it."""
    named = path / record.path
    beside = named.parent.iterdir() if named.parent.is_dir() else ()
    return sorted(file for file in beside if file == named or file.name.startswith(f"{record.key}."))
