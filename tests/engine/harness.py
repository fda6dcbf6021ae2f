"""Drives an in-process engine with splice plans, and computes in transformers what it must answer."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from memos_kernels.rotation import Rotation
from memos_kernels.splice import rotate

from memos_vllm.activation.compose import Part, capture_plan, compose
from memos_vllm.activation.files import kv_path
from memos_vllm.activation.identity import identity_of, kv_key
from memos_vllm.activation.plan import Segment, SplicePlan, Window, sign
from memos_vllm.activation.repair import parse_policy

SECRET = bytes(range(32))
VOCAB = 512
TOP = 20
"""Log-probabilities compared for each token."""


def make_random_llama(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, log-probabilities of the first one's best alternatives, and the engine's report."""

    tokens: list[int]
    logprobs: dict[int, float]
    report: dict[str, Any]
    cached: int

    def distance(self, reference: torch.Tensor | Answer) -> float:
        """max |Δ logprob| over the tokens that both know."""
        other = reference.logprobs if isinstance(reference, Answer) else dict(enumerate(reference.tolist()))
        return max(abs(value - other[token]) for token, value in self.logprobs.items() if token in other)


class Engine:
    """An `LLM` with MemosConnector, and helpers that speak of cubes rather than of requests."""

    def __init__(self, model: Path, memory_dir: Path, ram_bytes: int = 1 << 28, **options: Any) -> None:
        from vllm import LLM

        self.model_path, self.memory_dir = model, memory_dir
        connector = {
            "kv_connector": "MemosConnector",
            "kv_connector_module_path": "memos_vllm.engine.connector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"memory_dir": str(memory_dir), "ram_bytes": ram_bytes},
        }
        settings: dict[str, Any] = {
            "skip_tokenizer_init": True,
            "max_model_len": 4096,
            "enforce_eager": True,
            "dtype": "float32",
            "block_size": 64,
            "max_num_seqs": 32,
            "num_gpu_blocks_override": 68,
            "disable_log_stats": False,
            "scheduler_cls": "memos_vllm.engine.splice_scheduler.make_scheduler",
            "kv_transfer_config": connector,
        }
        self.llm = LLM(str(model), **(settings | options))
        self.core = self.llm.llm_engine.engine_core.engine_core
        self.identity = identity_of(self.core.vllm_config)
        self._salts = (f"salt{number}" for number in itertools.count())

    @property
    def worker(self) -> Any:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        return get_kv_transfer_group().worker_half

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()

    def fresh_salt(self) -> str:
        return next(self._salts)

    def ask(
        self,
        ids: Sequence[int],
        plan: SplicePlan | None = None,
        *,
        salt: str | None = None,
        tokens: int = 4,
        lora: Any = None,
    ) -> Answer:
        return self.ask_all([(ids, plan, salt)], tokens=tokens, loras=[lora] if lora else None)[0]

    def ask_all(
        self,
        requests: Sequence[tuple[Sequence[int], SplicePlan | None, str | None]],
        *,
        tokens: int = 4,
        loras: list[Any] | None = None,
    ) -> list[Answer]:
        """Answer requests side by side; each is (prompt ids, plan, cache salt or None for a fresh one)."""
        prompts, sampling = [], []
        for ids, plan, salt in requests:
            prompts.append({"prompt_token_ids": list(ids), "cache_salt": salt or self.fresh_salt()})
            sampling.append(self._sampling(sign(plan, SECRET) if plan else None, tokens))
        return [
            self._answer(output) for output in self.llm.generate(prompts, sampling, use_tqdm=False, lora_request=loras)
        ]

    def ask_raw(self, ids: Sequence[int], kv_transfer_params: dict[str, Any]) -> Answer:
        prompt = {"prompt_token_ids": list(ids), "cache_salt": self.fresh_salt()}
        return self._answer(self.llm.generate([prompt], self._sampling(kv_transfer_params, 4), use_tqdm=False)[0])

    def reports(self, ids: Sequence[int], plan: SplicePlan, tokens: int) -> list[dict[str, Any]]:
        """What the connector tells with each of a streamed answer's outputs."""
        from vllm.sampling_params import RequestOutputKind

        sampling = self._sampling(sign(plan, SECRET), tokens)
        sampling.output_kind = RequestOutputKind.DELTA
        salt, told = self.fresh_salt(), []
        self.llm.llm_engine.add_request(salt, {"prompt_token_ids": list(ids), "cache_salt": salt}, sampling)
        while self.llm.llm_engine.has_unfinished_requests():
            told += [(output.kv_transfer_params or {}).get("memos", {}) for output in self.llm.llm_engine.step()]
        return told

    def _sampling(self, params: dict[str, Any] | None, tokens: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            max_tokens=tokens, temperature=0, logprobs=TOP, detokenize=False, ignore_eos=True,
            extra_args={"kv_transfer_params": params} if params else None,
        )  # fmt: skip

    def _answer(self, output: Any) -> Answer:
        first = {token: entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}
        report = (output.kv_transfer_params or {}).get("memos", {})
        return Answer(list(output.outputs[0].token_ids), first, report, output.num_cached_tokens)

    def capture(self, scaffold: Part, cube_ids: Sequence[int], owner: str = "maya") -> Part:
        """Capture a cube (and its scaffold) and wait for its file."""
        part = Part(cube_ids, kv_key(self.identity, owner, scaffold.ids, cube_ids))
        self.ask([*scaffold.ids, *cube_ids], capture_plan(scaffold, part), salt="captures", tokens=1)
        wait_for(self.path(part))
        return part

    def scaffold(self, ids: Sequence[int]) -> Part:
        return Part(ids, kv_key(self.identity, "", (), ids))

    def path(self, part: Part) -> Path:
        assert part.key
        return kv_path(self.memory_dir, self.identity.digest(), part.key)

    @property
    def half(self) -> Any:
        return self.core.scheduler.connector.scheduler_half

    @property
    def tiers(self) -> Any:
        return self.half.residency.tiers

    def forget_ram(self) -> None:
        """Empty the RAM tier, as a restart does; the workers hear of it with the next step."""
        for key in list(self.tiers._entries):
            self.tiers.drop(key)

    def check_integrity(self) -> None:
        """Raise AssertionError unless tiers, store and block allocator balance with no request in the engine."""
        self.half.check_integrity()
        self.worker.store.check_integrity()
        pool = self.core.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # block 0 is vLLM's null block

    def preemptions(self) -> int:
        return int(sum(m.value for m in self.llm.get_metrics() if m.name == "vllm:num_preemptions"))


def wait_for(path: Path, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.002)


def plan_for(scaffold: Part, parts: Sequence[Part], policy: str) -> SplicePlan:
    plan = compose(scaffold, parts, parse_policy(policy))
    assert plan is not None
    return plan


def prompt_of(scaffold: Part, parts: Sequence[Part], rest: Sequence[int]) -> list[int]:
    return [*scaffold.ids, *(token for part in parts for token in part.ids), *rest]


class Oracle:
    """Splice and repair, slow and obvious, with transformers' cache: pieces of the prompt in order of position, each
    either appended from an independent prefill behind the scaffold (keys rotated by the delta) or run by the model.
    """

    def __init__(self, model_path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        config = self.model.config
        self.rotation = Rotation(self.model.model.rotary_emb.inv_freq.clone())
        self.layers = config.num_hidden_layers

    @torch.no_grad()
    def prefill(self, ids: Sequence[int], past: Any = None) -> Any:
        return self.model(torch.tensor([list(ids)]), past_key_values=past, use_cache=True)

    def next_logprobs(
        self, plan: SplicePlan, scaffold: Part, parts: Sequence[Part], rest: Sequence[int]
    ) -> torch.Tensor:
        """Log-probabilities `[vocab]` of the token after the prompt."""
        from transformers import DynamicCache

        prompt, past = prompt_of(scaffold, parts, rest), DynamicCache()
        sources = {part.key: part for part in (scaffold, *parts)}
        for start, end, key, cube_start in pieces(plan):
            if key is None:
                self.prefill(prompt[start:end], past)
                continue
            behind = () if key == scaffold.key else scaffold.ids
            made = self.prefill([*behind, *sources[key].ids]).past_key_values
            rows = slice(len(behind) + start - cube_start, len(behind) + end - cube_start)
            for layer in range(self.layers):
                keys, values = made.layers[layer].keys[:, :, rows], made.layers[layer].values[:, :, rows]
                past.update(rotate(keys, cube_start - len(behind), self.rotation), values, layer)
        out = self.prefill(prompt[plan.cover :], past)
        logits: torch.Tensor = out.logits[0, -1]
        return logits.log_softmax(-1)


def pieces(plan: SplicePlan) -> Iterator[tuple[int, int, str | None, int]]:
    """`[0, cover)` cut into (start, end, key or None where a window recomputes, start of the key's cube)."""
    parts: list[Segment | Window] = [*plan.segments, *plan.windows]
    edges = sorted({0, plan.cover, *(edge for part in parts for edge in (part.start, part.end))})
    for start, end in itertools.pairwise(edges):
        if any(window.start <= start < window.end for window in plan.windows):
            yield start, end, None, 0
        else:
            segment = next(part for part in plan.segments if part.start <= start < part.end)
            yield start, end, segment.key, segment.start
