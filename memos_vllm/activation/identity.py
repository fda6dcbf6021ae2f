"""What a KV cube's bytes depend on: two caches with equal identity, tokens and scaffold are interchangeable."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import xxhash

SAMPLE_BYTES = 1 << 10
"""Bytes read from the start, middle and end of every tensor for the model's fingerprint."""
CHUNKS = 4096
"""Evenly spaced places where a weights file without a safetensors header is sampled."""
MAX_HEADER = 100 << 20
"""Bytes; what the safetensors format allows."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")

ADAPTER_NAME = "memos:"
"""What the engine's name of a parameter cube's adapter begins with."""


class KVIdentity(msgspec.Struct, frozen=True):
    """Everything but the tokens that changes K/V bytes. `kv_heads` and `layers` count the whole model, not a rank."""

    model: str
    tokenizer: str
    dtype: str
    layers: int
    kv_heads: int
    head_dim: int
    rope: str
    quantization: str = ""
    adapter: str = ""
    """Name and version of the LoRA adapter that the K/V were made with; empty without one."""

    def digest(self) -> str:
        """32 hex digits."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:32]


def _tensor_places(path: Path) -> list[int]:
    """Offsets at the start, middle and end of every tensor of a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(size, MAX_HEADER)))
    spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    places = [(start, (start + end) // 2, max(start, end - SAMPLE_BYTES)) for start, end in spans]
    return sorted({8 + size + place for group in places for place in group})


def _places(path: Path, size: int) -> list[int]:
    if path.suffix == ".safetensors":
        return _tensor_places(path)
    return sorted({size * chunk // CHUNKS for chunk in range(CHUNKS)})


def _sample(path: Path) -> bytes:
    """A small file as it is; of a weights file its size and samples: weights that were trained further differ in them,
    and 100 GB need not be read. Raises ValueError for a safetensors file without a readable header.
    """
    if path.suffix not in WEIGHT_SUFFIXES:
        return path.read_bytes()
    size = path.stat().st_size
    parts = [b"%d" % size]
    with path.open("rb") as file:
        for place in _places(path, size):
            file.seek(place)
            parts.append(file.read(SAMPLE_BYTES))
    return b"".join(parts)


def _fingerprint(files: Sequence[Path]) -> str:
    hasher = xxhash.xxh3_128()
    for path in files:
        hasher.update(path.name.encode() + b"\0" + _sample(path))
    return hasher.hexdigest()


def local_model_dir(model: str, revision: str | None = None) -> Path:
    """The folder of a local model, or of a hub model's snapshot that is already in the cache.

    Raises FileNotFoundError when the model is not on this machine.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(config, str):
        raise FileNotFoundError(f"{model} is neither a folder nor in the Hugging Face cache")
    return Path(config).parent


@lru_cache
def model_fingerprint(folder: Path) -> str:
    """32 hex digits over the config and samples of every weights file; the same after a move of the folder."""
    weights = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    return _fingerprint([folder / "config.json", *weights])


@lru_cache
def tokenizer_fingerprint(folder: Path) -> str:
    return _fingerprint([folder / name for name in TOKENIZER_FILES if (folder / name).exists()])


def rope_parameters(hf_config: Any) -> dict[str, Any]:
    """The model's rotary embedding as one flat dict with `rope_type` and `rope_theta`."""
    found = dict(getattr(hf_config, "rope_parameters", None) or {})
    found.setdefault("rope_type", "default")
    found.setdefault("rope_theta", getattr(hf_config, "rope_theta", 10000.0))
    found.setdefault("partial_rotary_factor", getattr(hf_config, "partial_rotary_factor", 1.0) or 1.0)
    return found


def identity_of(vllm_config: Any) -> KVIdentity:
    """The identity of K/V that the engine with this `VllmConfig` makes without an adapter."""
    model = vllm_config.model_config
    folder = local_model_dir(model.model, model.revision)
    loader = vllm_config.load_config
    weights = f"dummy:{model.seed}" if loader.load_format == "dummy" else model_fingerprint(folder)
    tokenizer = local_model_dir(model.tokenizer, model.tokenizer_revision) if model.tokenizer else folder
    return KVIdentity(
        model=weights,
        tokenizer=tokenizer_fingerprint(tokenizer),
        dtype=str(model.dtype).removeprefix("torch."),
        layers=model.get_total_num_hidden_layers(),
        kv_heads=model.get_total_num_kv_heads(),
        head_dim=model.get_head_size(),
        quantization=str(model.quantization or ""),
        rope=json.dumps(rope_parameters(model.hf_text_config), sort_keys=True, default=str),
    )


def adapter_name(version: str, digest: str) -> str:
    """What the engine calls a version (`<cube id>@vN`) of an adapter: no owner's words, the same weights for ever."""
    return f"{ADAPTER_NAME}{version}:{digest}"


@lru_cache(maxsize=4096)
def _adapter_version(path: str, changed: int) -> str:
    """32 hex digits over an adapter's files; `changed` (nanoseconds) only keeps the cache from growing stale."""
    files = sorted(file for file in Path(path).iterdir() if file.suffix in (*WEIGHT_SUFFIXES, ".json"))
    return _fingerprint(files)


def with_adapter(identity: KVIdentity, name: str, path: str) -> KVIdentity:
    """The identity of K/V made with the LoRA adapter `name`, whose files lie in the folder `path`.

    The name of a parameter cube's adapter says which weights it has (`ADAPTER_NAME`); for others the files are read.
    Raises OSError when the folder cannot be read.
    """
    if name.startswith(ADAPTER_NAME):
        return msgspec.structs.replace(identity, adapter=name)
    changed = max(entry.stat().st_mtime_ns for entry in (Path(path), *Path(path).iterdir()))
    return msgspec.structs.replace(identity, adapter=f"{name}@{_adapter_version(path, changed)}")


def kv_key(identity: KVIdentity, owner: str, scaffold_ids: Sequence[int], token_ids: Sequence[int]) -> str:
    """32 hex digits that name the KV cube of `token_ids` behind `scaffold_ids` for one owner.

    A name only: a reader compares tokens and identity with the file's own before it uses a byte of it.
    """
    hasher = xxhash.xxh3_128()
    for part in (
        identity.digest().encode(),
        owner.encode(),
        array("q", scaffold_ids).tobytes(),
        array("q", token_ids).tobytes(),
    ):
        hasher.update(b"%d:" % len(part) + part)
    return hasher.hexdigest()
