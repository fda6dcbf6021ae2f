"""Repair policies: which spliced tokens are recomputed so that they see the text before them."""

from __future__ import annotations

from memos_vllm.activation.repair.base import Placed, RepairPolicy, Span
from memos_vllm.activation.repair.deviation import DECOY, deviation, pack, unpack
from memos_vllm.activation.repair.fixed import FullRepair, HeadRepair, NoRepair
from memos_vllm.activation.repair.parse import parse_policy
from memos_vllm.activation.repair.scored import DeviationRepair, GuidedRepair, MixedRepair

__all__ = [
    "DECOY", "DeviationRepair", "FullRepair", "GuidedRepair", "HeadRepair", "MixedRepair", "NoRepair", "Placed",
    "RepairPolicy", "Span", "deviation", "pack", "parse_policy", "unpack",
]  # fmt: skip
