"""What of vLLM 0.32 the splice stands on, and the engines and models it refuses by name."""

from __future__ import annotations

from typing import Any

from memos_vllm.activation.identity import rope_parameters
from memos_vllm.errors import StartError

SUPPORTED_VLLM = "0.32."
SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
INTERLEAVED_ARCHITECTURES = ("Glm4ForCausalLM",)
"""Rotary embedding of neighbouring dimensions (GPT-J style); the others pair the two halves (NeoX style)."""
SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "StableLmForCausalLM",
    *INTERLEAVED_ARCHITECTURES,
)
"""Full attention and rotary embedding in every layer; each has its own test."""
REMEDY = "start with --memory-splice off: memories then enter the prompt as text"


def _sliding(hf_config: Any) -> bool:
    layer_types = getattr(hf_config, "layer_types", None)
    if layer_types:
        return any(kind != "full_attention" for kind in layer_types)
    return bool(getattr(hf_config, "sliding_window", None)) and getattr(hf_config, "use_sliding_window", True)


def model_problem(hf_config: Any) -> str | None:
    """Why this model's K/V cannot be spliced; None when they can."""
    if getattr(hf_config, "kv_lora_rank", None):
        return "its attention is multi-head latent attention (MLA)"
    if _sliding(hf_config):
        return "it has sliding-window or other non-full attention layers"
    architectures = getattr(hf_config, "architectures", None) or ["(none named)"]
    if architectures[0] not in SUPPORTED_ARCHITECTURES:
        return f"its architecture {architectures[0]} is not among {', '.join(SUPPORTED_ARCHITECTURES)}"
    rope_type = rope_parameters(hf_config)["rope_type"]
    if rope_type not in SUPPORTED_ROPE_TYPES:
        return f"its rotary embedding '{rope_type}' is not among {', '.join(SUPPORTED_ROPE_TYPES)}"
    return None


def check_model(hf_config: Any) -> None:
    """Raise StartError, naming the feature, when the K/V of a model with this transformers config cannot be spliced."""
    if problem := model_problem(hf_config):
        raise StartError(f"this model's K/V cannot be spliced: {problem}; {REMEDY}")


def check_engine(vllm_config: Any) -> None:
    """Raise StartError, naming the feature, when this engine cannot splice."""
    check_model(vllm_config.model_config.hf_text_config)
    parallel, cache, model = vllm_config.parallel_config, vllm_config.cache_config, vllm_config.model_config
    problems = {
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1,
        f"a {cache.cache_dtype} KV cache": cache.cache_dtype != "auto",
        "an engine without chunked prefill": not vllm_config.scheduler_config.enable_chunked_prefill,
        "speculative decoding": vllm_config.speculative_config is not None,
        "an encoder-decoder model": model.is_encoder_decoder,
        "a multimodal model": model.is_multimodal_model,
        "a pooling model": model.runner_type != "generate",
    }
    for name, present in problems.items():
        if present:
            raise StartError(f"KV splicing does not support {name} yet; {REMEDY}")
