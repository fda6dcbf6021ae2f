"""Whether an adapter can be served: its description and tensors against the base model, before anything is stored."""

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from memos_vllm.errors import BadInput
from memos_vllm.parameter.base_model import BaseModel, short_name
from memos_vllm.parameter.peft_config import PeftConfig
from memos_vllm.parameter.weights import ITEM_BYTES, Tensor

_TENSOR = re.compile(r"base_model\.model\.(?P<module>[A-Za-z0-9_.]{1,200})\.lora_(?P<side>[AB])\.weight")
_KNOWN_ELSE = {
    "lora_magnitude": "is DoRA's",
    "lora_embedding": "adapts an embedding",
    "base_layer": "is a full layer of the base model",
    "modules_to_save": "is a full module",
    "bias": "is a bias",
}
"""Parts of tensor names of other kinds of adapters, and what such a tensor is."""


class Checked(msgspec.Struct, frozen=True):
    """What the tensors of an adapter say. modules: last parts of the names of the layers that it changes.

    targets: the same, or where it changes not all layers of such a name, their full names; for PEFT
    """

    dtype: str
    modules: tuple[str, ...]
    targets: tuple[str, ...]


def check(config: PeftConfig, tensors: Sequence[Tensor], base: BaseModel, *, max_rank: int) -> Checked:
    """Raises BadInput, which says what cannot be served and what to do."""
    if config.rank > max_rank:
        raise BadInput(
            f"The adapter's rank is {config.rank}, the limit here is {max_rank}: train it with a smaller one, or start "
            "the server with a higher --max-lora-rank."
        )
    pairs = _pairs(tensors)
    for module, sides in pairs.items():
        _check_pair(module, sides, base, config.rank)
    dtypes = sorted({tensor.dtype for tensor in tensors})
    if len(dtypes) != 1 or dtypes[0] not in ITEM_BYTES:
        raise BadInput(f"The tensors are {', '.join(dtypes)[:80]}; save all of them as one of {', '.join(ITEM_BYTES)}.")
    return Checked(dtypes[0], _last_parts(pairs), _targets(set(pairs), base))


def check_base(said: str, stated: str, named: str, base: BaseModel) -> None:
    """Raises BadInput where an adapter was made for another base model.

    said: the fingerprint in the adapter's own file; stated: the one that whoever adds it gives; named: the model's name
    in its description. Each may be "": not said. Names may differ for the same weights, fingerprints may not.
    """
    for fingerprint in (said, stated):
        if fingerprint and fingerprint != base.fingerprint:
            raise BadInput(
                f"The adapter was made for a base model with the fingerprint {fingerprint[:32]}, not for {base.name} "
                f"({base.fingerprint}); train it on this one."
            )
    if said or stated or not named or short_name(named).casefold() == base.name.casefold():
        return
    raise BadInput(
        f"The adapter was made for {short_name(named)[:80]!r}, this server runs {base.name!r}. If these are the same "
        f"weights, say so by adding it with the base model's fingerprint, {base.fingerprint}."
    )


def _pairs(tensors: Iterable[Tensor]) -> dict[str, dict[str, Tensor]]:
    """Module → its two matrices by `A` and `B`."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        found = _TENSOR.fullmatch(tensor.name)
        if found is None:
            raise BadInput(f"The tensor {tensor.name[:100]!r} {_kind(tensor.name)}; only plain LoRA can be served.")
        pairs.setdefault(found["module"], {})[found["side"]] = tensor
    if not pairs:
        raise BadInput("The weights hold no tensors.")
    return pairs


def _kind(name: str) -> str:
    return next((what for part, what in _KNOWN_ELSE.items() if part in name), "is not LoRA's")


def _check_pair(module: str, sides: Mapping[str, Tensor], base: BaseModel, rank: int) -> None:
    if len(sides) < 2:
        raise BadInput(f"{module[:100]} has lora_{next(iter(sides))} alone; both matrices are needed.")
    shape = base.modules.get(module)
    if shape is None:
        raise BadInput(f"{base.name} has no linear layer {module[:100]}; the adapter was made for another base model.")
    for side, wanted in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
        if sides[side].shape != wanted:
            raise BadInput(
                f"lora_{side} of {module[:100]} has the shape {list(sides[side].shape)[:4]}, but {base.name} with rank "
                f"{rank} needs {list(wanted)}; the adapter was made for another base model."
            )


def _last_parts(modules: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({module.rpartition(".")[2] for module in modules}))


def _targets(adapted: set[str], base: BaseModel) -> tuple[str, ...]:
    wanted = _last_parts(adapted)
    meant = {module for module in base.modules if module.rpartition(".")[2] in wanted}
    return wanted if meant == adapted else tuple(sorted(adapted))
