"""Names of repair policies, as flags and request headers give them."""

from __future__ import annotations

import re
from collections.abc import Callable

from memos_vllm.activation.repair.base import RepairPolicy
from memos_vllm.activation.repair.fixed import FullRepair, HeadRepair, NoRepair
from memos_vllm.activation.repair.scored import DeviationRepair, GuidedRepair, MixedRepair
from memos_vllm.errors import BadInput

_PLAIN: dict[str, Callable[[], RepairPolicy]] = {"none": NoRepair, "full": FullRepair}
_SCORED: dict[str, Callable[[float], RepairPolicy]] = {
    "deviation": DeviationRepair,
    "guided": GuidedRepair,
    "mixed": MixedRepair,
}
_SHARE = re.compile(r"0?\.[0-9]{1,4}|1(\.0{1,4})?")


def parse_policy(text: str) -> RepairPolicy:
    """The policy that `none`, `head:K`, `deviation:R`, `guided:R`, `mixed:R` or `full` names. Raises BadInput."""
    name, _, amount = text.partition(":")
    if text in _PLAIN:
        return _PLAIN[text]()
    if name == "head" and amount.isascii() and amount.isdigit() and 0 < int(amount[:5]) <= 4096:
        return HeadRepair(int(amount))
    if name in _SCORED and _SHARE.fullmatch(amount) and float(amount) > 0:
        return _SCORED[name](float(amount))
    raise BadInput(
        f"'{text}' is no repair policy: use none, head:K (K from 1 to 4096, e.g. head:16), deviation:R, guided:R or "
        "mixed:R (R from 0.0001 to 1, a share of the memories' tokens, e.g. mixed:0.15) or full"
    )
