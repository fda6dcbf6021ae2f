"""Text of an exact number of tokens, and the command line of the benchmark."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from memos_vllm.bench.arguments import without_folder
from memos_vllm.bench.options import TtftOptions, read_options
from memos_vllm.bench.text import WORDS, shares, text_of
from memos_vllm.errors import StartError


def byte_level(corpus: list[str], vocabulary: int) -> Callable[[str], int]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(corpus, trainer)
    return lambda text: len(tokenizer.encode(text).ids)


COUNTS = {
    "whole words": byte_level([" " + " ".join(WORDS)] * 8, 1000),
    "pieces of words": byte_level([" " + " ".join(WORDS)] * 8, 300),
    "bytes": byte_level(["x"], 256),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("tokens", [1, 2, 17, 167, 583, 2022])
def test_text_has_exactly_as_many_tokens(name: str, tokens: int) -> None:
    count = COUNTS[name]
    assert count(text_of(tokens, count, random.Random(tokens))) == tokens


def test_text_within_a_line_counts_the_line() -> None:
    count = COUNTS["whole words"]
    text = text_of(200, lambda text: count(f"- {text}\n"), random.Random(1))
    assert count(f"- {text}\n") == 200
    assert count(text) < 200


def test_text_is_new_every_time_but_seeded() -> None:
    count, rng = COUNTS["whole words"], random.Random(1)
    first, second = text_of(50, count, rng), text_of(50, count, rng)
    assert first != second
    assert first == text_of(50, count, random.Random(1))


def test_text_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="7 tokens"):
        text_of(7, lambda text: 2 * len(text.split()), random.Random(1))


@pytest.mark.parametrize(("total", "parts"), [(583, 3), (2773, 3), (6064, 3), (7, 7)])
def test_shares_add_up(total: int, parts: int) -> None:
    found = shares(total, parts)
    assert sum(found) == total
    assert len(found) == parts
    assert max(found) - min(found) <= 1


def test_options_and_flags_for_vllm(tmp_path: Path) -> None:
    model = tmp_path / "my-model"
    model.mkdir()
    words = (
        f"ttft --model {model} --contexts 583,6064 --queries 167 --repetitions 3 --dtype bfloat16 -- --max-num-seqs 4"
    )
    options = read_options([*words.split(), f"--download-dir={tmp_path}/weights"])
    assert isinstance(options, TtftOptions)
    assert options.contexts == (583, 6064)
    assert options.queries == (167,)
    assert options.repetitions == 3
    assert options.extra == ("--max-num-seqs", "4", f"--download-dir={tmp_path}/weights")
    assert options.model_name == "my-model"
    assert str(tmp_path) not in options.command
    assert "--model my-model" in options.command
    assert options.command.endswith("-- --max-num-seqs 4 --download-dir=weights")
    assert options.out.name.startswith("ttft-my-model-")


@pytest.mark.parametrize(
    "words",
    ["", "ttft --contexts 583,583", "ttft --queries ten", "ttft --repetitions 0", "ttft --warmup -1", "ttft --typo"],
)
def test_options_that_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        read_options(words.split())
    assert error.value.code == 2
    assert "usage: memos-vllm bench" in capsys.readouterr().err


def test_contexts_that_are_too_small(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="96 tokens or more"):
        read_options(["ttft", "--model", str(tmp_path), "--contexts", "583,60"])


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("/opt/models/llama", "llama"),
        ("./llama", "llama"),
        ("--flag=/opt/x.json", "--flag=x.json"),
        ("--flag=4", "--flag=4"),
        ("--flag", "--flag"),
        ("head:16", "head:16"),
    ],
)
def test_folders_are_left_out(word: str, shown: str) -> None:
    assert without_folder(word) == shown
