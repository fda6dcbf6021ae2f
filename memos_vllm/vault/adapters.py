"""What one transaction does to the registry of adapters: records, names, numbers, active versions and defaults.

An adapter is a cube whose payload has a name. Each principal that may read it has a row under which it is found, so a
name that belongs to somebody else is looked for and missed exactly like one that nobody has.
"""

from collections.abc import Iterator

import msgspec

from memos_vllm.cube import MemCube, Parameter
from memos_vllm.errors import BadInput, Conflict, NotFound
from memos_vllm.vault import adapter_files, audit, keys, tables
from memos_vllm.vault.env import Txn
from memos_vllm.vault.records import AdapterRecord, Damaged, decode
from memos_vllm.vault.tables import load, store

REVISION = b"adapters"
COUNTER = b"adapter numbers"
"""Rows of `meta`: changes of the registry, and the last number that a version was given."""
FIRST_NUMBER = 1 << 20
"""vLLM numbers the adapters of its own `--lora-modules` from 1."""
MAX_PREVIOUS = 64
"""Activations that can be taken back."""


def is_adapter(cube: MemCube) -> bool:
    return isinstance(cube.payload, Parameter) and bool(cube.payload.name)


def has_weights(cube: MemCube) -> bool:
    """Whether a version of an adapter still has its files."""
    return adapter_files.key_of(cube) is not None


def is_spent(cube: MemCube) -> bool:
    """Whether this is a version of an adapter whose files were removed: it cannot come back."""
    return is_adapter(cube) and not has_weights(cube)


def refuse(cube: MemCube) -> None:
    """Raises BadInput for an adapter: no cube may come in that names files it did not bring."""
    if is_adapter(cube):
        raise BadInput("An adapter is added with its files: `memos-vllm adapter add`, or POST /v1/adapters.")


def begin(txn: Txn, cube: MemCube) -> None:
    """Register a cube that has just been stored. Raises Conflict where its owner has an adapter of that name."""
    assert isinstance(cube.payload, Parameter)
    record = AdapterRecord(cube.id, cube.owner, cube.payload.name)
    if find(txn, cube.owner, cube.owner, record.name) is not None:
        raise Conflict(f"There is an adapter {record.name!r} already; remove that one first.")
    store(txn, "adapters", keys.cube_key(cube.id), record)
    for principal in cube.readers():
        txn.put("adapter_names", keys.of_adapter_name(principal, cube.owner, record.name), keys.cube_key(cube.id))
    _number(txn, cube)
    touch(txn)


def revive(txn: Txn, cube: MemCube) -> None:
    """A deleted adapter is back from a snapshot. It is active in no version."""
    if has_weights(cube):
        begin(txn, cube)


def follow(txn: Txn, cube: MemCube) -> None:
    """A registered cube has this new version. Raises Conflict where its files were removed."""
    if load(txn, "adapters", keys.cube_key(cube.id), AdapterRecord) is None:
        return
    if not has_weights(cube):
        raise Conflict(f"The files of that version of memory {cube.id} were removed; it cannot come back.")
    _number(txn, cube)
    touch(txn)


def share(txn: Txn, old: MemCube, new: MemCube) -> None:
    """Let the names follow a change of who may read a cube."""
    record = load(txn, "adapters", keys.cube_key(new.id), AdapterRecord)
    if record is None:
        return
    before, after = set(old.readers()), set(new.readers())
    for principal in before - after:
        txn.delete("adapter_names", keys.of_adapter_name(principal, record.owner, record.name))
    for principal in after - before:
        txn.put("adapter_names", keys.of_adapter_name(principal, record.owner, record.name), keys.cube_key(new.id))
    touch(txn)


def remove(txn: Txn, cube: MemCube) -> None:
    """Take a cube that is deleted out of the registry."""
    key = keys.cube_key(cube.id)
    record = load(txn, "adapters", key, AdapterRecord)
    if record is None:
        return
    txn.delete("adapters", key)
    for principal in cube.readers():
        txn.delete("adapter_names", keys.of_adapter_name(principal, record.owner, record.name))
    for row in [row for row, _ in txn.scan("adapter_ids", key)]:
        txn.delete("adapter_ids", row)
    set_default(txn, record, False)


def find(txn: Txn, principal: str, owner: str, name: str) -> str | None:
    """Id of the adapter that a principal may call `owner/name`."""
    found = txn.get("adapter_names", keys.of_adapter_name(principal, owner, name))
    return None if found is None else found.hex()


def names_of(txn: Txn, principal: str) -> list[str]:
    """Ids of the adapters that a principal may read."""
    return [found.hex() for _, found in txn.scan("adapter_names", keys.digest(principal))]


def record_of(txn: Txn, cube_id: str) -> AdapterRecord:
    """Raises NotFound."""
    record = load(txn, "adapters", keys.cube_key(cube_id), AdapterRecord)
    if record is None:
        raise NotFound("There is no such adapter any more.")
    return record


def number_of(txn: Txn, cube_id: str, version: int) -> int | None:
    """The number of a version that has its files, or None."""
    return load(txn, "adapter_ids", keys.numbered(cube_id, version), int)


def default_of(txn: Txn, owner: str) -> str | None:
    """Id of an owner's default adapter."""
    found = txn.get("adapter_default", keys.digest(owner))
    return None if found is None else found.hex()


def set_default(txn: Txn, record: AdapterRecord, wanted: bool) -> None:
    """Make an adapter its owner's default, or see that it is not."""
    key = keys.digest(record.owner)
    if wanted:
        txn.put("adapter_default", key, keys.cube_key(record.cube_id))
    elif default_of(txn, record.owner) == record.cube_id:
        txn.delete("adapter_default", key)
    touch(txn)


def switch(txn: Txn, new: AdapterRecord, actor: str, action: str) -> None:
    """Another version is active, or none, and the audit log says so."""
    old = record_of(txn, new.cube_id)
    new = msgspec.structs.replace(new, previous=new.previous[-MAX_PREVIOUS:])
    store(txn, "adapters", keys.cube_key(new.cube_id), new)
    detail = {"from": old.active, "to": new.active}
    audit.append(txn, actor=actor, action=action, target=new.cube_id, owner=new.owner, detail=detail)
    touch(txn)


def drop_number(txn: Txn, cube_id: str, version: int) -> None:
    """A version loses its files; its number is not given out again."""
    txn.delete("adapter_ids", keys.numbered(cube_id, version))
    touch(txn)


def touch(txn: Txn) -> None:
    txn.put("meta", REVISION, (revision(txn) + 1).to_bytes(8))


def revision(txn: Txn) -> int:
    """A number that grows with every change of the registry."""
    return int.from_bytes(txn.get("meta", REVISION) or b"")


def problems(txn: Txn) -> Iterator[str]:
    """Where records, names, numbers and defaults differ from the cubes; damaged cubes are left to other checks."""
    records: dict[str, AdapterRecord] = {}
    for key, stored in txn.scan("adapters"):
        try:
            records[key.hex()] = decode(stored, AdapterRecord, "adapters", key)
        except Damaged as damage:
            yield f"adapters {key.hex()}: {damage}"
            return
    names: dict[bytes, bytes] = {}
    numbers: set[bytes] = set()
    for cube_id, record in records.items():
        cube = tables.find(txn, cube_id)
        if cube is None:
            yield f"adapters {cube_id}: its memory is missing"
            continue
        yield from _differences(cube_id, record, cube)
        for principal in cube.readers():
            names[keys.of_adapter_name(principal, record.owner, record.name)] = keys.cube_key(cube_id)
        alive = [version for version in tables.versions_of(txn, cube) if has_weights(version)]
        numbers |= {keys.numbered(cube_id, version.version) for version in alive}
        if record.active and number_of(txn, cube_id, record.active) is None:
            yield f"adapters {cube_id}: version {record.active} is active, but has no files"
    yield from _compare_names(txn, names)
    yield from _compare_numbers(txn, numbers)
    yield from _unregistered(txn, records)
    for key, found in txn.scan("adapter_default"):
        held = records.get(found.hex())
        if held is None or keys.digest(held.owner) != key:
            yield f"adapter_default {key.hex()}: names no adapter of its owner"


def _differences(cube_id: str, record: AdapterRecord, cube: MemCube) -> Iterator[str]:
    payload = cube.payload
    name = payload.name if isinstance(payload, Parameter) else ""
    if (record.cube_id, record.owner, record.name) != (cube_id, cube.owner, name):
        yield f"adapters {cube_id}: id, owner or name differs from its memory"


def _compare_names(txn: Txn, wanted: dict[bytes, bytes]) -> Iterator[str]:
    present = dict(txn.scan("adapter_names"))
    for key in sorted(wanted.keys() | present.keys()):
        if wanted.get(key) != present.get(key):
            yield f"adapter_names {key.hex()}: {'row missing' if key not in present else 'row without a right to it'}"


def _compare_numbers(txn: Txn, wanted: set[bytes]) -> Iterator[str]:
    present = dict(txn.scan("adapter_ids"))
    for key in sorted(wanted ^ present.keys()):
        yield f"adapter_ids {key.hex()}: {'row missing' if key in wanted else 'row without a version that has files'}"
    given = []
    for key, stored in present.items():
        try:
            given.append(decode(stored, int, "adapter_ids", key))
        except Damaged as damage:
            yield f"adapter_ids {key.hex()}: {damage}"
    if len(set(given)) < len(given) or max(given, default=0) > _counter(txn):
        yield "adapter_ids: a number was given twice"


def _unregistered(txn: Txn, records: dict[str, AdapterRecord]) -> Iterator[str]:
    """Adapters without a record, from the files that cubes name: a vault of other memories need not be read for it."""
    for cube_id in {keys.split_adapter_files(key)[0] for key, _ in txn.scan("adapter_files")} - records.keys():
        if (cube := tables.find(txn, cube_id)) is not None and has_weights(cube):
            yield f"adapters {cube_id}: record missing"


def _number(txn: Txn, cube: MemCube) -> None:
    """Give a version its number, which no other version ever has."""
    number = max(_counter(txn) + 1, FIRST_NUMBER)
    txn.put("meta", COUNTER, number.to_bytes(8))
    store(txn, "adapter_ids", keys.numbered(cube.id, cube.version), number)


def _counter(txn: Txn) -> int:
    return int.from_bytes(txn.get("meta", COUNTER) or b"")
