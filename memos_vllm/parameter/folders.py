"""An adapter's files on their way: taken in, written in the form that is stored, and copied out again."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from memos_vllm.cube import Parameter
from memos_vllm.errors import AdapterUnusable, BadInput, Conflict, MemosError, TooLarge
from memos_vllm.parameter import peft_config, validate, weights
from memos_vllm.parameter.base_model import BaseModel
from memos_vllm.vault.adapter_files import CONFIG, FILES, WEIGHTS, bytes_of, digest_of, failure, fault_of
from memos_vllm.vault.env import sync

__all__ = ["CONFIG", "FILES", "WEIGHTS", "AdapterFiles", "copy_out", "digest_of", "take_in"]

BASE = "base"
"""Metadata of a stored safetensors file: the fingerprint of the model it was made for."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as it comes in.

    config: `adapter_config.json`; weights: `adapter_model.safetensors`, a path or a stream, which is read once
    base: fingerprint of the model it was made on, by the word of whoever adds it; "" for none
    """

    config: bytes
    weights: Path | BinaryIO
    base: str = ""

    @classmethod
    def read(cls, folder: Path, *, base: str = "") -> "AdapterFiles":
        """The two files in a folder that PEFT wrote; nothing else in it is looked at. Raises BadInput."""
        if not (folder / WEIGHTS).exists() and any(folder.glob("adapter_model.*")):
            raise BadInput(f"{folder} holds no {WEIGHTS}: pickles are never loaded; save with safe_serialization=True.")
        with _opened(folder / CONFIG) as file:
            config = file.read(peft_config.MAX_BYTES + 1)
        return cls(config, folder / WEIGHTS, base)


def take_in(
    folder: Path, files: AdapterFiles, base: BaseModel, *, name: str, max_rank: int, max_bytes: int
) -> Parameter:
    """Check an adapter and write its files to an empty folder, in the form that is stored, synced.

    Returns the payload that describes them. Raises BadInput, TooLarge, OSError.
    """
    config = peft_config.read(files.config)
    received = folder / "received"
    _receive(files.weights, received, max_bytes)
    header = weights.read_header(received)
    validate.check_base(header.metadata.get(BASE, ""), files.base, config.base_model, base)
    checked = validate.check(config, header.tensors, base, max_rank=max_rank)
    weights.check_values(received, header.tensors)
    weights.write(folder / WEIGHTS, received, header.tensors, {"format": "pt", BASE: base.fingerprint})
    received.unlink()
    (folder / CONFIG).write_bytes(peft_config.stored(config, checked.targets, base.name))
    sync(folder / CONFIG)
    sync(folder)
    return Parameter(
        digest=digest_of(folder),
        base_model=base.name,
        rank=config.rank,
        scale=config.scale,
        target_modules=checked.modules,
        name=name,
        base=base.fingerprint,
        bytes=bytes_of(folder),
        dtype=checked.dtype,
    )


def copy_out(source: Path, target: Path, digest: str) -> None:
    """Copy an adapter's files to a new folder, for this user alone, and compare the copy with their digest.

    Raises AdapterUnusable where the files are missing or changed, Conflict where `target` is there, VaultFull; nothing
    is left at `target` then.
    """
    try:
        target.mkdir(mode=0o700)
    except FileExistsError as error:
        raise Conflict(f"{target} is there already; name a new folder.") from error
    except OSError as error:
        raise failure(target.parent, error) from error
    try:
        for name in FILES:
            _copy(source / name, target / name)
        if fault := fault_of(target, digest):
            raise AdapterUnusable(f"The adapter's files are damaged ({fault}); add it again, or restore a backup.")
    except MemosError:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _copy(source: Path, target: Path) -> None:
    try:
        file = source.open("rb")
    except OSError as error:
        raise AdapterUnusable(
            f"The adapter's {source.name} cannot be read ({error.strerror}); add it again, or restore a backup."
        ) from error
    try:
        with file, target.open("xb") as copy:
            shutil.copyfileobj(file, copy, _CHUNK)
    except OSError as error:
        raise failure(target.parent.parent, error) from error


def _receive(source: Path | BinaryIO, target: Path, max_bytes: int) -> None:
    """Raises BadInput where a path is no file of its own, TooLarge."""
    if isinstance(source, Path):
        with _opened(source) as stream:
            return _receive(stream, target, max_bytes)
    size = 0
    with target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > max_bytes:
                raise TooLarge(f"The adapter's weights are over the limit of {max_bytes:,} bytes.")
            file.write(chunk)
    return None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file that is no link: a link could show any file that this process may read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror}; it must be a file, not a link.") from error
    with os.fdopen(descriptor, "rb") as file:
        if not path.is_file():
            raise BadInput(f"{path} is no file.")
        yield file
