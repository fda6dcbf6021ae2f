"""Many adapters: what they cost to start with, to list and to resolve. Figures are printed (pytest -s).

MEMOS_ADAPTERS: how many (default 100; a thousand take half a minute).
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memos_vllm.errors import NotFound
from memos_vllm.governance.identity import Caller
from memos_vllm.parameter.registry import AdapterFiles, AdapterRegistry
from memos_vllm.vault import Vault
from tests.unit.adapter_cases import BO, MAYA, registry_of, tensors, write

MANY = int(os.environ.get("MEMOS_ADAPTERS", "100"))
HERS = MANY // 2
START = """
import sys, time
from pathlib import Path
from memos_vllm.parameter.registry import AdapterRegistry
from memos_vllm.vault import Vault
began = time.perf_counter()
with Vault.open(Path(sys.argv[1])) as vault:
    registry = AdapterRegistry(vault)
    print(time.perf_counter() - began)
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterRegistry]:
    """One user with half of them, the others one each."""
    folder = tmp_path_factory.mktemp("many")
    source = write(folder / "in", arrays=tensors(rank=2, layers=(0,)), rank=2)
    files = AdapterFiles.read(source)
    began = time.perf_counter()
    with Vault.open(folder / "memory") as vault:
        made = registry_of(vault)
        for number in range(MANY):
            owner = "maya" if number < HERS else f"user-{number}"
            made.add(owner, f"a{number}", files, author=owner, activate=True)
        tell(f"\nadd: {1e3 * (time.perf_counter() - began) / MANY:.1f} ms each")
        yield made


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def median_ms(work: Callable[[], object], turns: int) -> float:
    times = []
    for _ in range(turns):
        began = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def test_listing(registry: AdapterRegistry) -> None:
    one = Caller(f"user-{HERS}", bound=True)
    assert (len(registry.list(MAYA)), len(registry.list(one)), len(registry.all())) == (HERS, 1, MANY)
    hers, theirs = median_ms(lambda: registry.list(MAYA), 5), median_ms(lambda: registry.list(one), 50)
    everything = median_ms(registry.all, 5)
    tell(f"list: {HERS} of a user {hers:.1f} ms, 1 of a user {theirs:.2f} ms, all {MANY} {everything:.1f} ms")
    assert theirs < 20 and hers < 1000 and everything < 2000


def test_resolving(registry: AdapterRegistry) -> None:
    """The time that a miss takes must not tell another user's adapter from one that nobody has."""
    number = HERS // 2

    def missed(name: str) -> None:
        with pytest.raises(NotFound):
            registry.resolve(BO, name)

    own = median_ms(lambda: registry.resolve(MAYA, f"a{number}"), 200)
    default = median_ms(lambda: registry.default_of(MAYA), 200)
    names = [f"maya/a{number}", f"maya/b{number}"] * 500
    misses = [median_ms(lambda name=name: missed(name), 1) for name in names]  # type: ignore[misc]
    theirs, nobodys = statistics.median(misses[::2]), statistics.median(misses[1::2])
    tell(f"resolve: own {own:.3f} ms, default {default:.3f} ms, another's {theirs:.4f} ms, nobody's {nobodys:.4f} ms")
    assert max(own, default, theirs, nobodys) < 20
    assert 0.6 < theirs / nobodys < 1.6


def test_starting(registry: AdapterRegistry) -> None:
    command = [sys.executable, "-c", START, str(registry.vault.path)]
    seconds = [float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3)]
    tell(f"start: {1e3 * min(seconds):.0f} ms with {MANY} adapters")
    assert min(seconds) < 5


def test_checking(registry: AdapterRegistry) -> None:
    began = time.perf_counter()
    assert registry.vault.check() == []
    tell(f"check: {time.perf_counter() - began:.1f} s, every file read")


def test_staging(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = registry.resolve(MAYA, f"a{HERS // 2}")
    targets = iter(tmp_path / str(number) for number in range(50))
    milliseconds = median_ms(lambda: registry.stage(version, next(targets)), 50)
    tell(f"stage: {milliseconds:.2f} ms for {version.bytes:,} bytes")
    assert milliseconds < 200
