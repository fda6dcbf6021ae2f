"""The part of a vault that keeps adapters: their files, names, numbers, and which version is active."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from memos_vllm.cube import MemCube, Parameter
from memos_vllm.errors import Conflict, NotFound
from memos_vllm.vault import adapter_files, adapters, audit, books, changes, keys, snapshots, states, tables, versions
from memos_vllm.vault.env import Txn
from memos_vllm.vault.kv import KVManifest
from memos_vllm.vault.migrations import ACTOR
from memos_vllm.vault.records import AdapterRecord

Switch = Callable[[AdapterRecord, set[int]], AdapterRecord]
"""An adapter's record and the versions that have files → the record with another version active."""


class HeldVersion(msgspec.Struct, frozen=True):
    """A version of an adapter that has its files. number: no other version has ever had it."""

    cube: MemCube
    number: int


class HeldAdapter(msgspec.Struct, frozen=True):
    """An adapter at one moment. newest: its header holds for all versions; versions: those asked for, oldest first."""

    record: AdapterRecord
    newest: MemCube
    versions: tuple[HeldVersion, ...]
    default: bool


class Adapters(KVManifest):
    """Which adapters there are. Whether a caller may change one is the caller's question."""

    @contextmanager
    def new_adapter_folder(self) -> Iterator[Path]:
        """An empty folder beside the others, for the files that `put_adapter` takes; gone at the end of the block.

        An OSError of the block becomes VaultFull or VaultUnavailable.
        """
        self._writable()
        try:
            with adapter_files.new_folder(self.path) as folder:
                yield folder
        except BaseException as error:
            self.sweep_adapters()
            if isinstance(error, OSError):
                raise adapter_files.failure(self.path, error) from error
            raise

    def put_adapter(self, draft: MemCube, folder: Path, *, actor: str, switch: Switch | None = None) -> HeldAdapter:
        """Store an adapter: a new one, or the next version of the one that its owner calls so, with that version.

        folder: from `new_adapter_folder`, with both files, whole and synced. switch: which version is active then.
        Raises BadInput, TooLarge, QuotaExceeded, and Conflict where the content cannot change.
        """
        first = versions.first(draft, actor)
        assert isinstance(first.payload, Parameter)
        owner, name = first.owner, first.payload.name

        def work(txn: Txn) -> HeldAdapter:
            nonlocal folder
            known = adapters.find(txn, owner, owner, name)
            if known is None:
                cube = first
                folder = adapter_files.settle(txn, self.path, folder, cube)
                changes.enter(txn, cube, actor)
                adapters.begin(txn, cube)
            else:
                old = tables.newest(txn, known)
                cube = versions.replaced(old, draft, actor)
                folder = adapter_files.settle(txn, self.path, folder, cube)
                changes.supersede(txn, old, cube, actor)
            if switch is not None:
                _switch(txn, cube.id, switch, actor, "adapter.activate")
            return _held(txn, cube.id, {cube.version})

        stored = self._change(work)
        self._bury()
        return stored

    def find_adapter(
        self, principals: Iterable[str], owner: str, name: str, version: int | None = None
    ) -> HeldAdapter | None:
        """The adapter that one of the principals may call `owner/name`, with one version, or the active one; else None.

        version: 0 for all. A version that has no files is left out.
        """

        def work(txn: Txn) -> HeldAdapter | None:
            found = (adapters.find(txn, principal, owner, name) for principal in principals)
            cube_id = next(filter(None, found), None)
            return _held(txn, cube_id, _wanted(txn, cube_id, version)) if cube_id else None

        return self._env.read(work)

    def adapters_of(self, principals: Iterable[str]) -> list[HeldAdapter]:
        """Every adapter that one of the principals may read, with all its versions, by owner and name."""

        def work(txn: Txn) -> list[HeldAdapter]:
            ids = dict.fromkeys(cube_id for name in principals for cube_id in adapters.names_of(txn, name))
            return _sorted(_held(txn, cube_id, None) for cube_id in ids)

        return self._env.read(work)

    def all_adapters(self) -> list[HeldAdapter]:
        """The adapters of all owners, with all versions, by owner and name."""
        return self._env.read(
            lambda txn: _sorted(_held(txn, cube_id.hex(), None) for cube_id, _ in txn.scan("adapters"))
        )

    def default_adapter(self, owner: str) -> HeldAdapter | None:
        """An owner's default adapter, with its active version."""

        def work(txn: Txn) -> HeldAdapter | None:
            cube_id = adapters.default_of(txn, owner)
            return _held(txn, cube_id, _wanted(txn, cube_id, None)) if cube_id else None

        return self._env.read(work)

    def switch_adapter(
        self, cube_id: str, switch: Switch, *, actor: str, action: str, default: bool | None = None
    ) -> HeldAdapter:
        """Make another version active, or none; an adapter that was archived is activated with it.

        default: whether it is its owner's default from now on; None: it becomes that where there is none.
        Raises NotFound, Conflict, and what `switch` raises.
        """

        def work(txn: Txn) -> HeldAdapter:
            record = _switch(txn, cube_id, switch, actor, action, default)
            return _held(txn, cube_id, {record.active})

        return self._change(work, adds=False)

    def drop_adapter(self, cube_id: str, *, actor: str, snapshots_too: bool = False) -> None:
        """Remove an adapter with all its versions, as `delete` does with a cube. Raises NotFound."""

        def work(txn: Txn) -> None:
            cube = tables.newest(txn, cube_id)
            changes.remove(txn, cube, actor)
            if snapshots_too:
                snapshots.strike(txn, [cube])

        self._change(work, frees=True, adds=False)
        self._bury()

    def drop_adapter_version(self, cube_id: str, version: int, *, actor: str) -> None:
        """Remove the files of one version; what it was stays in the adapter's history.

        Raises NotFound, and Conflict where it is active or the only one.
        """

        def work(txn: Txn) -> None:
            record = adapters.record_of(txn, cube_id)
            _check_droppable(txn, record, version)
            newest = tables.newest(txn, cube_id)
            _take_files(txn, tables.version_of(txn, cube_id, version), newest=newest.version == version)
            detail = {"version": version}
            audit.append(txn, actor=actor, action="adapter.remove", target=cube_id, owner=record.owner, detail=detail)

        self._change(work, frees=True, adds=False)
        self._bury()

    def has_adapter_files(self, cube_id: str, version: int) -> bool:
        """Whether a version of an adapter is there to be used."""
        return self._env.read(lambda txn: adapters.number_of(txn, cube_id, version)) is not None

    def adapters_revision(self) -> int:
        """A number that grows with every change of any adapter."""
        return self._env.read(adapters.revision)

    def adapter_folder(self, cube_id: str, digest: str) -> Path:
        """Where the files of a version lie."""
        return adapter_files.place(self.path, cube_id, digest)

    def sweep_adapters(self) -> None:
        """Remove folders that a crash or a failed write has left."""
        if self._env.read(lambda txn: adapter_files.strays(txn, self.path)):
            self._env.write(lambda txn: adapter_files.sweep(txn, self.path), frees=True)


def lose(txn: Txn, cube_id: str, digest: str) -> None:
    """Files of an adapter are lost: no stored cube names them any more, and no version that had them is active."""
    cube = tables.find(txn, cube_id)
    for version in tables.versions_of(txn, cube) if cube else ():
        if _digest(version) == digest:
            _take_files(txn, version, newest=version is cube)
    for key, stored in list(txn.scan("snapshot_cubes")):
        if key.endswith(keys.cube_key(cube_id)):
            copy = tables.decoded(stored, MemCube, "snapshot_cubes", key)
            if _digest(copy) == digest:
                books.put_cube(txn, "snapshot_cubes", key, _without_files(copy))
                snapshots.recount(txn, [key])


def _take_files(txn: Txn, version: MemCube, *, newest: bool) -> None:
    """A version keeps its place in the history, without files or number."""
    key = keys.cube_key(version.id) if newest else keys.numbered(version.id, version.version)
    books.put_cube(txn, "cubes" if newest else "versions", key, _without_files(version))
    adapters.drop_number(txn, version.id, version.version)
    if (record := adapters.record_of(txn, version.id)).active == version.version:
        adapters.switch(txn, msgspec.structs.replace(record, active=0), ACTOR, "adapter.deactivate")


def _digest(cube: MemCube) -> str:
    return cube.payload.digest if isinstance(cube.payload, Parameter) else ""


def _switch(
    txn: Txn, cube_id: str, switch: Switch, actor: str, action: str, default: bool | None = None
) -> AdapterRecord:
    old = adapters.record_of(txn, cube_id)
    new = switch(old, _alive(txn, cube_id))
    if new != old:
        adapters.switch(txn, new, actor, action)
    cube = tables.newest(txn, cube_id)
    if new.active and cube.header.state not in ("activated", "frozen"):
        states.check_transition(cube.header.state, "activated")
        changes.transit(txn, cube, "activated", actor)
    if default is None and new.active and adapters.default_of(txn, new.owner) is None:
        default = True
    if default is not None and default != (adapters.default_of(txn, new.owner) == cube_id):
        adapters.set_default(txn, new, default)
        detail = {"default": default}
        audit.append(txn, actor=actor, action="adapter.default", target=cube_id, owner=new.owner, detail=detail)
    return new


def _held(txn: Txn, cube_id: str, wanted: set[int] | None) -> HeldAdapter:
    """wanted: versions, None for all."""
    record, newest = adapters.record_of(txn, cube_id), tables.newest(txn, cube_id)
    numbers = sorted(_alive(txn, cube_id) if wanted is None else wanted)
    found = [(tables.held(txn, cube_id, version), adapters.number_of(txn, cube_id, version)) for version in numbers]
    kept = tuple(HeldVersion(cube, number) for cube, number in found if cube is not None and number is not None)
    return HeldAdapter(record, newest, kept, adapters.default_of(txn, record.owner) == cube_id)


def _wanted(txn: Txn, cube_id: str, version: int | None) -> set[int] | None:
    if version is None:
        return {adapters.record_of(txn, cube_id).active} - {0}
    return {version} if version else None


def _alive(txn: Txn, cube_id: str) -> set[int]:
    """The versions that have their files."""
    return {keys.split_numbered(key)[1] for key, _ in txn.scan("adapter_ids", keys.cube_key(cube_id))}


def _check_droppable(txn: Txn, record: AdapterRecord, version: int) -> None:
    alive = _alive(txn, record.cube_id)
    if version not in alive:
        raise NotFound(f"There is no version {version} of {record.name!r}.")
    if version == record.active:
        raise Conflict(f"{record.name}@v{version} is active; activate another version or deactivate it first.")
    if alive == {version}:
        raise Conflict(f"{record.name}@v{version} is the only version; remove the adapter.")


def _without_files(cube: MemCube) -> MemCube:
    assert isinstance(cube.payload, Parameter)
    return MemCube(cube.header, msgspec.structs.replace(cube.payload, digest="", bytes=0))


def _sorted(held: Iterable[HeldAdapter]) -> list[HeldAdapter]:
    return sorted(held, key=lambda adapter: (adapter.record.owner, adapter.record.name))
