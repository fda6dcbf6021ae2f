"""KV files, their keys, and fingerprints of models."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from memos_vllm.activation.files import (
    HUGE_BYTES,
    KVLabel,
    deviation_path,
    kv_path,
    read_header,
    read_kv,
    read_payload,
    sweep_temporaries,
    write_deviation,
    write_kv,
)
from memos_vllm.activation.identity import KVIdentity, kv_key, model_fingerprint
from memos_vllm.activation.payload import KVCube, stored_nbytes
from memos_vllm.activation.quantize import StoreDtype
from memos_vllm.errors import KVUnusable

LABEL = KVLabel(key="a" * 32, identity="b" * 32, tokens="c" * 64)
IDENTITY = KVIdentity("model", "tokenizer", "bfloat16", 4, 2, 64, "{}")


def cube(tokens: int = 5, dtype: torch.dtype = torch.bfloat16) -> KVCube:
    return KVCube(torch.randn(2, tokens, 2, 8).to(dtype), torch.randn(2, tokens, 2, 8).to(dtype), origin=17)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    path, made = kv_path(tmp_path, LABEL.identity, LABEL.key), cube(dtype=dtype)
    write_kv(path, LABEL, made)
    read = read_kv(path, LABEL)
    assert torch.equal(read.k, made.k)
    assert torch.equal(read.v, made.v)
    assert read.origin == 17
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file stays"


def test_any_safetensors_reader_reads_it(tmp_path: Path) -> None:
    path, made = tmp_path / "x.safetensors", cube()
    write_kv(path, LABEL, made)
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("k"), made.k)
        assert torch.equal(file.get_tensor("v"), made.v)
        assert file.metadata() == read_header(path)


def test_a_view_is_written_as_what_it_shows(tmp_path: Path) -> None:
    made = cube(6)
    view = KVCube(made.k[:, 1:4], made.v[:, 1:4], origin=1)
    write_kv(tmp_path / "x", LABEL, view)
    assert torch.equal(read_kv(tmp_path / "x", LABEL).k, view.k)


def test_a_file_larger_than_a_chunk_and_a_huge_page(tmp_path: Path) -> None:
    tokens = HUGE_BYTES // 100
    made = cube(tokens, torch.float32)
    assert made.nbytes > HUGE_BYTES
    write_kv(tmp_path / "x", LABEL, made)
    read = read_kv(tmp_path / "x", LABEL, shape=(2, tokens, 2, 8))
    assert torch.equal(read.k, made.k)
    assert torch.equal(read.v, made.v)


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("key", replace(LABEL, key="0")),
        ("identity", replace(LABEL, identity="0")),
        ("tokens", replace(LABEL, tokens="0")),
        ("rank", replace(LABEL, rank=1)),
        ("world", replace(LABEL, world=2)),
    ],
)
def test_a_foreign_file_is_named_as_such(tmp_path: Path, field: str, wanted: KVLabel) -> None:
    path = tmp_path / "x.safetensors"
    write_kv(path, LABEL, cube())
    with pytest.raises(KVUnusable, match=f"of another {field}"):
        read_kv(path, wanted)


@pytest.mark.parametrize(
    ("stored", "wanted", "good"),
    [
        ("auto", "auto", True),
        ("auto", "int8", True),
        ("int8", "int8", True),
        ("fp8", "fp8", True),
        ("int8", "auto", False),
        ("fp8", "auto", False),
        ("int8", "fp8", False),
    ],
)
def test_8_bit_is_read_by_those_who_want_it(tmp_path: Path, stored: StoreDtype, wanted: StoreDtype, good: bool) -> None:
    """Exact files are good for all; K/V that lost something already are refused by all but their own kind."""
    payload = cube().pack(stored)
    assert payload.nbytes == stored_nbytes((2, 5, 2, 8), torch.bfloat16, stored)
    write_kv(tmp_path / "x", LABEL, payload)
    label = replace(LABEL, store=wanted)
    if good:
        read = read_payload(tmp_path / "x", label)
        assert (read.store, read.dtype, read.origin) == (stored, torch.bfloat16, 17)
        for name, tensor in payload.tensors().items():
            assert torch.equal(read.tensors()[name].view(torch.uint8), tensor.view(torch.uint8))
    else:
        with pytest.raises(KVUnusable, match="of another store"):
            read_payload(tmp_path / "x", label)


def test_another_shape_is_refused_unread(tmp_path: Path) -> None:
    write_kv(tmp_path / "x", LABEL, cube())
    for shape in [(2, 6, 2, 8), (1, 5, 2, 8), (2, 5, 4, 4), (2, 5, 2)]:
        with pytest.raises(KVUnusable, match="has shape 2,5,2,8"):
            read_kv(tmp_path / "x", LABEL, shape=shape)


@pytest.mark.parametrize("store", ["auto", "int8", "fp8"])
def test_every_truncation_and_bit_flip_is_found(tmp_path: Path, store: StoreDtype) -> None:
    """Those in the header too: a wrong origin would turn every key by a wrong angle."""
    path, label = tmp_path / "x.safetensors", replace(LABEL, store=store)
    write_kv(path, label, cube().pack(store))
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    for size in (0, 1, 7, 8, header // 2, header - 1, header, header + 1, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(KVUnusable):
            read_kv(path, label)
    path.write_bytes(whole + b"0")
    with pytest.raises(KVUnusable, match="too long"):
        read_kv(path, label)
    padding = len(whole[:header].rstrip(b" "))  # spaces in it mean nothing, and may become others
    for place in [*range(padding), *range(header, len(whole), 13)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(KVUnusable):
            read_kv(path, label)


@pytest.mark.parametrize("said", ["-1", "1.5", "", "x", str(1 << 40)])
def test_a_nonsensical_origin_is_refused_even_with_a_good_checksum(tmp_path: Path, said: str) -> None:
    path = tmp_path / "x"
    write_kv(path, LABEL, cube())
    rewrite(path, origin=said)
    with pytest.raises(KVUnusable, match="origin"):
        read_kv(path, LABEL)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("dtype", "int64"),
        ("dtype", "float16"),
        ("dtype", "nn"),
        ("shape", "2,5,16"),
        ("shape", "0,5,2,8"),
        ("store", "x"),
    ],
)
def test_a_nonsensical_header_is_refused_even_with_a_good_checksum(tmp_path: Path, field: str, said: str) -> None:
    path = tmp_path / "x"
    write_kv(path, LABEL, cube())
    rewrite(path, **{field: said})
    with pytest.raises(KVUnusable):
        read_kv(path, LABEL)


def rewrite(path: Path, **fields: str) -> None:
    """Change metadata as one would who knows the format."""
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    metadata = header["__metadata__"]
    metadata |= fields
    del metadata["checksum"]
    hashed = json.dumps(metadata, sort_keys=True).encode() + data
    metadata["checksum"] = xxhash.xxh3_128(hashed).hexdigest()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_junk_is_unusable(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "junk"
    for content in (junk, len(junk).to_bytes(8, "little") + junk):
        path.write_bytes(content)
        with pytest.raises(KVUnusable):
            read_kv(path, LABEL)


def test_a_missing_file_and_one_of_another_kind_are_unusable(tmp_path: Path) -> None:
    with pytest.raises(KVUnusable):
        read_header(tmp_path / "none.safetensors")
    save_file({"k": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(KVUnusable, match="no memos-kv-2 file"):
        read_header(tmp_path / "other.safetensors")


def test_a_killed_writers_leftovers_are_swept(tmp_path: Path) -> None:
    path = kv_path(tmp_path, LABEL.identity, LABEL.key)
    write_kv(path, LABEL, cube())
    (path.parent / f".{path.name}.123.tmp").write_bytes(b"half")
    living = path.parent / f".{path.name}.456.tmp"
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sweep_temporaries(tmp_path) == 1
        assert living.exists()
    assert sweep_temporaries(tmp_path) == 1
    assert sweep_temporaries(tmp_path / "none") == 0
    assert read_kv(path, LABEL).origin == 17


def test_a_deviation_that_nobody_took_goes(tmp_path: Path) -> None:
    for name in ("a" * 32, "b" * 32):
        write_deviation(deviation_path(tmp_path, LABEL.identity, name), b"123")
    os.utime(deviation_path(tmp_path, LABEL.identity, "a" * 32), (time.time() - 7200,) * 2)
    assert sweep_temporaries(tmp_path) == 1
    assert deviation_path(tmp_path, LABEL.identity, "b" * 32).exists()


def test_a_file_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "kv").write_text("not a folder")
    with pytest.raises(OSError, match="kv"):
        write_kv(tmp_path / "kv" / "x.safetensors", LABEL, cube())


def test_keys_differ_with_everything_that_changes_the_bytes() -> None:
    other = KVIdentity("model", "tokenizer", "float32", 4, 2, 64, "{}")
    keys = {
        kv_key(IDENTITY, "maya", [1, 2], [3, 4]),
        kv_key(other, "maya", [1, 2], [3, 4]),
        kv_key(IDENTITY, "noah", [1, 2], [3, 4]),
        kv_key(IDENTITY, "maya", [1], [2, 3, 4]),
        kv_key(IDENTITY, "maya", [1, 2], [3, 5]),
    }
    assert len(keys) == 5
    assert kv_key(IDENTITY, "maya", (1, 2), (3, 4)) in keys


def model_folder(folder: Path, **changes: torch.Tensor) -> Path:
    """A model of three tensors, the first and the last much larger than what is sampled of a file's ends."""
    folder.mkdir()
    tensors = {name: torch.zeros(1 << 20) for name in ("embedding", "k_proj", "norm")} | changes
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_a_model_keeps_its_fingerprint_when_it_moves_and_loses_it_when_a_tensor_changes(tmp_path: Path) -> None:
    first = model_fingerprint(model_folder(tmp_path / "a"))
    assert model_fingerprint(model_folder(tmp_path / "b")) == first
    for name in ("embedding", "k_proj", "norm"):
        assert model_fingerprint(model_folder(tmp_path / name, **{name: torch.ones(1 << 20)})) != first
    (tmp_path / "b" / "config.json").write_text('{"rope_theta": 1}')
    model_fingerprint.cache_clear()
    assert model_fingerprint(tmp_path / "b") != first


def test_other_weight_files_are_sampled_all_over(tmp_path: Path) -> None:
    def fingerprint(name: str, place: int) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        content = bytearray(1 << 20)
        content[place] = 1
        (folder / "pytorch_model.bin").write_bytes(content)
        return model_fingerprint(folder)

    assert len({fingerprint(str(place), place) for place in (0, 1000, 1 << 19, (1 << 20) - 1)}) == 4
