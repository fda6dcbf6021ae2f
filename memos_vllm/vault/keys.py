"""Keys of the LMDB databases. Every part has a fixed length, so no name can reach into another's range.

    cubes      id                     16 bytes          newest version
    versions   id + version           16 + 4            superseded versions
    events     id + ordinal           16 + 4            one for each add, update, delete; ordinal counts from 1
    owners     principal + id         16 + 16           cubes a principal owns
    grants     principal + id         16 + 16           cubes a principal may read without owning them
    revisions  principal              16                counter
    kv         digest(key)            16                KV manifest
    kv_cubes   id + digest(key)       16 + 16           manifest rows of a cube, or of an owner's pieces
    doomed     digest(key)            16                KV files whose cube is gone, until they are unlinked
    pins       digest(key)            16                the key of each pinned row of the manifest
    uses       id                     16                how often and when a cube entered a prompt

Numbers are big-endian, so that LMDB's byte order is theirs. A principal and a KV key are stored by their BLAKE2b
digest: LMDB keys end at 511 bytes, and a name of 128 characters may have more.
"""

import hashlib

DATABASES = (
    *("cubes", "versions", "events", "owners", "grants", "revisions"),
    *("kv", "kv_cubes", "doomed", "pins", "uses"),
)
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


def of_cube(cube_id: str, kv_key: str) -> bytes:
    """Key of a `kv_cubes` row."""
    return cube_key(cube_id) + digest(kv_key)


def pieces_of(owner: str) -> bytes:
    """What stands for the id in the `kv_cubes` rows of K/V that belong to an owner but to no cube."""
    return digest(f"\0pieces of {owner}")
