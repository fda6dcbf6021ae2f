"""`adapter_config.json`, PEFT's description of an adapter: what is read of one that comes in, and how one is stored."""

import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from memos_vllm.errors import BadInput

MAX_BYTES = 1 << 16

_IGNORED = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "task_type", "inference_mode"),
        *("lora_alpha", "r", "use_rslora", "peft_type", "init_lora_weights", "lora_dropout", "runtime_config"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"),
        *("eva_config", "lora_ga_config", "corda_config", "loftq_config", "qalora_group_size", "ensure_weight_tying"),
    )
)
"""Fields that are read below, that concern training only, or that the tensors tell better."""
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of `init_lora_weights` that leave the base model's weights as they are."""


class PeftConfig(msgspec.Struct, frozen=True):
    """What serving an adapter needs. base_model: the name it was trained with, "" where it is not said."""

    rank: int
    alpha: float
    rslora: bool
    base_model: str

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied with (rsLoRA: arXiv 2312.03732, equation 3)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class _Fields(msgspec.Struct, frozen=True):
    r: int
    lora_alpha: float
    peft_type: str = ""
    use_rslora: bool | None = False
    base_model_name_or_path: str | None = None
    init_lora_weights: bool | str | None = True
    bias: str | None = "none"


def read(raw: bytes) -> PeftConfig:
    """The description of a plain LoRA. Raises BadInput, which names the field."""
    if len(raw) > MAX_BYTES:
        raise BadInput(f"adapter_config.json is {len(raw):,} bytes, the limit is {MAX_BYTES:,}.")
    try:
        given = msgspec.json.decode(raw, type=dict[str, Any])
        fields = msgspec.convert(given, _Fields)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(f"adapter_config.json describes no LoRA adapter: {str(error)[:200]}.") from error
    if fields.peft_type != "LORA":
        raise BadInput(f"adapter_config.json: peft_type is {fields.peft_type[:40]!r}; only 'LORA' can be served.")
    if fields.bias not in (None, "none"):
        raise BadInput("adapter_config.json: bias is set; train the adapter with bias='none'.")
    if fields.init_lora_weights not in _PLAIN_STARTS:
        raise BadInput(
            f"adapter_config.json: init_lora_weights={str(fields.init_lora_weights)[:40]!r} changes the base model; "
            "save the adapter with path_initial_model_for_weight_conversion."
        )
    _refuse_more(given)
    return _checked(fields)


def stored(config: PeftConfig, target_modules: Sequence[str], base_model: str) -> bytes:
    """The description as it is stored: the same bytes for the same adapter, and no word of whoever sent it."""
    fields = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": list(target_modules),
        "task_type": "CAUSAL_LM",
        "use_rslora": config.rslora,
    }
    return json.dumps(fields, indent=2, sort_keys=True).encode() + b"\n"


def _refuse_more(given: dict[str, Any]) -> None:
    """Anything else that is switched on may change what the weights mean: DoRA, full modules, ranks by layer."""
    for name, value in given.items():
        if value and name not in _IGNORED and (name, value) != ("bias", "none"):
            raise BadInput(f"adapter_config.json: {name[:60]} is set, which cannot be served; train a plain LoRA.")


def _checked(fields: _Fields) -> PeftConfig:
    if fields.r < 1:
        raise BadInput(f"adapter_config.json: r is {fields.r}; a rank is 1 or more.")
    if not 0 < fields.lora_alpha <= 1 << 20:
        raise BadInput(f"adapter_config.json: lora_alpha is {fields.lora_alpha}; it must be above 0, up to {1 << 20}.")
    return PeftConfig(fields.r, fields.lora_alpha, bool(fields.use_rslora), fields.base_model_name_or_path or "")
