"""A process that works on a vault until it is killed: mixed traffic, each call announced and acknowledged on stdout.

    python -m tests.unit.crash_child DIR NAME,NAME,… SEED

Waits for a line on stdin. Then a thread for each name makes calls: a line `NAME JSON` tells what will have changed when
a call has returned, and a line `NAME done SEQ:HASH` that it has, with the head of the audit log. Everything belongs to
owners and labels that begin with NAME, so that all of them work side by side, and their writes share transactions.
"""

import json
import random
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from memos_vllm.cube import MemCube, State
from memos_vllm.errors import Conflict
from memos_vllm.vault import KVRecord, Vault
from memos_vllm.vault.pipeline import (
    AddStep,
    DeleteStep,
    GrantStep,
    MergeStep,
    PurifyStep,
    Step,
    TransferStep,
    UpdateStep,
)

Seen = dict[str, Any]
"""Of a cube: owner, text, version, versions that are held, state, readers."""


def seen(cube: MemCube, versions: int) -> Seen:
    return {
        "owner": cube.owner,
        "text": cube.text,
        "version": cube.version,
        "versions": versions,
        "state": cube.header.state,
        "readers": sorted(cube.readers()),
    }


def label_of(text: str) -> str:
    """The first word of a text, which no other cube's text has."""
    return text.split(" ", 1)[0]


_telling = threading.Lock()


def tell(name: str, line: str) -> None:
    with _telling:
        sys.stdout.write(f"{name} {line}\n")
        sys.stdout.flush()


class Child:
    """Knows what is in its part of the vault, and what each call makes of it."""

    def __init__(self, vault: Vault, name: str, seed: int) -> None:
        self.vault = vault
        self.rng = random.Random(seed)
        self.name = name
        self.owners = [f"{name}-{n}" for n in range(3)]
        mine = [cube for cube in vault.walk(limit=100_000) if cube.owner in self.owners]
        self.ids = {label_of(cube.text): cube.id for cube in mine}
        self.held = {label_of(cube.text): seen(cube, len(vault.versions(cube.id))) for cube in mine}
        self.number = 1_000_000 * seed

    def run(self) -> None:
        calls = [self.add, self.add, self.update, self.rollback, self.share, self.transition, self.pipeline]
        calls += [self.kv, self.snapshot, self.delete, self.update, self.add, self.refused, self.use]
        while True:
            if self.rng.random() < 0.03:
                self.rng.choice([self.forget, self.empty])()
            else:
                self.rng.choice(calls)()

    def call(self, work: Callable[[], object], cubes: dict[str, Seen | None], **more: Any) -> None:
        """Announce what `work` changes, do it, acknowledge it."""
        tell(self.name, json.dumps({"cubes": cubes, **more}))
        work()
        tell(self.name, f"done {self.vault.log_head()}")
        self.held = {label: held for label, held in (self.held | cubes).items() if held is not None}

    def label(self) -> str:
        self.number += 1
        return f"{self.name}{self.number}"

    def pick(self, *, states: tuple[str, ...] = ("generated", "activated")) -> str | None:
        found = [label for label, held in self.held.items() if held["state"] in states]
        return self.rng.choice(found) if found else None

    def cube(self, owner: str) -> MemCube:
        return MemCube.plaintext(f"{self.label()} tea with {'milk ' * self.rng.randrange(60)}", owner=owner)

    def enter(self, cube: MemCube) -> dict[str, Seen | None]:
        self.ids[label_of(cube.text)] = cube.id
        return {label_of(cube.text): seen(cube, 1)}

    def add(self) -> None:
        owner = self.rng.choice(self.owners)
        cubes = [self.cube(owner) for _ in range(self.rng.randint(1, 4))]
        entered: dict[str, Seen | None] = {}
        for cube in cubes:
            entered |= self.enter(cube)
        self.call(lambda: self.vault.add(cubes, actor=owner), entered)

    def changed(self, label: str, **fields: Any) -> dict[str, Seen | None]:
        return {label: self.held[label] | fields}

    def next_version(self, label: str, text: str) -> dict[str, Seen | None]:
        held = self.held[label]
        return self.changed(label, text=text, version=held["version"] + 1, versions=held["versions"] + 1)

    def update(self) -> None:
        if label := self.pick():
            text = f"{label} changed {self.rng.random()}"
            work = lambda: self.vault.update(self.ids[label], text, actor="someone")  # noqa: E731
            self.call(work, self.next_version(label, text))

    def rollback(self) -> None:
        label = self.pick()
        if label and self.held[label]["versions"] > 1:
            older = self.vault.versions(self.ids[label])[0]
            work = lambda: self.vault.rollback(self.ids[label], older.version, actor="someone")  # noqa: E731
            self.call(work, self.next_version(label, older.text))

    def share(self) -> None:
        if label := self.pick():
            owner = self.held[label]["owner"]
            others = self.rng.sample([name for name in self.owners if name != owner], self.rng.randrange(3))
            work = lambda: self.vault.edit(self.ids[label], actor=owner, access=others)  # noqa: E731
            self.call(work, self.changed(label, readers=sorted([owner, *others])))

    def transition(self) -> None:
        if label := self.pick(states=("generated", "activated", "archived")):
            state: State = "activated" if self.held[label]["state"] in ("archived", "generated") else "archived"
            self.call(
                lambda: self.vault.transition(self.ids[label], state, actor="someone"),
                self.changed(label, state=state),
            )

    def pipeline(self) -> None:
        """Seven steps on an owner's two newest cubes and two new ones."""
        owner = self.rng.choice(self.owners)
        other = self.rng.choice([name for name in self.owners if name != owner])
        own = [label for label, held in self.held.items() if held["owner"] == owner and held["state"] == "activated"]
        if len(own) < 2:
            return
        first, second = own[-2:]
        gift, doomed = self.cube(owner), self.cube(owner)
        merged, purified = f"{self.label()} both", f"{label_of(gift.text)} pure"
        last = self.cube(owner)
        steps: list[Step] = [
            AddStep(gift),
            PurifyStep("#0", purified),
            AddStep(doomed),
            MergeStep((self.ids[first], self.ids[second]), merged),
            GrantStep("#3", other),
            TransferStep("#0", other),
            DeleteStep("#2"),
            AddStep(last),
            UpdateStep("#7", "more", "append"),
        ]
        after: dict[str, Seen | None] = {}
        for label in (first, second):
            after |= self.changed(label, state="merged")
        common = set(self.held[first]["readers"]) & set(self.held[second]["readers"])
        after[label_of(merged)] = seen(MemCube.plaintext(merged, owner=owner, access=sorted(common | {other})), 1)
        after[label_of(purified)] = seen(MemCube.plaintext(purified, owner=other), 1)
        after |= self.enter(last)
        after[label_of(last.text)] = seen(last, 2) | {"text": f"{last.text}\nmore", "version": 2}

        def work() -> None:
            left = self.vault.pipeline(steps, actor=owner)
            self.ids |= {label_of(cube.text): cube.id for cube in (left[3], left[5])}

        self.call(work, after)

    def kv(self) -> None:
        if label := self.pick():
            cube = self.vault.get(self.ids[label])
            key = f"{cube.id}-{cube.version}"
            path = self.vault.path / "kv" / f"{key}.safetensors"
            aside = path.with_suffix(".partial")
            aside.write_bytes(b"K" * 10)
            aside.replace(path)  # whole or not at all, as the KV store writes it
            row = KVRecord(key, cube.owner, cube.id, cube.version, f"kv/{path.name}", 5, 10, "", "", 0.1)
            self.call(lambda: self.vault.put_kv(row), {})

    def snapshot(self) -> None:
        owner, name = self.rng.choice(self.owners), f"s{self.rng.randrange(3)}"
        place = f"{owner}/{name}"
        if name in {snapshot.name for snapshot in self.vault.snapshots(owner)}:
            self.call(lambda: self.vault.drop_snapshot(owner, name, actor=owner), {}, snapshots={place: None})
        else:
            texts = sorted(held["text"] for held in self.held.values() if held["owner"] == owner)
            self.call(lambda: self.vault.snapshot(owner, name, actor=owner), {}, snapshots={place: texts})

    def delete(self) -> None:
        if label := self.pick(states=("generated", "activated", "merged", "archived")):
            self.call(lambda: self.vault.delete(self.ids[label], actor="someone"), {label: None})

    def refused(self) -> None:
        """One that writes nothing, and one that has to be undone; others share their transactions."""
        if label := self.pick():
            with suppress(Conflict):
                self.vault.update(self.ids[label], "never", actor="someone", expect=10**6)
            steps = [UpdateStep(self.ids[label], "never"), UpdateStep(self.ids[label], "never", expect=10**6)]
            with suppress(Conflict):
                self.vault.pipeline(steps, actor="someone")

    def use(self) -> None:
        if label := self.pick():
            self.vault.add_uses({self.ids[label]: 1}, 0.0)

    def empty(self) -> None:
        owner = self.rng.choice(self.owners)
        after: dict[str, Seen | None] = {label: None for label, held in self.held.items() if held["owner"] == owner}
        self.call(lambda: self.vault.delete_owner(owner, actor=owner), after)

    def forget(self) -> None:
        owner = self.rng.choice(self.owners)
        after: dict[str, Seen | None] = {}
        for label, held in self.held.items():
            if held["owner"] == owner:
                after[label] = None
            elif owner in held["readers"]:
                after[label] = held | {"readers": [name for name in held["readers"] if name != owner]}
        gone = {f"{owner}/s{n}": None for n in range(3)}
        self.call(lambda: self.vault.forget(owner, actor="ops"), after, snapshots=gone, forgotten=owner)


if __name__ == "__main__":
    sys.stdin.readline()
    vault = Vault.open(Path(sys.argv[1]), map_bytes=65536)
    for name in sys.argv[2].split(","):
        threading.Thread(target=Child(vault, name, int(sys.argv[3])).run).start()
