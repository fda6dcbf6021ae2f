"""KV files and the RAM pool."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from memos_vllm.activation.files import KVCube, KVLabel, kv_path, read_header, read_kv, sweep_temporaries, write_kv
from memos_vllm.activation.identity import KVIdentity, kv_key, model_fingerprint
from memos_vllm.activation.pool import RamPool
from memos_vllm.errors import KVUnusable

LABEL = KVLabel(key="a" * 32, identity="b" * 32, tokens="c" * 64)
IDENTITY = KVIdentity("model", "tokenizer", "bfloat16", 4, 2, 64, "{}")


def relabelled(field: str) -> KVLabel:
    fields = {"key": LABEL.key, "identity": LABEL.identity, "tokens": LABEL.tokens} | {field: "0"}
    return KVLabel(fields["key"], fields["identity"], fields["tokens"])


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


@pytest.mark.parametrize("field", ["key", "identity", "tokens"])
def test_a_foreign_file_is_named_as_such(tmp_path: Path, field: str) -> None:
    path = tmp_path / "x.safetensors"
    write_kv(path, LABEL, cube())
    with pytest.raises(KVUnusable, match=f"of another {field}"):
        read_kv(path, relabelled(field))


def test_every_truncation_and_bit_flip_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_kv(path, LABEL, cube())
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    for size in (0, 1, 7, 8, header - 1, header, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(KVUnusable):
            read_kv(path, LABEL)
    for place in range(header, len(whole), 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(KVUnusable, match="checksum"):
            read_kv(path, LABEL)


def test_a_missing_file_and_one_of_another_kind_are_unusable(tmp_path: Path) -> None:
    with pytest.raises(KVUnusable):
        read_header(tmp_path / "none.safetensors")
    save_file({"k": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(KVUnusable, match="no memos-kv-1 file"):
        read_header(tmp_path / "other.safetensors")


def test_a_killed_writers_leftovers_are_swept(tmp_path: Path) -> None:
    path = kv_path(tmp_path, LABEL.identity, LABEL.key)
    write_kv(path, LABEL, cube())
    (path.parent / f".{path.name}.123.tmp").write_bytes(b"half")
    assert sweep_temporaries(tmp_path) == 1
    assert read_kv(path, LABEL).origin == 17


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


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 6), st.booleans()), max_size=60))
@settings(deadline=None)
def test_the_pool_is_an_lru_within_its_budget(steps: list[tuple[str, int, bool]]) -> None:
    one = cube(1).nbytes
    pool = RamPool(10 * one)
    model: dict[str, int] = {}  # key -> tokens, in order of use
    for key, tokens, put in steps:
        if put:
            pool.put(key, cube(tokens))
            model.pop(key, None)
            model[key] = tokens
            while sum(model.values()) > 10:
                model.pop(next(iter(model)))
        else:
            found = pool.get(key)
            assert (found.k.shape[1] if found else None) == model.get(key)
            if key in model:
                model[key] = model.pop(key)
        pool.check_integrity()
        assert len(pool) == len(model)


def test_a_cube_over_the_whole_budget_is_not_kept() -> None:
    pool = RamPool(cube(4).nbytes)
    pool.put("small", cube(2))
    pool.put("large", cube(5))
    assert "large" not in pool
    assert "small" in pool
