"""Who may see what: the model with which the traffic of many tenants is compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from memos_vllm.vault.states import HOT

CLEARANCE = ("work",)
"""What a limited key may read."""
RIGHTS = ("read", "write", "share")


class Viewer(NamedTuple):
    """A tenant, through a key that is cleared for all or for CLEARANCE only."""

    name: str
    limited: bool = False


@dataclass
class Told:
    """A memory as the model knows it.

    texts: by version, the word that is in no other text; origins: ids of memories that it was made from
    authors: who wrote a version; used: it was in a prompt, or brought back, so the server activates it in a while
    """

    owner: str
    texts: dict[int, str]
    delicate: bool = False
    rights: dict[str, frozenset[str]] = field(default_factory=dict)
    state: str = "generated"
    origins: set[str] = field(default_factory=set)
    authors: set[str] = field(default_factory=set)
    used: bool = False

    @property
    def version(self) -> int:
        return max(self.texts)

    @property
    def secret(self) -> str:
        return self.texts[self.version]

    @property
    def hot(self) -> bool:
        """Whether it is searched and enters prompts."""
        return self.state in HOT


class Copy(NamedTuple):
    """A memory in a snapshot."""

    owner: str
    secret: str
    delicate: bool
    state: str


class World:
    """Memories, groups and snapshots of some tenants, and who has met whom."""

    def __init__(self, tenants: list[str], groups: list[str]) -> None:
        self.tenants = tenants
        self.groups: dict[str, set[str]] = {group: set() for group in groups}
        self.told: dict[str, Told] = {}
        self.snapshots: dict[str, dict[str, dict[str, Copy]]] = {tenant: {} for tenant in tenants}
        self.gone: set[str] = set()
        """Words of texts that were deleted; a snapshot may have brought some back."""
        self.forgotten: set[str] = set()
        """Ids of memories whose owner was forgotten: not even a log names them."""
        self.left: dict[str, str] = {}
        """Ids of other memories that are gone, by their owner: whose log goes on telling of them."""
        self.met: defaultdict[str, set[str]] = defaultdict(set)
        """Whom a tenant may have read of: their own log goes on telling of them."""

    def principals(self, name: str) -> set[str]:
        return {name, *(group for group, members in self.groups.items() if name in members)}

    def people(self, principal: str) -> set[str]:
        """The tenants that a principal stands for."""
        return set(self.groups.get(principal, {principal}))

    def rights(self, viewer: Viewer, cube: str) -> frozenset[str]:
        told, names = self.told[cube], self.principals(viewer.name)
        if viewer.limited and told.delicate:
            return frozenset()
        if told.owner in names:
            return frozenset((*RIGHTS, "own"))
        return frozenset(right for name in names for right in told.rights.get(name, ()))

    def visible(self, viewer: Viewer) -> set[str]:
        return {cube for cube in self.told if self.rights(viewer, cube)}

    def able(self, viewer: Viewer, right: str) -> set[str]:
        return {cube for cube in self.told if right in self.rights(viewer, cube)}

    def found(self, viewer: Viewer) -> set[str]:
        """What a search of everything finds."""
        return {cube for cube in self.visible(viewer) if self.told[cube].hot}

    def own(self, viewer: Viewer, owner: str = "") -> list[str]:
        """Memories of the viewer or of a group of theirs, in the order of lists."""
        whose = owner or viewer.name
        return sorted(cube for cube in self.visible(viewer) if self.told[cube].owner == whose)

    def routes(self, viewer: Viewer) -> frozenset[tuple[str, int, str]]:
        """What a viewer's search looks at: each memory in each of the partitions where it stands for them."""
        names = self.principals(viewer.name)
        return frozenset(
            (cube, self.told[cube].version, name)
            for cube in self.found(viewer)
            for name in names & {self.told[cube].owner, *self.told[cube].rights}
        )

    def status(self, viewer: Viewer, cube: str, right: str) -> int:
        """How a request is answered that needs a right: who may not read learns nothing."""
        held = self.rights(viewer, cube)
        return 200 if right in held else 403 if held else 404

    def leaks(self, viewer: Viewer, raw: str, said: str = "") -> Iterator[str]:
        """What of an answer's bytes is not the viewer's to see. said: what they sent themselves."""
        origins = {origin for cube in self.able(viewer, "write") for origin in self.told[cube].origins}
        hidden = self.told.keys() - self.visible(viewer) | self.forgotten
        hidden |= {cube for cube, owner in self.left.items() if owner != viewer.name or viewer.limited}
        for cube in hidden - origins:
            if cube in raw and cube not in said:
                yield f"the id {cube}"
        alive = {secret for told in self.told.values() for secret in told.texts.values()}
        readable = {self.told[cube].secret for cube in self.visible(viewer)}
        readable |= {secret for cube in self.able(viewer, "write") for secret in self.told[cube].texts.values()}
        for secret in (alive | self.gone) - readable:
            if secret in raw and secret not in said:
                yield f"the text {secret}"
        for name in {*self.tenants} - self.known(viewer):
            if name in raw and name not in said:
                yield f"the name {name}"

    def known(self, viewer: Viewer) -> set[str]:
        """Whose names a tenant may read."""
        names = {viewer.name} | self.met[viewer.name]
        for cube in self.visible(viewer):
            told, held = self.told[cube], self.rights(viewer, cube)
            names.add(told.owner)
            names |= told.authors if "write" in held else set()
            names |= told.rights.keys() if "own" in held else set()
        return names

    def meet(self, owner: str, others: set[str]) -> None:
        """The log of an owner, or of a group, tells of others from now on."""
        for tenant in self.people(owner):
            self.met[tenant] |= others

    def write(self, cube: str, actor: str, version: int, secret: str) -> None:
        told = self.told[cube]
        assert version > told.version
        told.texts[version] = secret
        told.authors.add(actor)
        self.meet(told.owner, {actor})

    def drop(self, cube: str, *, forgotten: bool = False) -> None:
        told = self.told.pop(cube)
        self.gone |= {*told.texts.values()}
        if forgotten:
            self.forgotten.add(cube)
        else:
            self.left[cube] = told.owner

    def copy_of(self, cube: str) -> Copy:
        told = self.told[cube]
        return Copy(told.owner, told.secret, told.delicate, told.state)

    def forget(self, name: str) -> None:
        """Nothing of a tenant stays, and nothing names them."""
        for cube in [cube for cube, told in self.told.items() if told.owner == name]:
            self.drop(cube, forgotten=True)
        self.forgotten |= {cube for cube, owner in self.left.items() if owner == name}
        self.left = {cube: owner for cube, owner in self.left.items() if owner != name}
        for told in self.told.values():
            told.rights.pop(name, None)
            told.authors.discard(name)
        for members in (*self.groups.values(), *self.met.values()):
            members.discard(name)
        self.snapshots[name].clear()
        self.met[name].clear()

    def copies(self, viewer: Viewer, name: str) -> dict[str, Copy]:
        """The copies of a snapshot that there are for the viewer's key."""
        kept = self.snapshots[viewer.name][name]
        return {cube: copy for cube, copy in kept.items() if not (viewer.limited and copy.delicate)}

    def revive(self, cube: str, copy: Copy, version: int) -> None:
        """A deleted memory is its owner's alone again."""
        self.left.pop(cube)
        self.told[cube] = Told(
            copy.owner, {version: copy.secret}, copy.delicate, state=copy.state, authors={copy.owner}
        )
