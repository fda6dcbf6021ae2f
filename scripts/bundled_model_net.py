"""The bundled model's tokenizer and its untrained network."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundled_model_data import (
    ASSISTANT,
    BEGIN,
    CHAT_TEMPLATE,
    END,
    MAX_POSITIONS,
    SYSTEM,
    UNKNOWN,
    USER,
)

from memos_vllm.bench.people import EASY, filler, make_facts
from memos_vllm.memory_block import INTRO, OUTRO

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def train_tokenizer(rng: random.Random, vocab: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def corpus() -> Iterator[str]:
        for _ in range(6000):
            yield INTRO + filler(rng) + OUTRO + UNKNOWN
            for fact in make_facts(rng, 8, held=False, mix=EASY):
                yield f"- {fact.statement}\n{fact.question}{fact.answer}"

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=[BEGIN, SYSTEM, USER, ASSISTANT, END],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)


def make_model(vocab: int, end_id: int | None, begin_id: int | None) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=MAX_POSITIONS,
            rope_theta=500000.0,
            tie_word_embeddings=True,
            bos_token_id=begin_id,
            eos_token_id=end_id,
            pad_token_id=end_id,
        )
    )
