"""What is not a plain LoRA for this base model is refused before anything is stored, with a line that says why."""

import json
import os
import pickle
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save
from safetensors.torch import load_file as load_torch
from safetensors.torch import save as save_torch

from memos_vllm.errors import BadInput, MemosError, TooLarge
from memos_vllm.parameter.registry import AdapterFiles, AdapterRegistry
from memos_vllm.vault import Vault
from tests.unit.adapter_cases import MAYA, Arrays, add, base, config, files, registry_of, tensors, write

A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[AdapterRegistry]:
    with Vault.open(tmp_path / "memory") as vault:
        yield registry_of(vault)


def refused(
    registry: AdapterRegistry, given_files: AdapterFiles, match: str, error: type[MemosError] = BadInput
) -> None:
    with pytest.raises(error, match=match):
        registry.add("maya", "poet", given_files, author="maya")
    assert registry.list(MAYA) == [] and registry.vault.list("maya") == []
    assert list((registry.vault.path / "adapters").iterdir()) == []
    assert registry.vault.check() == []


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "use_dora is set"),
    ({"lora_bias": True}, "lora_bias is set"),
    ({"bias": "all"}, "bias is set"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is set"),
    ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern is set"),
    ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication is set"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
    ({"use_qalora": True}, "use_qalora is set"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices is set"),
    ({"a_field_of_next_year": True}, "a_field_of_next_year is set"),
    ({"init_lora_weights": "pissa_niter_16"}, "changes the base model"),
    ({"init_lora_weights": "olora"}, "changes the base model"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"peft_type": None}, "describes no LoRA adapter"),
    ({"r": 0}, "a rank is 1 or more"),
    ({"r": "4"}, "describes no LoRA adapter"),
    ({"r": 2**70}, "describes no LoRA adapter|rank"),
    ({"lora_alpha": 0}, "lora_alpha"),
    ({"lora_alpha": -8}, "lora_alpha"),
    ({"lora_alpha": 1e300}, "lora_alpha"),
    ({"r": 8}, r"has the shape \[4, 256\], but tiny with rank 8 needs \[8, 256\]"),
    ({"base_model_name_or_path": "meta-llama/Llama-3-8B"}, "made for 'Llama-3-8B', this server runs 'tiny'"),
    ({"base_model_name_or_path": "../../../etc"}, "made for 'etc'"),
]


@pytest.mark.parametrize(("fields", "match"), CONFIGS, ids=lambda value: str(value)[:40])
def test_configurations(registry: AdapterRegistry, tmp_path: Path, fields: dict[str, Any], match: str) -> None:
    refused(registry, files(tmp_path / "in", **fields), match)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"r": NaN}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"r": 4}',
        b" " * 70_000,
    ],
    ids=lambda raw: str(raw[:12]),
)
def test_configurations_that_are_none(registry: AdapterRegistry, tmp_path: Path, raw: bytes) -> None:
    weights = write(tmp_path / "in") / "adapter_model.safetensors"
    refused(registry, AdapterFiles(raw, weights), "adapter_config.json")


def changed(**arrays: "np.ndarray[Any, Any] | None") -> Arrays:
    """The usual tensors with some others; None takes one out."""
    given_arrays = {{"A0": A0, "B0": B0}.get(name, name): array for name, array in arrays.items()}
    return {name: array for name, array in (tensors() | given_arrays).items() if array is not None}


ones = np.ones
LM = "base_model.model.lm_head"
TENSORS: list[tuple[Arrays, str]] = [
    ({}, "hold no tensors"),
    (changed(B0=None), "has lora_A alone"),
    (changed(A0=ones((4, 255), np.float32)), "has the shape"),
    (changed(A0=ones((4, 256, 1), np.float32)), "has the shape"),
    (changed(A0=ones((8, 256), np.float32), B0=ones((256, 8), np.float32)), "has the shape"),
    (changed(A0=ones((256, 4), np.float32)), "has the shape"),
    (changed(A0=np.full((4, 256), np.nan, np.float32)), "NaN, infinity"),
    (changed(A0=np.full((4, 256), -np.inf, np.float32)), "NaN, infinity"),
    (changed(A0=np.full((4, 256), 1e6, np.float32)), "above 65504"),
    (changed(A0=ones((4, 256), np.float64)), "tensors are F32, F64"),
    (changed(A0=ones((4, 256), np.float16)), "tensors are F16, F32"),
    ({name: array.astype(np.int32) for name, array in tensors().items()}, "tensors are I32"),
    (changed(**{A0.replace("lora_A.weight", "lora_magnitude_vector"): ones(256, np.float32)}), "is DoRA's"),
    (changed(**{A0.replace("lora_A.weight", "lora_A.bias"): ones(256, np.float32)}), "is a bias"),
    (changed(**{"base_model.model.model.embed_tokens.lora_embedding_A": ones((4, 2048), np.float32)}), "an embedding"),
    (changed(**{f"{LM}.base_layer.weight": ones((2048, 256), np.float32)}), "full layer"),
    (changed(**{A0.replace("layers.0", "layers.9"): ones((4, 256), np.float32)}), "lora_A alone"),
    ({name.replace("layers.3", "layers.4"): array for name, array in tensors().items()}, "has no linear layer"),
    ({name.replace("base_model.model.", ""): array for name, array in tensors().items()}, "is not LoRA's"),
    ({A0.replace("self_attn", "../../x"): ones((4, 256), np.float32)}, "is not LoRA's"),
]


@pytest.mark.parametrize(("arrays", "match"), TENSORS, ids=lambda value: value if isinstance(value, str) else "")
def test_tensors(registry: AdapterRegistry, tmp_path: Path, arrays: Arrays, match: str) -> None:
    refused(registry, files(tmp_path / "in", arrays=arrays), match)


def test_another_base_by_its_fingerprint(registry: AdapterRegistry, tmp_path: Path) -> None:
    other = "0" * 32
    refused(registry, files(tmp_path / "in", metadata={"base": other}), f"fingerprint {other}, not for tiny")
    stated = AdapterFiles.read(write(tmp_path / "one"), base=other)
    refused(registry, stated, f"fingerprint {other}, not for tiny")


def test_a_base_of_another_name_can_be_stated(registry: AdapterRegistry, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", base_model_name_or_path="someone/the-same-weights")
    stored = registry.add("maya", "poet", AdapterFiles.read(folder, base=base().fingerprint), author="maya")
    assert (stored.base, stored.base_model) == (base().fingerprint, "tiny")


def test_the_rank_has_a_limit(tmp_path: Path) -> None:
    with Vault.open(tmp_path / "memory") as vault:
        registry = registry_of(vault, max_rank=8)
        refused(registry, files(tmp_path / "in", rank=9), "rank is 9, the limit here is 8")
        assert registry.add("maya", "poet", files(tmp_path / "in", rank=8), author="maya").rank == 8


def test_the_size_has_a_limit(tmp_path: Path) -> None:
    weights = write(tmp_path / "in") / "adapter_model.safetensors"
    size = weights.stat().st_size
    with Vault.open(tmp_path / "memory") as vault:
        refused(registry_of(vault, max_bytes=size - 1), AdapterFiles.read(tmp_path / "in"), "over the limit", TooLarge)
        registry_of(vault, max_bytes=size).add("maya", "poet", AdapterFiles.read(tmp_path / "in"), author="maya")


class Trap:
    """Unpickled, it would leave a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def test_pickles_are_never_loaded(registry: AdapterRegistry, tmp_path: Path) -> None:
    folder, sprung = write(tmp_path / "in"), tmp_path / "sprung"
    weights = folder / "adapter_model.safetensors"
    raw = json.dumps(config()).encode()
    for content in (pickle.dumps(Trap(sprung)), b"PK\x03\x04" + bytes(100)):
        weights.write_bytes(content)
        refused(registry, AdapterFiles(raw, weights), "a pickle, which is never loaded")
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(BadInput, match="save with safe_serialization=True"):
        AdapterFiles.read(folder)
    assert not sprung.exists()


def test_links_are_not_followed(registry: AdapterRegistry, tmp_path: Path) -> None:
    folder = write(tmp_path / "in")
    secret = tmp_path / "secret"
    (folder / "adapter_model.safetensors").rename(secret)
    (folder / "adapter_model.safetensors").symlink_to(secret)
    refused(registry, AdapterFiles.read(folder), "it must be a file, not a link")
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("/etc/hostname")
    with pytest.raises(BadInput, match="not a link"):
        AdapterFiles.read(folder)


def test_what_is_no_file_is_no_adapter(registry: AdapterRegistry, tmp_path: Path) -> None:
    folder = write(tmp_path / "in")
    (folder / "adapter_model.safetensors").unlink()
    refused(registry, AdapterFiles.read(folder), "No such file")
    os.mkfifo(folder / "adapter_model.safetensors")
    refused(registry, AdapterFiles.read(folder), "is no file")


def test_nothing_that_came_along_is_stored(registry: AdapterRegistry, tmp_path: Path) -> None:
    """Neither fields, nor metadata, nor other files, nor the order of the tensors."""
    arrays = dict(reversed(tensors().items()))
    sent = files(
        tmp_path / "in", arrays=arrays, metadata={"secret": "hunter2"}, revision="hunter2", auto_mapping={"a": "b"}
    )
    stored = registry.add("maya", "poet", sent, author="maya")
    folder = registry.folder(stored)
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert all(b"hunter2" not in path.read_bytes() for path in folder.iterdir())
    again = add(registry, tmp_path, "again")
    assert again.digest == stored.digest
    loaded = load_file(folder / "adapter_model.safetensors")
    assert loaded.keys() == arrays.keys() and all(np.array_equal(loaded[name], arrays[name]) for name in arrays)
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == ["q_proj", "v_proj"]


def test_layers_are_named_in_full_where_not_all_are_changed(registry: AdapterRegistry, tmp_path: Path) -> None:
    stored = registry.add("maya", "poet", files(tmp_path / "in", arrays=tensors(layers=(1,))), author="maya")
    named = json.loads((registry.folder(stored) / "adapter_config.json").read_text())["target_modules"]
    assert named == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    assert stored.target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_number_formats(registry: AdapterRegistry, dtype: torch.dtype) -> None:
    arrays = {name: torch.from_numpy(array).to(dtype) for name, array in tensors().items()}
    raw = json.dumps(config()).encode()
    stored = registry.add("maya", "poet", AdapterFiles(raw, BytesIO(save_torch(arrays))), author="maya")
    assert f"torch.{stored.dtype.lower()}" == str(dtype).replace("bfloat", "bf").replace("float", "f")
    loaded = load_torch(registry.folder(stored) / "adapter_model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in arrays.items())
    for value in (float("nan"), float("inf"), 1e30):
        arrays[A0] = torch.full((4, 256), value).to(dtype)
        with pytest.raises(BadInput, match="NaN, infinity or a number above"):
            registry.add("maya", "poet", AdapterFiles(raw, BytesIO(save_torch(arrays))), author="maya")


RAW = save(tensors(layers=(0,)))


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_refused_or_harmless(registry: AdapterRegistry, data: st.DataObject) -> None:
    """Bytes that were cut, changed or added: an error of ours, or an adapter that is whole."""
    place = data.draw(st.integers(0, len(RAW) - 1) | st.integers(0, 1200))
    match data.draw(st.sampled_from(["cut", "change", "insert"])):
        case "cut":
            raw = RAW[:place]
        case "change":
            raw = RAW[:place] + data.draw(st.binary(min_size=1, max_size=4)) + RAW[place + 1 :]
        case _:
            raw = RAW[:place] + data.draw(st.binary(min_size=1, max_size=9)) + RAW[place:]
    given_files = AdapterFiles(json.dumps(config()).encode(), BytesIO(raw))
    try:
        stored = registry.add("maya", "poet", given_files, author="maya")
    except BadInput:
        pass
    else:
        loaded = load_file(registry.folder(stored) / "adapter_model.safetensors")
        assert {name: array.shape for name, array in loaded.items()} == {
            name: array.shape for name, array in tensors(layers=(0,)).items()
        }
        registry.remove(MAYA, "poet")
    assert list((registry.vault.path / "adapters").iterdir()) == []
