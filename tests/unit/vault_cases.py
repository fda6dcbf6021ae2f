"""What the tests of the vault share."""

from memos_vllm.cube import MemCube
from memos_vllm.vault import KVRecord, Vault

TINY_MAP = 64 << 10


def add(vault: Vault, *texts: str, owner: str = "maya", access: tuple[str, ...] = ()) -> list[MemCube]:
    return vault.add([MemCube.plaintext(text, owner=owner, access=access) for text in texts], actor=owner)


def kv_for(vault: Vault, cube: MemCube, key: str) -> KVRecord:
    """A manifest row with its file."""
    file = vault.path / "kv" / f"{key}.safetensors"
    file.write_bytes(b"K" * 10)
    return KVRecord(
        key=key,
        owner=cube.owner,
        cube_id=cube.id,
        cube_version=cube.version,
        path=f"kv/{file.name}",
        tokens=5,
        bytes=10,
        checksum="",
        created=cube.header.created,
        build_seconds=0.5,
    )


def texts(cubes: list[MemCube]) -> list[str]:
    return [cube.text for cube in cubes]
