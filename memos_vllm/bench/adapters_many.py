"""What a registry of many adapters costs, without a server: adding, listing, resolving, starting."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memos_vllm.bench.adapters_weights import make_adapter
from memos_vllm.governance.identity import Caller
from memos_vllm.parameter.registry import AdapterFiles, AdapterRegistry, BaseModel
from memos_vllm.vault import Vault

START = """
import sys, time
from pathlib import Path
from memos_vllm.parameter.registry import AdapterRegistry
from memos_vllm.vault import Vault
began = time.perf_counter()
with Vault.open(Path(sys.argv[1])) as vault:
    AdapterRegistry(vault)
    print(time.perf_counter() - began)
"""
STARTS = 5
LISTINGS, LOOKUPS = 20, 400
HEAVY, NAME = "heavy", "bench"
"""A user with half of the adapters; what the adapter of everybody else is called."""


@dataclass(frozen=True)
class RegistryFigures:
    """Medians in seconds. own, half, everything: listing the one adapter of a user, those of a user with half of all,
    and all of them; named, default: resolving what a request gets; start: opening vault and registry in a new process.
    """

    adapters: int
    add: float
    own: float
    half: float
    everything: float
    named: float
    default: float
    start: float


def registry_figures(
    count: int, folder: Path, base: BaseModel, modules: tuple[str, ...], tell: Callable[[], object]
) -> RegistryFigures:
    """Fill a vault in `folder` and time it; `tell` is called after each adapter. Each has one layer and rank 1."""
    made = make_adapter("", folder / "adapter", base, modules=modules, rank=1, seed=0, layers=1).folder
    files = AdapterFiles.read(made)
    with Vault.open(folder / "memory") as vault:
        registry, added = AdapterRegistry(vault, base=base), []
        for number in range(count):
            owner, name = (HEAVY, f"a{number}") if number < count // 2 else (f"user-{number}", NAME)
            added.append(_seconds(lambda: registry.add(owner, name, files, author=owner, activate=True)))  # noqa: B023
            tell()
        one, heavy = Caller(f"user-{count - 1}", bound=True), Caller(HEAVY, bound=True)
        figures = {
            "add": statistics.median(added),
            "own": _median(lambda: registry.list(one), LISTINGS),
            "half": _median(lambda: registry.list(heavy), LISTINGS),
            "everything": _median(registry.all, LISTINGS),
            "named": _median(lambda: registry.resolve(one, NAME), LOOKUPS),
            "default": _median(lambda: registry.default_of(one), LOOKUPS),
        }
    return RegistryFigures(count, **figures, start=_start(folder / "memory"))


def _start(memory_dir: Path) -> float:
    command = [sys.executable, "-c", START, str(memory_dir)]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(STARTS)]
    return statistics.median(float(run.stdout) for run in runs)


def _median(work: Callable[[], object], turns: int) -> float:
    return statistics.median(_seconds(work) for _ in range(turns))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
