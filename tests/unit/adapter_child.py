"""A process that works on a vault's adapters until it is killed.

    python -m tests.unit.adapter_child traffic DIR NAME SEED    waits for a line, then goes on for ever
    python -m tests.unit.adapter_child moments DIR              one run for each number on stdin

`traffic`: for each call a line of JSON tells what will be there when it has returned, and a line `done` that it has.
`moments`: a run is `script` on a vault of its own, in a process that kills itself before the Nth time it touches the
file system; how it ended is printed.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from memos_vllm.governance.identity import Caller
from memos_vllm.parameter.registry import AdapterEntry, AdapterRegistry
from memos_vllm.vault import Vault
from tests.unit.adapter_cases import files, registry_of, tensors

Seen = dict[str, Any]
"""Of an adapter: seed of each version's weights by its number, and the active version."""

TOUCHES = frozenset({"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"})


def seen(entry: AdapterEntry) -> Seen:
    versions = {str(version.version): version.metadata["seed"] for version in entry.versions}
    return {"versions": versions, "active": entry.active}


def put(registry: AdapterRegistry, scratch: Path, owner: str, name: str, seed: int, *, activate: bool = False) -> None:
    arrays = tensors(rank=2, seed=seed, layers=(0,))
    made = files(scratch, arrays=arrays, rank=2)
    registry.add(owner, name, made, author=owner, metadata={"seed": seed}, activate=activate)


def script(registry: AdapterRegistry, scratch: Path) -> None:
    """Every kind of write, on adapters of one owner."""
    maya = Caller("maya", bound=True)
    put(registry, scratch, "maya", "poet", 1, activate=True)
    put(registry, scratch, "maya", "poet", 2, activate=True)
    put(registry, scratch, "maya", "poet", 2)
    registry.rollback(maya, "poet")
    registry.remove(maya, "poet", 2)
    put(registry, scratch, "maya", "cook", 3)
    registry.remove(maya, "poet")
    registry.vault.forget("maya", actor="ops")


class Traffic:
    """Knows which adapters it has, and what each call makes of them."""

    def __init__(self, path: Path, name: str, seed: int) -> None:
        self.vault = Vault.open(path, map_bytes=65536)
        self.registry = registry_of(self.vault)
        self.scratch = path.parent / f"incoming-{name}"
        self.rng = random.Random(seed)
        self.owner = name
        self.caller = Caller(name, bound=True)
        self.number = 1000 * seed
        self.held = {entry.name: seen(entry) for entry in self.registry.list(self.caller)}

    def run(self) -> None:
        calls = [self.add, self.add, self.add, self.activate, self.rollback, self.drop_version, self.drop]
        while True:
            if self.rng.random() < 0.03:
                self.call(lambda: self.vault.forget(self.owner, actor="ops"), dict.fromkeys(self.held))
            else:
                self.rng.choice(calls)()

    def call(self, work: Callable[[], object], after: dict[str, Seen | None]) -> None:
        tell(json.dumps(after))
        work()
        tell("done")
        self.held = {name: held for name, held in (self.held | after).items() if held is not None}

    def add(self) -> None:
        self.number += 1
        name, seed, activate = f"a{self.rng.randrange(4)}", self.number, self.rng.random() < 0.5
        held = self.held.get(name)
        # Numbers of versions go on behind those whose files were removed.
        number = 1 if held is None else len(self.vault.versions(self.registry.get(self.caller, name).cube_id)) + 1
        before = held or {"versions": {}, "active": None}
        after = {
            "versions": before["versions"] | {str(number): seed},
            "active": number if activate else before["active"],
        }
        self.call(lambda: put(self.registry, self.scratch, self.owner, name, seed, activate=activate), {name: after})

    def activate(self) -> None:
        if self.held:
            name = self.rng.choice(sorted(self.held))
            version = int(self.rng.choice(sorted(self.held[name]["versions"])))
            after = self.held[name] | {"active": version}
            self.call(lambda: self.registry.activate(self.caller, name, version), {name: after})

    def rollback(self) -> None:
        """To a version that the vault's own record names."""
        for name, held in self.held.items():
            found = self.vault.find_adapter((self.owner,), self.owner, name)
            assert found is not None
            alive = [n for n in found.record.previous if str(n) in held["versions"] and n != held["active"]]
            if alive:
                self.call(partial(self.registry.rollback, self.caller, name), {name: held | {"active": alive[-1]}})
                return

    def drop_version(self) -> None:
        for name, held in self.held.items():
            others = [number for number in held["versions"] if int(number) != held["active"]]
            if others and len(held["versions"]) > 1:
                number = self.rng.choice(others)
                kept = {version: seed for version, seed in held["versions"].items() if version != number}
                work = partial(self.registry.remove, self.caller, name, int(number))
                self.call(work, {name: held | {"versions": kept}})
                return

    def drop(self) -> None:
        if self.held:
            name = self.rng.choice(sorted(self.held))
            self.call(lambda: self.registry.remove(self.caller, name), {name: None})


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def dying_at(number: int, path: Path) -> None:
    """`script`, until the file system is to be touched for the Nth time."""
    touched = 0

    def count(event: str, _: tuple[Any, ...]) -> None:
        nonlocal touched
        if event in TOUCHES:
            touched += 1
            if touched == number:
                os.kill(os.getpid(), signal.SIGKILL)

    with Vault.open(path) as vault:
        registry = registry_of(vault)
        sys.addaudithook(count)
        script(registry, path.parent / f"incoming-{number}")


def moments(folder: Path) -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            dying_at(int(line), folder / line.strip())
            os._exit(0)
        tell(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))


if __name__ == "__main__":
    if sys.argv[1] == "moments":
        moments(Path(sys.argv[2]))
    else:
        sys.stdin.readline()
        Traffic(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])).run()
