"""The command line of `memos-vllm bench quality`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memos_vllm.activation.repair import parse_policy
from memos_vllm.bench.arguments import (
    BUNDLED,
    check_installed,
    command_line,
    count_from,
    counts,
    default_out,
    model_name,
)
from memos_vllm.bench.machine import gpu_names
from memos_vllm.errors import BadInput, StartError

FULL = "full"
POLICIES = (
    "none", "head:8", "head:16", "head:32", "deviation:0.05", "deviation:0.15", "guided:0.05", "guided:0.15",
    "mixed:0.05", "mixed:0.1", "mixed:0.15", FULL,
)  # fmt: skip
SIZES = (64, 128, 256, 512, 1024, 2048)
QUICK_POLICIES = ("none", "head:16", "mixed:0.15", FULL)
QUICK_SIZES = (64, 256)


@dataclass(frozen=True)
class QualityOptions:
    """Settings of `bench quality`. `sizes`: tokens of a memory; `prompts`: how many of every kind and size."""

    model: str
    sizes: tuple[int, ...]
    prompts: int
    policies: tuple[str, ...]
    seed: int
    dtype: str
    gpus: tuple[str, ...]
    out: Path
    extra: tuple[str, ...]

    @property
    def model_name(self) -> str:
        return model_name(self.model)

    @property
    def command(self) -> str:
        """The run as a command line without folders."""
        words = ["--sizes", ",".join(map(str, self.sizes)), "--prompts", str(self.prompts)]
        words += ["--policies", ",".join(self.policies), "--dtype", self.dtype, "--seed", str(self.seed)]
        return command_line("quality", words, self.model, self.extra)


def add_quality(benches: Any) -> None:
    """Add the command to the subcommands of `memos-vllm bench`."""
    quality = benches.add_parser(
        "quality",
        help="answers under every repair policy: accuracy, agreement with full prefill, divergence, time",
        usage="memos-vllm bench quality [options] [-- vLLM flags]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    quality.add_argument("--model", help="path or name (default: the bundled model)", default=argparse.SUPPRESS)
    quality.add_argument("--sizes", type=counts, default=SIZES, help="tokens of a memory")
    quality.add_argument("--prompts", type=count_from(1), default=5, help="prompts of every kind and size")
    quality.add_argument("--policies", type=_policies, default=POLICIES, help="repair policies to compare")
    quality.add_argument("--quick", action="store_true", help="few sizes and policies: a minute or two")
    quality.add_argument("--dtype", default=argparse.SUPPRESS, help="default: float32 on a CPU, the model's on a GPU")
    quality.add_argument("--seed", type=int, default=0, help="of prompts and of the order of measurements")
    quality.add_argument("--out", type=Path, default=argparse.SUPPRESS, help="folder for quality.json, .csv and .png")
    quality.set_defaults(model=None, dtype=None, out=None, read=quality_options)


def quality_options(args: argparse.Namespace, extra: Sequence[str]) -> QualityOptions:
    """Settings from parsed arguments. Raises StartError for what cannot be measured."""
    check_installed("quality.png", args.model)
    gpus = tuple(gpu_names())
    policies = QUICK_POLICIES if args.quick and args.policies == POLICIES else args.policies
    if FULL not in policies:
        raise StartError("--policies must have 'full' among them: the others are checked against it")
    return QualityOptions(
        model=args.model or str(BUNDLED),
        sizes=QUICK_SIZES if args.quick and args.sizes == SIZES else args.sizes,
        prompts=min(args.prompts, 4) if args.quick else args.prompts,
        policies=policies,
        seed=args.seed,
        dtype=args.dtype or ("auto" if gpus else "float32"),
        gpus=gpus,
        out=args.out or default_out("quality", args.model, bool(gpus)),
        extra=tuple(extra),
    )


def _policies(text: str) -> tuple[str, ...]:
    policies = tuple(text.split(","))
    try:
        for policy in policies:
            parse_policy(policy)
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if len(set(policies)) < len(policies):
        raise argparse.ArgumentTypeError("must be different policies")
    return policies
