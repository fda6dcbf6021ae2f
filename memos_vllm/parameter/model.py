"""A base model in transformers: prompts as the server makes them, greedy and sampled answers, log-probabilities.

Batches are padded on the left, so that answers end in one column and logits are computed for these columns alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memos_vllm.errors import StartError
from memos_vllm.memory_block import memory_block
from memos_vllm.parameter.recipe import Device

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 8192
"""Tokens of a batch without gradients."""
MAX_BATCH = 128


@dataclass(frozen=True)
class Turn:
    """Token ids of a prompt, and of the answer with what ends it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Model:
    """A causal language model and its tokenizer, in single precision. `net` may carry a LoRA adapter."""

    def __init__(self, net: Any, tokenizer: Any) -> None:
        self.net, self.tokenizer = net, tokenizer
        self.device = next(net.parameters()).device
        self._end = self._turn_end()
        self.pad = next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)

    @classmethod
    def load(cls, name: str, device: Device = "auto") -> Model:
        """A local folder, or a model of the hub. Raises StartError."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if device == "cuda" and not torch.cuda.is_available():
            raise StartError("There is no CUDA GPU here: leave --device out, or say --device cpu.")
        chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            net = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise StartError(f"The model {Path(name).name!r} cannot be loaded: {error}") from error
        return cls(net.to(chosen).eval(), tokenizer)

    @property
    def width(self) -> int:
        """The hidden size."""
        return int(self.net.config.get_text_config().hidden_size)

    @property
    def vocabulary(self) -> int:
        """Tokens there are logits for."""
        return int(self.net.config.get_text_config().vocab_size)

    def pieces(self) -> list[str]:
        """What tokens spell: lower-case letters of the English alphabet, two or more."""
        found = {
            str(text).strip() for text in self.tokenizer.batch_decode([[token] for token in range(self.vocabulary)])
        }
        return sorted(piece for piece in found if re.fullmatch("[a-z]{2,}", piece))

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def text_turn(self, text: str) -> Turn:
        """A text that is read, not asked for: every token of it is an answer."""
        ids, start = self.encode(text), self.tokenizer.bos_token_id
        return Turn((start,), tuple(ids)) if start is not None else Turn(tuple(ids[:1]), tuple(ids[1:]))

    def turn(self, question: str, answer: str, memories: Sequence[str] = ()) -> Turn:
        """A question, with these memories in the system message, and an answer to it."""
        return self.answered(self.prompt(question, memories), answer)

    def answered(self, prompt: Sequence[int], answer: str) -> Turn:
        """A prompt with an answer to it."""
        return Turn(tuple(prompt), (*self.encode(self._answer_start() + answer), *self._end))

    def prompt(self, question: str, memories: Sequence[str] = ()) -> tuple[int, ...]:
        """Token ids of a question that waits for its answer."""
        block = memory_block(memories) if memories else ""
        if self.tokenizer.chat_template is None:
            start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            return (*start, *self.encode(f"{block}Question: {question}\nAnswer:"))
        system = [{"role": "system", "content": block}] if block else []
        try:
            return self._rendered([*system, {"role": "user", "content": question}])
        except Exception as error:
            if not block:
                raise StartError(f"The chat template of this model refuses a question: {error}") from error
            return self._rendered([{"role": "user", "content": block + question}])

    def _rendered(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tuple(self.encode(text))

    def _answer_start(self) -> str:
        return " " if self.tokenizer.chat_template is None else ""

    def _turn_end(self) -> tuple[int, ...]:
        """The tokens behind an answer: what the chat template puts there, up to the first control token."""
        plain = () if self.tokenizer.eos_token_id is None else (self.tokenizer.eos_token_id,)
        if self.tokenizer.chat_template is None:
            return plain
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "memos-end-mark"}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        ids = self.encode(text.rpartition("memos-end-mark")[2])
        special = set(self.tokenizer.all_special_ids) | set(getattr(self.tokenizer, "added_tokens_decoder", ()))
        ends = [token for token in ids if token in special]
        return (ends[0],) if ends else plain

    def base(self) -> AbstractContextManager[Any]:
        """Within it the model answers without its adapter."""
        return self.net.disable_adapter() if hasattr(self.net, "disable_adapter") else nullcontext()

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        most: int,
        *,
        temperature: float = 0.0,
        tell: Callable[[int], None] | None = None,
    ) -> list[str]:
        """What the model says to each prompt, in at most `most` tokens; the likeliest tokens at temperature 0.

        tell: called with the number of prompts that were answered.
        """
        found = [""] * len(prompts)
        for places in batches([len(prompt) + most for prompt in prompts]):
            for place, text in zip(
                places, self._generate([prompts[i] for i in places], most, temperature), strict=True
            ):
                found[place] = text
            if tell:
                tell(len(places))
        return found

    def _generate(self, prompts: Sequence[Sequence[int]], most: int, temperature: float) -> list[str]:
        import torch

        ids, mask = self.padded(prompts)
        how: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        ends = {*self._end, *_listed(self.net.generation_config.eos_token_id)}
        with torch.no_grad():
            out = self.net.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=most,
                pad_token_id=self.pad,
                eos_token_id=sorted(ends) or None,
                **(how if temperature else {"do_sample": False}),
            )
        texts = self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return [str(text).strip() for text in texts]

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, `[rows, tokens]`, padded on the left."""
        import torch

        longest = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (longest - len(row)) + list(row) for row in rows], device=self.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=self.device)
        return ids, mask

    def answer_logits(self, turns: Sequence[Turn]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits that predict the answers' tokens, `[tokens of all answers, vocabulary]`, and these tokens' ids."""
        import torch

        ids, mask = self.padded([turn.prompt + turn.answer for turn in turns])
        longest = max(len(turn.answer) for turn in turns)
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        out = self.net(
            input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=longest + 1
        )
        kept = torch.tensor(
            [[0] * (longest - len(turn.answer)) + [1] * len(turn.answer) for turn in turns], device=self.device
        ).bool()
        return out.logits[:, :-1][kept].float(), ids[:, -longest:][kept]

    def logprobs(self, turns: Sequence[Turn]) -> list[list[float]]:
        """Log-probability of every token of every answer, in nats."""
        import torch

        found: list[list[float]] = [[] for _ in turns]
        for places in batches([len(turn.prompt) + len(turn.answer) for turn in turns]):
            part = [turns[place] for place in places]
            with torch.no_grad():
                logits, ids = self.answer_logits(part)
                chosen = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].tolist()
            for place, turn in zip(places, part, strict=True):
                found[place], chosen = chosen[: len(turn.answer)], chosen[len(turn.answer) :]
        return found

    def perplexity(self, texts: Iterable[str]) -> float:
        """Over all tokens of the texts, each read on its own."""
        each = [value for row in self.logprobs([self.text_turn(text) for text in texts]) for value in row]
        return math.exp(-sum(each) / max(1, len(each)))


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of rows, those of like lengths together, in batches of at most MAX_BATCH rows and BATCH_TOKENS tokens."""
    part: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if part and (len(part) == MAX_BATCH or (len(part) + 1) * lengths[place] > BATCH_TOKENS):
            yield part
            part = []
        part.append(place)
    if part:
        yield part


def _listed(token: Any) -> list[int]:
    return [] if token is None else list(token) if isinstance(token, list | tuple) else [int(token)]
