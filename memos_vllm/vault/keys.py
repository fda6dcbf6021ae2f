"""Keys of the LMDB databases. Every part has a fixed length, so no name can reach into another's range.

    cubes           id                       16 bytes      newest version
    versions        id + version             16 + 4        superseded versions
    events          id + ordinal             16 + 4        one for each add, update, delete; ordinal counts from 1
    owners          principal + id           16 + 16       cubes a principal owns
    grants          principal + id           16 + 16       cubes a principal may read without owning them
    revisions       principal                16            counter
    kv              digest(key)              16            KV manifest
    kv_cubes        id + digest(key)         16 + 16       manifest rows of a cube, or of an owner's pieces
    doomed          digest(key)              16            KV files whose cube is gone, until they are unlinked
    pins            digest(key)              16            the key of each pinned row of the manifest
    uses            id                       16            how often and when a cube entered a prompt
    statistics      principal                16            what an owner's cubes take up
    mentions        principal + id           16 + 16       cubes, gone ones too, whose rows name a principal
    expiries        time + id                10|27 + 16    cubes that will expire, soonest first
    snapshots       principal + digest(name) 16 + 16       what a snapshot is
    snapshot_cubes  the same + id            16 + 16 + 16  a snapshot's cubes, as they were
    partitions      principal                16            search index: statistics of what a principal may read
    entries         partition                4             search index, several values: the cubes of a partition
    terms           partition + term         4 + 8         search index, several values: the cubes with a word
    vectors         id                       16            search index: embedding of a cube
    unembedded      id                       16            search index: cubes whose embedding is still to be made
    audit           sequence                 8             hash-chained log
    audit_owners    principal + sequence     16 + 8        log entries about an owner's cubes
    pseudonyms      principal                16            what stands for a principal in the log
    names           pseudonym                16            salt, and the principal a pseudonym stands for
    adapters        id                       16            name and active version of an adapter
    adapter_names   principal + digest(name) 16 + 16       the adapter that a principal may call so, as `owner/name`
    adapter_ids     id + version             16 + 4        number of a version that has its weights
    adapter_default principal                16            the adapter that serves its owner's plain requests
    adapter_files   id + digest              16 + 16       how many stored cubes name a folder of files
    adapter_doomed  id + digest              16 + 16       folders that no cube names, until they are removed
    registry        kind + name              16 + 16       small typed rows: keys, groups, quotas
    meta            name                     any           facts about the vault itself

Numbers are big-endian, so that LMDB's byte order is theirs. A principal and a KV key are stored by their BLAKE2b
digest: LMDB keys end at 511 bytes, and a name of 128 characters may have more.
"""

import hashlib

DATABASES = (
    *("cubes", "versions", "events", "owners", "grants", "revisions"),
    *("kv", "kv_cubes", "doomed", "pins", "uses"),
    *("statistics", "mentions", "expiries", "snapshots", "snapshot_cubes"),
    *("partitions", "entries", "terms", "vectors", "unembedded"),
    *("adapters", "adapter_names", "adapter_ids", "adapter_default", "adapter_files", "adapter_doomed"),
    *("audit", "audit_owners", "pseudonyms", "names", "registry", "meta"),
)
DUPSORT = frozenset({"entries", "terms"})
"""Databases with several values of one fixed size under a key (LMDB's DUPSORT and DUPFIXED)."""
ID_BYTES = 16


def digest(name: str) -> bytes:
    """16 bytes that stand for a principal or a KV key."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=ID_BYTES).digest()


def cube_key(cube_id: str) -> bytes:
    return bytes.fromhex(cube_id)


def numbered(cube_id: str, number: int) -> bytes:
    """Key of a version or an event."""
    return cube_key(cube_id) + number.to_bytes(4)


def split_numbered(key: bytes) -> tuple[str, int]:
    return key[:ID_BYTES].hex(), int.from_bytes(key[ID_BYTES:])


def of_principal(principal: str, cube_id: str) -> bytes:
    """Key of an `owners` or `grants` row."""
    return digest(principal) + cube_key(cube_id)


def of_adapter_name(principal: str, owner: str, name: str) -> bytes:
    """Key of an `adapter_names` row. No adapter's name has a slash, so no two owners' names meet."""
    return digest(principal) + digest(f"{owner}/{name}")


def of_adapter_files(cube_id: str, files_digest: str) -> bytes:
    """Key of an `adapter_files` or `adapter_doomed` row."""
    return cube_key(cube_id) + bytes.fromhex(files_digest)


def split_adapter_files(key: bytes) -> tuple[str, str]:
    return key[:ID_BYTES].hex(), key[ID_BYTES:].hex()


def of_cube(cube_id: str, kv_key: str) -> bytes:
    """Key of a `kv_cubes` row."""
    return cube_key(cube_id) + digest(kv_key)


def pieces_of(owner: str) -> bytes:
    """What stands for the id in the `kv_cubes` rows of K/V that belong to an owner but to no cube."""
    return digest(f"\0pieces of {owner}")
