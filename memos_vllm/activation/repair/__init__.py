"""Repair policies: which spliced tokens are recomputed so that they see the text before them.

The default is `mixed:0.15`, by the curve of `memos-vllm bench quality` (benchmarks/results/quality-tiny-cpu, 96
prompts):

    policy          recomputed   right, of full prefill's   same answer as full prefill   KL of the answer, mnat
    none                 0.0 %                     93.9 %                        89.6 %                     13.9
    head:16              2.5 %                    100.0 %                        94.8 %                      5.5
    guided:0.15          0.9 %                    100.0 %                        92.7 %                      5.6
    deviation:0.05       4.6 %                    100.0 %                        96.9 %                      0.2
    mixed:0.05           2.0 %                    100.0 %                        96.9 %                      0.2
    mixed:0.15           2.6 %                    100.0 %                        96.9 %                      0.2

Heads do well there because the pronouns of that benchmark stand near the head of a memory; they lose some answers at
256 tokens a memory, and their distributions stay further away. `mixed` finds such words wherever they stand, keeps
every size and kind, and needs half of what deviation alone does. 0.15 is its upper bound, which only short memories
come near.
"""

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
