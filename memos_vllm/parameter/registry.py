"""AdapterRegistry: who may use which adapter, under which name, in which version.

    add ─▶ validated and written to its folder ─▶ committed with its cube ─▶ activate ─▶ resolve ─▶ stage ─▶ vLLM

An adapter is a cube, its versions are the cube's, and who may read the cube may use the adapter. Names belong to their
owner. What a caller may not use is looked for in the same way, and answered with the same words, as what nobody has.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from memos_vllm.cube import Grant, Header, Licence, MemCube, Scalar, new_id, now
from memos_vllm.errors import AdapterInactive, AdapterUnusable, Conflict, Forbidden, NotFound, StartError
from memos_vllm.governance.identity import Caller
from memos_vllm.parameter import folders, names
from memos_vllm.parameter.base_model import BaseModel
from memos_vllm.parameter.entries import AdapterEntry, AdapterVersion, entry_of, version_of
from memos_vllm.parameter.folders import AdapterFiles
from memos_vllm.vault import AdapterRecord, HeldAdapter, Vault
from memos_vllm.vault.lora import Switch
from memos_vllm.vault.states import SERVING

__all__ = ["AdapterEntry", "AdapterFiles", "AdapterRegistry", "AdapterVersion", "BaseModel", "Caller"]

# `AdapterRegistry.list` hides the builtin from annotations in the class body.
Entries = list[AdapterEntry]

MAX_RANK = 64
MAX_BYTES = 1 << 30


class AdapterRegistry:
    """The adapters of a vault. Thread-safe; several processes may have one each on the same vault.

    base, max_rank: what they are to fit; without a base nothing can be added, and everything fits.
    """

    def __init__(
        self, vault: Vault, *, base: BaseModel | None = None, max_rank: int = MAX_RANK, max_bytes: int = MAX_BYTES
    ) -> None:
        self.vault = vault
        self.base = base
        self.max_rank = max_rank
        self.max_bytes = max_bytes

    def add(
        self,
        owner: str,
        name: str,
        files: AdapterFiles,
        *,
        author: str,
        parents: Iterable[str] = (),
        tags: Iterable[str] = (),
        metadata: Mapping[str, Scalar] | None = None,
        licence: Licence | None = None,
        access: Iterable[Grant] = (),
        activate: bool = False,
    ) -> AdapterVersion:
        """Check and store an adapter: a new one, or the next version of the one that its owner calls so.

        parents: `id@version` of the cubes it was made from; access: for a new one alone, a version keeps what there is.
        All of it or nothing is there afterwards, whenever the process dies.
        Raises BadInput, TooLarge, QuotaExceeded, Conflict, VaultFull, VaultUnavailable.
        """
        names.checked_name(name)
        if self.base is None:
            raise StartError("An adapter can only be added where its base model is known; name the model.")
        with self.vault.new_adapter_folder() as folder:
            payload = folders.take_in(
                folder, files, self.base, name=name, max_rank=self.max_rank, max_bytes=self.max_bytes
            )
            header = Header(
                id=new_id(),
                owner=owner,
                model=payload.base_model,
                origin="parameter_fine_tuning",
                parents=tuple(parents),
                tags=tuple(tags),
                metadata=dict(metadata or {}),
                licence=licence,
                access=tuple(access),
            )
            switch = _newest if activate else None
            held = self.vault.put_adapter(MemCube(header, payload), folder, actor=author, switch=switch)
        return version_of(held, held.versions[-1])

    def list(self, caller: Caller) -> Entries:
        """The adapters that a caller may use: their own, then others', by owner and name."""
        held = [held for held in self.vault.adapters_of(caller.principals) if _visible(held, caller)]
        entries = (entry_of(one, owned=one.record.owner in caller.principals) for one in held)
        return sorted(entries, key=lambda entry: entry.owner != caller.user)

    def all(self) -> Entries:
        """The adapters of all owners, for an operator, by owner and name."""
        return [entry_of(held, owned=True) for held in self.vault.all_adapters()]

    def get(self, caller: Caller, name: str) -> AdapterEntry:
        """The adapter that a caller calls `NAME`, or `OWNER/NAME`. Raises NotFound."""
        held = self._found(caller, name)
        return entry_of(held, owned=held.record.owner in caller.principals)

    def resolve(self, caller: Caller, model: str) -> AdapterVersion:
        """The version that a request for `NAME[@vN]` or `OWNER/NAME[@vN]` gets.

        Raises NotFound, AdapterInactive where it names no version and none is active, AdapterUnusable.
        """
        named = names.parsed(model)
        held = self._held(caller, named, None if named is None else named.version)
        return self._usable(held, None if named is None else named.version)

    def default_of(self, caller: Caller) -> AdapterVersion | None:
        """The version that serves a caller's requests that name no adapter, or None.

        Raises AdapterInactive where it is archived or expired, AdapterUnusable.
        """
        held = self.vault.default_adapter(caller.user)
        if held is None or not held.record.active or not _visible(held, caller):
            return None
        return self._usable(held, None)

    def activate(
        self, caller: Caller, name: str, version: int | None = None, *, default: bool | None = None, actor: str = ""
    ) -> AdapterVersion:
        """Let requests that name no version get this one, from the next request on.

        version: None for the newest. default: whether it serves its owner's requests that name no adapter; None: if
        nothing else does. Raises NotFound, Forbidden, Conflict where it is expired or merged, AdapterUnusable.
        """
        held = self._own(caller, name)
        wanted = version if version is not None else max((one.cube.version for one in held.versions), default=0)
        chosen = next((one for one in held.versions if one.cube.version == wanted), None)
        if chosen is None:
            raise NotFound(f"There is no version {wanted} of {held.record.name!r}.")
        self._check_fits(version_of(held, chosen))
        switched = self._switch(held, _to(wanted), caller, actor, "adapter.activate", default)
        return version_of(switched, switched.versions[-1])

    def rollback(self, caller: Caller, name: str, *, actor: str = "") -> AdapterVersion:
        """Activate the version that was active before. Raises NotFound, Forbidden, Conflict where there is none."""
        switched = self._switch(self._own(caller, name), _back, caller, actor, "adapter.rollback", None)
        return version_of(switched, switched.versions[-1])

    def deactivate(self, caller: Caller, name: str, *, actor: str = "") -> None:
        """Let the adapter serve only requests that name a version. Raises NotFound, Forbidden."""
        self._switch(self._own(caller, name), _off, caller, actor, "adapter.deactivate", None)

    def remove(
        self, caller: Caller, name: str, version: int | None = None, *, snapshots: bool = False, actor: str = ""
    ) -> None:
        """Remove an adapter, or the files of one version, whose place in the history stays.

        snapshots: copies in its owner's snapshots go too; otherwise they keep the files and can bring it back.
        Raises NotFound, Forbidden, Conflict where the version is active or the only one.
        """
        held = self._own(caller, name)
        actor = actor or caller.user
        if version is None:
            self.vault.drop_adapter(held.record.cube_id, actor=actor, snapshots_too=snapshots)
        else:
            self.vault.drop_adapter_version(held.record.cube_id, version, actor=actor)

    def export(self, caller: Caller, name: str, folder: Path, version: int | None = None) -> AdapterVersion:
        """Write a version's files, or the active or else the newest one's, to a new folder, as PEFT reads them.

        Raises NotFound, AdapterUnusable, Conflict where the folder is there, VaultFull.
        """
        held = self._found(caller, name)
        wanted = version or held.record.active or max((one.cube.version for one in held.versions), default=0)
        chosen = next((one for one in held.versions if one.cube.version == wanted), None)
        if chosen is None:
            raise NotFound(f"There is no version {wanted} of {held.record.name!r}.")
        exported = version_of(held, chosen)
        self.stage(exported, folder)
        return exported

    def folder(self, version: AdapterVersion) -> Path:
        """Where a version's files lie. They may go at any moment: serve from copies that `stage` made."""
        return self.vault.adapter_folder(version.cube_id, version.digest)

    def stage(self, version: AdapterVersion, target: Path) -> None:
        """Copy a version's files to a new folder and compare the copy with their digest.

        Raises AdapterUnusable, Conflict where `target` is there, VaultFull; nothing is left there then.
        """
        folders.copy_out(self.folder(version), target, version.digest)

    def exists(self, version: AdapterVersion) -> bool:
        """Whether a version is still there: neither removed, nor forgotten with its owner."""
        return self.vault.has_adapter_files(version.cube_id, version.version)

    def revision(self) -> int:
        """A number that grows with every change of any adapter; while it stays, `exists` need not be asked again."""
        return self.vault.adapters_revision()

    def _held(self, caller: Caller, named: names.AdapterName | None, version: int | None) -> HeldAdapter:
        """The adapter under a name, with the versions that `Vault.find_adapter` is asked for. Raises NotFound."""
        if named is not None:
            held = self.vault.find_adapter(caller.principals, named.owner or caller.user, named.name, version)
            if held is not None and _visible(held, caller):
                return held
        raise NotFound("There is no such adapter.")

    def _found(self, caller: Caller, name: str) -> HeldAdapter:
        """The adapter under a name without a version, with all versions. Raises NotFound."""
        named = names.parsed(name)
        return self._held(caller, named if named and named.version is None else None, 0)

    def _own(self, caller: Caller, name: str) -> HeldAdapter:
        """Raises NotFound, and Forbidden where the caller may use it but it is not theirs."""
        held = self._found(caller, name)
        if held.record.owner not in caller.principals:
            raise Forbidden("This adapter is not yours: only its owner may change it.")
        return held

    def _usable(self, held: HeldAdapter, version: int | None) -> AdapterVersion:
        named, header = held.record.name, held.newest.header
        if held.newest.expired() or header.state not in SERVING:
            state = "expired" if held.newest.expired() else header.state
            raise AdapterInactive(f"The adapter {named!r} is {state}; activate it, or add it anew if it has expired.")
        if header.licence is not None and header.licence.expires and header.licence.expires <= now():
            raise AdapterInactive(f"The licence of the adapter {named!r} has expired.")
        if not held.versions:
            if version is None:
                raise AdapterInactive(f"No version of the adapter {named!r} is active; activate or name one, as @vN.")
            raise NotFound(f"There is no version {version} of {named!r}.")
        usable = version_of(held, held.versions[-1])
        self._check_fits(usable)
        return usable

    def _check_fits(self, version: AdapterVersion) -> None:
        if self.base is None:
            return
        if version.base != self.base.fingerprint:
            raise AdapterUnusable(
                f"{version.served} was made for another base model, {version.base_model!r} ({version.base}), not for "
                f"{self.base.name!r} ({self.base.fingerprint})."
            )
        if version.rank > self.max_rank:
            raise AdapterUnusable(f"{version.served} has rank {version.rank}, the limit here is {self.max_rank}.")

    def _switch(
        self, held: HeldAdapter, switch: Switch, caller: Caller, actor: str, action: str, default: bool | None
    ) -> HeldAdapter:
        return self.vault.switch_adapter(
            held.record.cube_id, switch, actor=actor or caller.user, action=action, default=default
        )


def _visible(held: HeldAdapter, caller: Caller) -> bool:
    """Whether the caller's key lets them see an adapter that their name gives them a right to."""
    return caller.context("api").admits(held.newest, owned=held.record.owner in caller.principals)


def _to(version: int) -> Switch:
    def switch(record: AdapterRecord, alive: set[int]) -> AdapterRecord:
        if version not in alive:
            raise NotFound(f"There is no version {version} of {record.name!r}.")
        if version == record.active:
            return record
        return msgspec.structs.replace(record, active=version, previous=_passed(record))

    return switch


def _newest(record: AdapterRecord, alive: set[int]) -> AdapterRecord:
    return _to(max(alive))(record, alive)


def _back(record: AdapterRecord, alive: set[int]) -> AdapterRecord:
    earlier = list(record.previous)
    while earlier:
        version = earlier.pop()
        if version in alive and version != record.active:
            return msgspec.structs.replace(record, active=version, previous=tuple(earlier))
    raise Conflict(f"No other version of {record.name!r} was active before.")


def _off(record: AdapterRecord, alive: set[int]) -> AdapterRecord:
    return msgspec.structs.replace(record, active=0, previous=_passed(record))


def _passed(record: AdapterRecord) -> tuple[int, ...]:
    return (*record.previous, record.active) if record.active else record.previous
