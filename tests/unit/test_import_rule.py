"""The import rule of ARCHITECTURE.md, read from the source, and from what a fresh process really loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "memos_vllm"
KERNELS = ROOT / "kernels" / "memos_kernels"
MAX_LINES = 400

LAYERS = [
    {"__init__", "errors"},
    {"client"},
    {"config", "memory_block"},
    {"cube"},
    {"vault"},
    {"governance", "retrieval", "reader", "activation", "parameter"},
    {"scheduler"},
    {"engine", "server"},
    {"plugin", "bench", "mcp"},
    {"demo", "cli_vault", "cli_key"},
    {"cli_export", "cli_adapter", "cli_adapter_train"},
    {"cli"},
]
"""A part may import itself and what stands in an earlier row; a part that is new here must be given its row."""

SAME_ROW = {
    ("server", "engine"),
    ("reader", "retrieval"),
    *(("parameter", other) for other in ("governance", "activation", "reader")),
}
"""Imports inside a row: the launcher asks `engine.compat`, the splicer uses the engine's messages; the reader gives a
MemoryCall the time window that a search takes; adapters are for callers, and for the model that K/V are identified by,
and what they learn is read sentence by sentence.
"""

RANK = {part: rank for rank, row in enumerate(LAYERS) for part in row}
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """`memos_vllm/vault/keys.py` → `vault`, `memos_vllm/cli.py` → `cli`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Dotted names of every import below `tree`, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names_in(path: Path) -> set[str]:
    return set(imported_names(ast.parse(path.read_text(encoding="utf-8"))))


def top_level(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def own_parts(names: set[str]) -> set[str]:
    """The parts of memos_vllm that `names` reach into; `from memos_vllm import __version__` reaches `__init__`."""
    parts = {name.split(".")[1] for name in names if name.startswith("memos_vllm.")}
    return {part if part in RANK or (PACKAGE / part).is_dir() else "__init__" for part in parts}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_down_only(path: Path) -> None:
    part = part_of(path)
    assert part in RANK, f"{part} has no row in LAYERS"
    for other in own_parts(names_in(path)) - {part}:
        assert RANK[other] < RANK[part] or (part, other) in SAME_ROW, f"{part} must not import {other}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_only_engine_and_server_import_vllm(path: Path) -> None:
    if part_of(path) not in ("engine", "server", "plugin"):
        assert "vllm" not in top_level(names_in(path))


@pytest.mark.parametrize("path", sorted(KERNELS.rglob("*.py")), ids=relative)
def test_kernels_know_neither_vllm_nor_us(path: Path) -> None:
    assert not top_level(names_in(path)) & {"vllm", "memos_vllm"}


def test_kernels_folder_is_no_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow Hugging Face's package `kernels`"


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        (["cube", "vault", "errors", "config"], ["torch", "vllm"]),
        (["plugin"], ["torch", "vllm"]),
        (["cli", "server.preflight"], ["vllm"]),
        (["bench.ttft", "demo"], ["torch", "vllm"]),
        (["governance.identity", "retrieval.operator", "reader", "scheduler.plan"], ["torch", "vllm"]),
        (["client", "mcp"], ["torch", "vllm"]),
        (["parameter.registry", "cli_adapter"], ["torch", "vllm", "peft", "transformers"]),
        (["parameter.job", "parameter.choosing", "cli_adapter_train"], ["torch", "vllm", "peft", "transformers"]),
    ],
    ids=lambda names: "+".join(names),
)
def test_a_fresh_process_loads_none_of(modules: list[str], unwanted: list[str]) -> None:
    imports = ", ".join(f"memos_vllm.{module}" for module in modules)
    program = f"import sys, {imports}; print(*sorted(set(sys.modules) & {set(unwanted)!r}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []


@pytest.mark.parametrize("part", ["cube", "vault"])
def test_cube_and_vault_never_import_torch(part: str) -> None:
    for path in (path for path in MODULES if part_of(path) == part):
        assert "torch" not in top_level(names_in(path)), relative(path)


@pytest.mark.parametrize(
    "path",
    [
        *MODULES,
        *sorted(KERNELS.rglob("*.py")),
        *sorted((ROOT / "tests").rglob("*.py")),
        *(ROOT / "scripts").glob("*.py"),
    ],
    ids=relative,
)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
