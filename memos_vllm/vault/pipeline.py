"""Pipelines: a declared list of operations that is applied wholly or not at all (MemOS paper, section 5.2.3)."""

from collections.abc import Callable, Sequence
from typing import TypeAlias, assert_never

import msgspec

from memos_vllm.cube import Grant, MemCube, Namespace, Right, Scalar, State
from memos_vllm.errors import BadInput, Conflict
from memos_vllm.vault import audit, changes, forgotten, snapshots, states, versions
from memos_vllm.vault.env import Txn
from memos_vllm.vault.kv import KVManifest
from memos_vllm.vault.tables import newest, revision
from memos_vllm.vault.versions import UpdateOperation

MAX_STEPS = 1000


class _Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do"):
    """An id may be `#n`: that of the cube which step n, counted from 0, has left."""


class AddStep(_Step, frozen=True, tag="add"):
    """Store a new cube."""

    cube: MemCube


class UpdateStep(_Step, frozen=True, tag="update"):
    """Make the next version of a cube, as `Vault.update` does."""

    id: str
    text: str
    operation: UpdateOperation = "overwrite"
    metadata: dict[str, Scalar] = {}
    expect: int | None = None
    happened: str | None = None
    tags: tuple[str, ...] | None = None


class MergeStep(_Step, frozen=True, tag="merge"):
    """Make one new cube of several; those are `merged` from then on. text: None for every line of theirs once."""

    ids: tuple[str, ...]
    text: str | None = None


class TransferStep(_Step, frozen=True, tag="transfer"):
    """Give a cube to another owner: as a new cube without history or grants. The old one is removed."""

    id: str
    owner: str
    namespace: Namespace | None = None


class PurifyStep(_Step, frozen=True, tag="purify"):
    """Make a cleaned text the next version of a cube, remove those before it, and clean its copies in snapshots."""

    id: str
    text: str


class DeleteStep(_Step, frozen=True, tag="delete"):
    """Remove a cube. snapshots: and its copies in its owner's snapshots, which could bring it back."""

    id: str
    snapshots: bool = False


class GrantStep(_Step, frozen=True, tag="grant"):
    """Give a principal these rights to a cube, in place of those they had; none takes them away."""

    id: str
    principal: str
    rights: tuple[Right, ...] = ("read",)


class EditStep(_Step, frozen=True, tag="edit"):
    """Give a cube more tags, sensitivity tags and grants, without a new version."""

    id: str
    tags: tuple[str, ...] = ()
    sensitivity: tuple[str, ...] = ()
    access: tuple[Grant, ...] = ()


class TransitionStep(_Step, frozen=True, tag="transition"):
    """Bring a cube into another state."""

    id: str
    state: State


Step: TypeAlias = (
    AddStep | UpdateStep | MergeStep | TransferStep | PurifyStep | DeleteStep | GrantStep | EditStep | TransitionStep
)

Permit: TypeAlias = Callable[[MemCube, Step], None]
"""Raises what the caller is to see where a step may not touch a cube. It may be asked twice for one."""


def ids_in(step: Step) -> Sequence[str]:
    """The cubes that a step names, by id or by the step that makes them."""
    if isinstance(step, AddStep):
        return ()
    return step.ids if isinstance(step, MergeStep) else (step.id,)


class Pipelines(KVManifest):
    """The part of a vault that runs pipelines."""

    def pipeline(
        self,
        steps: Sequence[Step],
        *,
        actor: str,
        permit: Permit | None = None,
        seen: int | None = None,
        since: float | None = None,
    ) -> list[MemCube]:
        """Apply steps in order, in one transaction, and return the cube that each has left; a deleted one as it was.

        permit: asked about each cube that a step touches, as it is before that step, inside the transaction.
        seen: the actor's `revision` that the steps were decided on; raises Conflict where it is another now.
        since: when the actor asked for it (Unix seconds); raises Forgotten where their memories were deleted since.
        Raises what the steps and `permit` raise, BadInput for a list that is no pipeline; then nothing was done.
        """
        if not 1 <= len(steps) <= MAX_STEPS:
            raise BadInput(f"A pipeline has 1 to {MAX_STEPS} steps, not {len(steps)}.")

        def work(txn: Txn) -> list[MemCube]:
            if since is not None:
                forgotten.check(txn, actor, since)
            if seen is not None and revision(txn, actor) != seen:
                raise Conflict("Memories have changed meanwhile; read them again.")
            run = _Run(txn, actor, permit)
            for step in steps:
                run.apply(step)
            audit.append(txn, actor=actor, action="pipeline", detail={"steps": len(steps)})
            return run.cubes

        cubes = self._change(work, adds=not all(isinstance(step, TransitionStep | DeleteStep) for step in steps))
        self._bury()
        return cubes


class _Run:
    """One pipeline inside its transaction. cubes: what each step has left."""

    def __init__(self, txn: Txn, actor: str, permit: Permit | None) -> None:
        self._txn = txn
        self._actor = actor
        self._permit = permit
        self.cubes: list[MemCube] = []

    def apply(self, step: Step) -> None:
        match step:
            case AddStep():
                cube = self._add(step)
            case MergeStep():
                cube = self._merge(step)
            case UpdateStep() | PurifyStep():
                cube = self._update(step)
            case TransferStep():
                cube = self._transfer(step)
            case DeleteStep():
                cube = self._found(step.id, step)
                changes.remove(self._txn, cube, self._actor)
                if step.snapshots:
                    snapshots.strike(self._txn, [cube])
            case GrantStep():
                cube = self._grant(step)
            case EditStep():
                cube = self._edit(step)
            case TransitionStep():
                cube = self._found(step.id, step)
                states.check_transition(cube.header.state, step.state)
                cube = changes.transit(self._txn, cube, step.state, self._actor)
            case _:
                assert_never(step)
        self.cubes.append(cube)

    def _add(self, step: AddStep) -> MemCube:
        cube = self._allowed(versions.first(step.cube, self._actor), step)
        changes.add(self._txn, cube, self._actor)
        return cube

    def _update(self, step: UpdateStep | PurifyStep) -> MemCube:
        old = self._found(step.id, step)
        if isinstance(step, PurifyStep):
            new = versions.following(old, step.text, self._actor, "purify")
        else:
            versions.check_seen(old, step.expect)
            fields = versions.given_fields(happened=step.happened, tags=step.tags)
            new = versions.following(old, step.text, self._actor, step.operation, metadata=step.metadata, **fields)
        changes.supersede(self._txn, old, new, self._actor)
        if new.header.operation == "purify":
            snapshots.purify(self._txn, new)
        return new

    def _merge(self, step: MergeStep) -> MemCube:
        cubes = [self._found(cube_id, step) for cube_id in dict.fromkeys(map(self._resolved, step.ids))]
        new = versions.merged(cubes, step.text, self._actor)
        for cube in cubes:
            states.check_transition(cube.header.state, "merged")
            changes.transit(self._txn, cube, "merged", self._actor)
        changes.add(self._txn, new, self._actor)
        return new

    def _transfer(self, step: TransferStep) -> MemCube:
        old = self._found(step.id, step)
        new = versions.given(old, step.owner, step.namespace, self._actor)
        changes.remove(self._txn, old, self._actor)
        changes.add(self._txn, new, self._actor)
        return new

    def _grant(self, step: GrantStep) -> MemCube:
        old = self._found(step.id, step)
        access = [grant for grant in old.header.access if grant.principal != step.principal]
        if step.rights:
            access.append(Grant(step.principal, step.rights))
        new = versions.edited(old, {}, {"access": tuple(access)})
        changes.rewrite(self._txn, old, new, self._actor, "edit")
        return new

    def _edit(self, step: EditStep) -> MemCube:
        old = self._found(step.id, step)
        more = {
            name: tuple(dict.fromkeys((*getattr(old.header, name), *getattr(step, name))))
            for name in ("tags", "sensitivity", "access")
        }
        new = versions.edited(old, {}, more)
        changes.rewrite(self._txn, old, new, self._actor, "edit")
        return new

    def _found(self, cube_id: str, step: Step) -> MemCube:
        """The cube as the steps before have left it. Raises NotFound, BadInput and what `permit` raises."""
        return self._allowed(newest(self._txn, self._resolved(cube_id)), step)

    def _allowed(self, cube: MemCube, step: Step) -> MemCube:
        if self._permit is not None:
            self._permit(cube, step)
        return cube

    def _resolved(self, cube_id: str) -> str:
        number = cube_id.removeprefix("#")
        if number == cube_id:
            return cube_id
        if not (number.isascii() and number.isdigit() and len(number) < 5 and int(number) < len(self.cubes)):
            raise BadInput(f"{cube_id[:16]!r} names no step before step {len(self.cubes)}; the first one is #0.")
        return self.cubes[int(number)].id
