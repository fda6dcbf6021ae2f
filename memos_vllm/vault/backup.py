"""Backup, restore and compaction: whole, checked copies of a vault that appear under their name in one step.

    DIR ── rows, as of one moment ──▶ .NAME.partial/vault ── files they name ──▶ .NAME.partial/… ── check ──▶ NAME

A backup is a memory directory like any other, without free pages, so that no deleted text goes along. Nothing that
runs on the original has to stop for it.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial as bound
from pathlib import Path

import msgspec

from memos_vllm.errors import BackupFailed
from memos_vllm.vault import adapter_files, audit, chain, folder, keys, lora, manifest, migrations
from memos_vllm.vault.base import Opened
from memos_vllm.vault.check import problems_in
from memos_vllm.vault.env import Environment, Txn, sync
from memos_vllm.vault.lock import Use
from memos_vllm.vault.records import KVRecord

_MAP_BYTES = 64 << 20
_UNFINISHED = "unfinished"
"""A folder in each copy until it gets its name, locked by who makes it: another one is removed by the next backup."""

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is (0: unknown)."""


class Copied(msgspec.Struct, frozen=True):
    """What a copy holds.

    bytes: data file, KV files and adapters; left_out: KV files that were gone or not wanted
    adapters_lost: folders of adapters that were missing, damaged or removed meanwhile; in the copy their versions have
        no files
    """

    cubes: int
    kv: int
    left_out: int
    adapters: int
    adapters_lost: int
    bytes: int
    log_head: str


def _silent(what: str, done: int, total: int) -> None:
    """The progress of a call that shows none."""


class Keeper(Opened):
    """The part of a vault that copies it."""

    def backup(self, target: Path, *, actor: str, kv: bool = True, progress: Progress = _silent) -> Copied:
        """A copy of the vault as of this moment, checked, in the new folder `target`, while others read and write.

        kv: with the KV files; without them a server makes them anew. Adapters always go along. Call it from a process
        of its own where a server writes: a map that has to grow waits for the copy.
        Raises BackupFailed, VaultFull, VaultUnavailable.
        """
        with _appearing(Path(target).absolute(), self.path) as partial:
            progress("records", 0, 0)
            _rewrite(self._env, partial / folder.VAULT)
            copied = _completed(partial, self.path, progress, kv=kv)
        if not self.readonly:
            self._env.write(lambda txn: audit.append(txn, actor=actor, action="vault.backup"), frees=True)
        return copied


def restore(backup: Path, target: Path, *, actor: str, progress: Progress = _silent) -> Copied:
    """Make the memory directory `target` out of a backup, which stays as it is; an older schema is migrated.

    Raises BackupFailed, and StartError where the backup is no vault, or in use.
    """
    backup = Path(backup).absolute()
    folder.checked(backup)
    use = Use(backup / folder.VAULT, alone=True)
    try:
        with _appearing(Path(target).absolute(), backup) as partial:
            progress("records", 0, 0)
            (partial / folder.VAULT).mkdir(mode=0o700)
            _copy_file(backup / folder.VAULT / "data.mdb", partial / folder.VAULT / "data.mdb")
            _copy_file(backup / folder.MARKER, partial / folder.MARKER)
            folder.prepare(partial, readonly=False, create=False)
            return _completed(partial, backup, progress, actor=actor)
    finally:
        use.end()


def compact(path: Path, *, actor: str) -> tuple[int, int]:
    """Write the data file anew without its free pages; returns its bytes before and after.

    Raises VaultInUse while another process, or this one, has the vault open, and StartError.
    """
    path = Path(path).absolute()
    folder.prepare(path, readonly=False, create=False)
    spare = path / folder.SPARE
    shutil.rmtree(spare, ignore_errors=True)
    env = Environment(path / folder.VAULT, readonly=False, map_bytes=_MAP_BYTES, max_bytes=None, alone=True)
    try:
        before = env.data_file.stat().st_size
        env.write(lambda txn: audit.append(txn, actor=actor, action="vault.compact"))
        _rewrite(env, spare)
        _sound(spare)
        (spare / env.data_file.name).replace(env.data_file)
        sync(path / folder.VAULT)
        return before, env.data_file.stat().st_size
    finally:
        env.close()
        shutil.rmtree(spare, ignore_errors=True)


@contextmanager
def _appearing(target: Path, source: Path) -> Iterator[Path]:
    """A folder beside `target` that gets its name when all went well, and is removed when not."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BackupFailed(f"{target} is there already; name a new folder, or move it away first.")
    if source == target or source in target.parents:
        raise BackupFailed(f"{target} lies inside {source}; name a folder elsewhere.")
    partial = target.parent / f".{target.name}.partial"
    held = None
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in target.parent.glob(".*.partial"):
            if (left / _UNFINISHED).is_dir():
                folder.remove_unused(left, used=left / _UNFINISHED)
        shutil.rmtree(partial, ignore_errors=True)
        (partial / _UNFINISHED).mkdir(mode=0o700, parents=True)
        partial.chmod(0o700)
        held = Use(partial / _UNFINISHED, alone=False)
        yield partial
        (partial / _UNFINISHED).rmdir()
        partial.rename(target)
        sync(target.parent)
    except OSError as error:
        raise BackupFailed(f"Cannot write {target}: {error.strerror or error}; nothing was left there.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if held is not None:
            held.end()


def _completed(partial: Path, source: Path, progress: Progress, *, kv: bool = True, actor: str = "") -> Copied:
    """Bring the files beside a copied data file, check all of it, and mark it. actor: who restores it."""
    (partial / folder.KV).mkdir(mode=0o700)
    env = Environment(partial / folder.VAULT, readonly=False, map_bytes=_MAP_BYTES, max_bytes=None)
    try:
        migrations.refresh(env)
        rows = env.read(manifest.rows)
        missing = _copy_kv(rows, source, partial, progress) if kv else rows
        adapters = env.read(adapter_files.held)
        lost = _copy_adapters(adapters, source, partial, progress)
        env.write(lambda txn: _drop(txn, missing, lost))
        if actor:
            env.write(lambda txn: audit.append(txn, actor=actor, action="vault.restore"))
        progress("check", 0, 0)
        _refuse(partial, env.problems() or env.read(lambda txn: problems_in(txn, partial)))
        copied = Copied(
            cubes=env.read(bound(_count, "cubes")),
            kv=len(rows) - len(missing),
            left_out=len(missing),
            adapters=len(adapters) - len(lost),
            adapters_lost=len(lost),
            bytes=_bytes(partial),
            log_head=str(env.read(audit.head_of)),
        )
    finally:
        env.close()
    for name in ("lock.mdb", "reserve"):
        (partial / folder.VAULT / name).unlink(missing_ok=True)
    folder.mark(partial)
    sync(partial)
    return copied


def _bytes(partial: Path) -> int:
    files = [*(partial / folder.KV).rglob("*"), *(partial / adapter_files.ADAPTERS).rglob("*")]
    return sum(file.stat().st_size for file in (partial / folder.VAULT / "data.mdb", *files) if file.is_file())


def _copy_kv(rows: list[KVRecord], source: Path, partial: Path, progress: Progress) -> list[KVRecord]:
    """Copy the files of manifest rows; returns the rows whose files are gone or have changed meanwhile."""
    missing = []
    total, done = sum(row.bytes for row in rows), 0
    for row in rows:
        try:
            size = sum(_copy_file(file, partial / file.relative_to(source)) for file in folder.kv_files(source, row))
        except FileNotFoundError:
            size = -1
        if size != row.bytes:
            missing.append(row)
            for file in folder.kv_files(partial, row):
                file.unlink()
        done += row.bytes
        progress("KV files", done, total)
    return missing


def _copy_adapters(
    adapters: list[tuple[str, str]], source: Path, partial: Path, progress: Progress
) -> list[tuple[str, str]]:
    """Copy the folders of adapters, by cube id and digest; returns those whose files are missing or changed."""
    lost = []
    for done, (cube_id, digest) in enumerate(adapters):
        progress("adapters", done, len(adapters))
        here, there = (adapter_files.place(path, cube_id, digest) for path in (source, partial))
        for name in adapter_files.FILES:
            with suppress(FileNotFoundError):
                _copy_file(here / name, there / name)
        if adapter_files.fault_of(there, digest):
            shutil.rmtree(there, ignore_errors=True)
            lost.append((cube_id, digest))
        else:
            sync(there)
    return lost


def _copy_file(source: Path, target: Path) -> int:
    """Returns its bytes; they are on disk then."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o600)
    sync(target)
    return target.stat().st_size


def _drop(txn: Txn, rows: list[KVRecord], lost: list[tuple[str, str]]) -> None:
    """Let no row of the copy name files that were not copied."""
    manifest.doom_all(txn, rows)
    for row in manifest.rows(txn, "doomed"):
        manifest.forget(txn, row)
    for cube_id, digest in lost:
        lora.lose(txn, cube_id, digest)


def _rewrite(env: Environment, folder: Path) -> None:
    """Every row of one moment, in the order of keys, into a data file of its own: no page of what was deleted.

    LMDB 0.9.36 cannot do it: its compacting copy crashes on DUPFIXED databases.
    """
    folder.mkdir(mode=0o700)
    room = env.data_file.stat().st_size + _MAP_BYTES
    copy = Environment(folder, readonly=False, map_bytes=room, max_bytes=None)
    try:
        env.read(lambda txn: _append_all(txn, copy))
    finally:
        copy.close()
    sync(copy.data_file)
    sync(folder)


def _append_all(txn: Txn, copy: Environment) -> None:
    for name in keys.DATABASES:
        copy.write(bound(_append, txn, name))
        if (copied := copy.read(bound(_count, name))) != txn.count(name):
            raise BackupFailed(
                f"{copied} of {txn.count(name)} rows of {name} were copied; run `memos-vllm vault check`."
            )


def _append(source: Txn, database: str, txn: Txn) -> None:
    txn.append(database, source.scan(database))


def _count(database: str, txn: Txn) -> int:
    return txn.count(database)


def _sound(folder: Path) -> None:
    """Refuse a data file with damaged pages or a broken log."""
    env = Environment(folder, readonly=False, map_bytes=_MAP_BYTES, max_bytes=None)
    try:
        _refuse(folder, env.problems() or env.read(lambda txn: list(chain.problems(lambda work: work(txn)))))
    finally:
        env.close()


def _refuse(copy: Path, problems: list[str]) -> None:
    if problems:
        raise BackupFailed(
            f"{len(problems)} faults in the copy, so it was not kept ({problems[0]}); "
            "run `memos-vllm vault check` on the original."
        )
