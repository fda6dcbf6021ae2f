"""`memos-vllm adapter train | retrain | merge | decode`, on a real vault."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from memos_vllm.bench.arguments import BUNDLED
from memos_vllm.cli_adapter_train import add_train_parsers
from memos_vllm.cube import MemCube
from memos_vllm.errors import BadInput, Conflict, NotFound
from memos_vllm.parameter.job import Jobs, JobSpec
from memos_vllm.parameter.registry import AdapterRegistry, Caller
from memos_vllm.vault import Vault
from tests.unit.training_cases import TEXTS

ALICE = Caller("alice", bound=True)
RECIPE = {
    "epochs": 1, "batch": 12, "max_answer_tokens": 12,
    "pool": 8, "teach": False, "device": "cpu", "recall_questions": 10,
    "min_accuracy": 0.0, "max_recall_loss": 1.0, "max_perplexity_rise": 100.0,
}  # fmt: skip


@pytest.fixture
def memory_dir(tmp_path: Path) -> Path:
    with Vault.open(tmp_path / "memory") as vault:
        vault.add([MemCube.plaintext(text, owner="alice") for text in TEXTS], actor="alice")
        vault.add([MemCube.plaintext("Zora plays the harp.", owner="bob")], actor="bob")
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    return tmp_path / "memory"


def adapter(words: Sequence[object]) -> int:
    parser = argparse.ArgumentParser()
    add_train_parsers(parser.add_subparsers(required=True))
    args = parser.parse_args([str(word) for word in words])
    code: int = args.run(args)
    return code


def train(memory_dir: Path, name: str, *more: object, owner: str = "alice") -> int:
    recipe = memory_dir.parent / "recipe.json"
    words = ["train", memory_dir, "--model", BUNDLED, "--from", f"owner:{owner}", "--name", name, "--recipe", recipe]
    return adapter([*words, *more])


def test_train_merge_decode_and_forget(memory_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(memory_dir, "one", "--activate") == 0
    assert train(memory_dir, "two", "--seed", 1, "--rank", 8) == 0
    assert "stored as alice/two@v1" in capsys.readouterr().out
    merged = ["alice/one=0.7", "alice/two@v1=0.3", "--name", "both", "--rank", 4]
    assert adapter(["merge", memory_dir, "--model", BUNDLED, *merged]) == 0
    with Vault.open(memory_dir) as vault:
        registry = AdapterRegistry(vault)
        one, both = registry.resolve(ALICE, "one"), registry.resolve(ALICE, "both@v1")
    assert (both.rank, both.metadata["method"], both.metadata["weights"]) == (4, "svd", "0.7,0.3")
    assert both.parents[0] == f"{one.cube_id}@1"
    decode = ["decode", memory_dir, "alice/one", "--model", BUNDLED, "--samples", 4, "--questions", 8, "--store"]
    assert adapter(decode) == 0
    assert "memories stored" in capsys.readouterr().out
    gone = one.parents[2].partition("@")[0]
    recipe = memory_dir.parent / "recipe.json"
    forget = ["retrain", memory_dir, "alice/one", "--model", BUNDLED, "--without", gone, "--recipe", recipe]
    assert adapter(forget) == 0
    assert "forgotten accuracy: 0" in capsys.readouterr().out


def test_an_adapter_that_fails_is_told_why(memory_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(memory_dir, "one", "--min-accuracy", "1") == 1
    told = capsys.readouterr().out
    assert "refused:" in told and "nothing is stored; --seed" in told


def test_a_training_that_was_stopped_is_cancelled(memory_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cubes = ("0" * 32 + "@1",)
    job = Jobs(memory_dir).create(
        JobSpec(owner="alice", author="alice", name="one", model=str(BUNDLED), cubes=cubes, recipe=RECIPE)
    )
    with pytest.raises(Conflict, match=f"Training {job.id} is queued: let it end, go on with it, or cancel it"):
        train(memory_dir, "two")
    capsys.readouterr()
    for _ in range(2):
        assert adapter(["cancel", memory_dir, job.id, "--owner", "alice"]) == 0
        assert capsys.readouterr().out == f"training {job.id}: cancelled\n"
    with pytest.raises(NotFound):
        adapter(["cancel", memory_dir, job.id, "--owner", "bob"])
    with pytest.raises(BadInput, match="is cancelled"):
        adapter(["resume", memory_dir, job.id, "--owner", "alice"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "alice"], "owner:NAME"),
        (["--from", "owner:nobody"], "no such memories"),
        (["--recipe", "missing.json"], "cannot be read"),
        (["--name", "../x"], "name"),
        (["--model", "/nowhere"], "Cannot read the base model|cannot be loaded"),
    ],
)
def test_what_is_wrong_is_said(memory_dir: Path, words: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message) as refused:
        train(memory_dir, "one", *words)
    assert refused.value.__class__.__module__ == "memos_vllm.errors"


def test_adapters_of_two_owners_are_not_merged(memory_dir: Path) -> None:
    assert train(memory_dir, "one", "--activate") == 0
    assert train(memory_dir, "one", "--activate", owner="bob") == 0
    with pytest.raises(BadInput, match="one owner"):
        adapter(["merge", memory_dir, "--model", BUNDLED, "alice/one", "bob/one", "--name", "both"])
    with pytest.raises(NotFound):
        adapter(["decode", memory_dir, "--model", BUNDLED, "alice/other"])
