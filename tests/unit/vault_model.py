"""What a vault does to cubes, versions, states, grants and snapshots, in plain Python."""

from dataclasses import dataclass, field

from memos_vllm.cube import MemCube, State
from memos_vllm.vault import states

Content = tuple[str, tuple[str, ...]]


class Refused(Exception):
    """The model does not allow it."""


@dataclass
class Known:
    """A cube as the model has it. versions: number → content of those that are kept; newest: number of the last one."""

    owner: str
    newest: int
    versions: dict[int, Content]
    state: State = "generated"
    access: set[str] = field(default_factory=set)

    @property
    def content(self) -> Content:
        return self.versions[self.newest]

    def follow(self, content: Content) -> None:
        if self.state in ("frozen", "expired"):
            raise Refused
        self.newest += 1
        self.versions[self.newest] = content


@dataclass
class Copy:
    content: Content
    state: State


@dataclass
class Model:
    cubes: dict[str, Known] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    snapshots: dict[tuple[str, str], dict[str, Copy]] = field(default_factory=dict)

    def find(self, cube_id: str) -> Known:
        if cube_id not in self.cubes:
            raise Refused
        return self.cubes[cube_id]

    def add(self, cube: MemCube) -> None:
        content = (cube.text, cube.header.tags)
        self.cubes[cube.id] = Known(cube.owner, 1, {1: content}, access={g.principal for g in cube.header.access})

    def update(self, cube_id: str, text: str, operation: str) -> None:
        cube = self.find(cube_id)
        old, tags = cube.content
        lines = old.splitlines()
        added = {"overwrite": text, "purify": text, "append": f"{old}\n{text}"}
        cube.follow((added.get(operation, old if text in lines else f"{old}\n{text}"), tags))
        if operation == "purify":
            cube.versions = {cube.newest: cube.content}
            for copy in self.copies(cube_id, cube.owner):
                copy.content = cube.content

    def rollback(self, cube_id: str, version: int) -> None:
        cube = self.find(cube_id)
        if version == cube.newest or version not in cube.versions:
            raise Refused
        cube.follow(cube.versions[version])

    def transition(self, cube_id: str, state: State) -> None:
        cube = self.find(cube_id)
        if state not in states.ALLOWED[cube.state]:
            raise Refused
        cube.state = state

    def grant(self, cube_id: str, principal: str, rights: tuple[str, ...]) -> None:
        cube = self.find(cube_id)
        cube.access = (cube.access | {principal} if rights else cube.access - {principal}) - {cube.owner}

    def copies(self, cube_id: str, owner: str) -> list[Copy]:
        return [held[cube_id] for (whose, _), held in self.snapshots.items() if whose == owner and cube_id in held]

    def delete(self, cube_id: str, *, snapshots: bool = False) -> None:
        cube = self.find(cube_id)
        self.last[cube_id] = cube.newest
        del self.cubes[cube_id]
        for (owner, _), held in self.snapshots.items():
            if snapshots and owner == cube.owner:
                held.pop(cube_id, None)

    def merge(self, ids: tuple[str, ...]) -> Known:
        cubes = [self.find(cube_id) for cube_id in ids]
        if len(set(ids)) < 2 or len({cube.owner for cube in cubes}) > 1:
            raise Refused
        lines = dict.fromkeys(line for cube in cubes for line in cube.content[0].splitlines())
        tags = dict.fromkeys(tag for cube in cubes for tag in cube.content[1])
        merged = Known(cubes[0].owner, 1, {1: ("\n".join(lines), tuple(tags))})
        merged.access = set.intersection(*(cube.access for cube in cubes))
        for cube_id in ids:
            self.transition(cube_id, "merged")
        return merged

    def transfer(self, cube_id: str, owner: str) -> Known:
        cube = self.find(cube_id)
        if cube.owner == owner:
            raise Refused
        self.delete(cube_id)
        return Known(owner, 1, {1: cube.content})

    def owned(self, owner: str) -> dict[str, Known]:
        return {cube_id: cube for cube_id, cube in self.cubes.items() if cube.owner == owner}

    def restore(self, owner: str, name: str) -> None:
        if (owner, name) not in self.snapshots:
            raise Refused
        copies = self.snapshots[owner, name]
        for cube_id, then in copies.items():
            if cube_id not in self.cubes:
                number = self.last[cube_id] + 2
                self.cubes[cube_id] = Known(owner, number, {number: then.content})
            elif self.cubes[cube_id].content != then.content:
                self.cubes[cube_id].follow(then.content)
            self.cubes[cube_id].state = then.state
        for cube_id, cube in self.owned(owner).items():
            if cube_id not in copies and "archived" in states.ALLOWED[cube.state]:
                cube.state = "archived"

    def forget(self, principal: str) -> None:
        for cube_id in self.owned(principal):
            self.delete(cube_id)
        for cube in self.cubes.values():
            cube.access.discard(principal)
        self.snapshots = {key: copies for key, copies in self.snapshots.items() if key[0] != principal}
