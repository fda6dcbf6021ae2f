"""How `scripts/test` divides the suite between two workers; a plain `pytest` runs it in one process, in this order."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SHARED = {
    "servers": re.compile(r"\b(open_server|keyed_server|open_api|keyed_api): Server"),
    "engine": re.compile(r"def test_\w+\(engine: Engine"),
}
"""Fixtures that start something for the whole run: modules that use one stay with the worker that has started it."""
FIRST = (
    "test_bench_smoke",
    "test_data_parallel",
    "test_training_kills",
    "test_kill_moments",
    "test_restart",
    "test_bundled_model",
    "test_load",
    "test_isolation",
)
"""The longest modules: begun last, they would keep one worker busy after the other has ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first, then what starts engines and servers."""
    items.sort(key=lambda item: _rank(item.path))


def _rank(path: Path) -> int:
    if path.stem in FIRST:
        return 0
    return 1 if path.parent.name in ("engine", "server") else 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a worker whole modules: pytest 9.2 does not see the groups of pytest-xdist 3.8's own `--dist loadgroup`."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):  # type: ignore[misc] # its base has no types
        def _split_scope(self, nodeid: str) -> str:
            return _together(nodeid.partition("::")[0])

    return ByModule(config, log)


@lru_cache(maxsize=1024)
def _together(module: str) -> str:
    """The name of what a worker is given at once: a module, or all that share an engine or servers."""
    text = (ROOT / module).read_text(encoding="utf-8")
    return next((name for name, uses in SHARED.items() if uses.search(text)), module)
