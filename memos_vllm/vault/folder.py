"""The memory directory: marker `memos.json`, `vault/` (LMDB) and `kv/` (KV files)."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from memos_vllm.errors import NotAVault, VaultInUse, VaultUnwritable
from memos_vllm.vault import env, migrations
from memos_vllm.vault.env import Environment, sync
from memos_vllm.vault.lock import Use
from memos_vllm.vault.records import SCHEMA, KVRecord

MARKER = "memos.json"
VAULT = "vault"
KV = "kv"
SPARE = "vault.compact"
"""What a compaction writes, until it takes the place of `vault/data.mdb`."""
_RANK = re.compile(r"\.\d+of(?P<world>\d+)")
"""In the name of a KV file, which ranks' it is."""
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
                if not readonly:
                    _clear(path)
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


def _clear(path: Path) -> None:
    """Remove what a compaction that was killed has left; it holds what was forgotten since."""
    if (path / SPARE).exists():
        remove_unused(path / SPARE, used=path / VAULT)


def remove_unused(left: Path, *, used: Path) -> None:
    """Remove a folder where nobody works on it; who does has locked the folder `used`."""
    try:
        use = Use(used, alone=True)
    except VaultInUse:
        return
    shutil.rmtree(left, ignore_errors=True)
    use.end()


def page_problems(path: Path) -> list[str]:
    """Faults of the data file's pages, found without opening it. Raises VaultInUse, NotAVault."""
    checked(path)
    use = Use(path / VAULT, alone=True)
    try:
        return env.page_problems(path / VAULT / "data.mdb")
    finally:
        use.end()


def _create(path: Path) -> None:
    """The marker comes last; until then `memos.json.new` tells a start that was cut short from someone's files."""
    present = {entry.name for entry in path.iterdir()} - {"lost+found"}
    if present and _UNFINISHED not in present:
        raise NotAVault(f"{path} is neither empty nor a vault ({sorted(present)[0]!r} is in it); name another folder.")
    unfinished = mark(path, _UNFINISHED)
    (path / KV).mkdir(mode=0o700, exist_ok=True)
    (path / VAULT).mkdir(mode=0o700, exist_ok=True)
    new = Environment(path / VAULT, readonly=False, map_bytes=_NEW_VAULT_BYTES, max_bytes=None)
    try:
        new.write(migrations.stamp)
    finally:
        new.close()
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
    """The KV files of a manifest row that exist: the one it names, and those of the other ranks beside it.

    Files of as many ranks as the row's: a server with another tensor-parallel size has its own beside them.
    """
    named = path / record.path
    rank = _RANK.search(named.name)
    if rank is None:
        return [named] if named.exists() else []
    before, behind = named.name[: rank.start()], named.name[rank.end() :]
    files = (named.with_name(f"{before}.{n}of{rank['world']}{behind}") for n in range(ranks_of(record)))
    return [file for file in files if file.exists()]


def ranks_of(record: KVRecord) -> int:
    """How many files a manifest row has, one for each rank."""
    found = _RANK.search(PurePosixPath(record.path).name)
    return int(found["world"]) if found else 1
