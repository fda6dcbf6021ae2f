"""Snapshots of all of a person's memories, and pipelines of operations on them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from memos_vllm.server.routes.common import (
    COMMON,
    CONFLICT,
    MISSING,
    TOO_LARGE,
    MemoryRoute,
    Owner,
    Service,
    User,
    UserId,
    error,
    owner_of,
)
from memos_vllm.server.routes.permits import permit_for
from memos_vllm.server.schemas import Memories, Memory
from memos_vllm.server.schemas_life import (
    Dropped,
    PipelineRequest,
    RestoredBody,
    SnapshotBody,
    SnapshotRequest,
    Snapshots,
)

router = APIRouter(prefix="/v1", responses=COMMON, route_class=MemoryRoute)
NO_SNAPSHOT = error(
    404, "not_found_error", "There is no snapshot of that name.", "There is no snapshot 'before the move' of maya."
)
Name = Annotated[str, Path(description="Name of a snapshot.", examples=["before the move"])]


@router.get("/snapshots", response_model=Snapshots, tags=["snapshots"])
def list_snapshots(service: Service, user: User, user_id: UserId = None, owner: Owner = None) -> Snapshots:
    """The user's snapshots."""
    whose = owner_of(service, user, owner)
    return Snapshots(results=[SnapshotBody.of(snapshot) for snapshot in service.snapshots(user, whose)])


@router.post("/snapshots", response_model=SnapshotBody, responses=CONFLICT | TOO_LARGE, tags=["snapshots"])
def take_snapshot(body: SnapshotRequest, service: Service, user: User, owner: Owner = None) -> SnapshotBody:
    """Keep the present state of all of the user's memories, or of one namespace, under a new name."""
    whose = owner_of(service, user, owner)
    covers = service.covers(user)
    taken = service.vault.snapshot(whose, body.name, actor=user, namespace=body.namespace, covers=covers)
    return SnapshotBody.of(taken)


@router.post(
    "/snapshots/{name}/restore",
    response_model=RestoredBody,
    response_model_exclude_none=True,
    responses=NO_SNAPSHOT | CONFLICT | TOO_LARGE,
    tags=["snapshots"],
)
def restore_snapshot(
    name: Name, service: Service, user: User, user_id: UserId = None, owner: Owner = None
) -> RestoredBody:
    """Bring the user's memories back to a snapshot.

    Memories that changed get a new version with the content of then, deleted ones come back under their ids, newer
    ones go to the archive. Who has access stays as it is now, and memories that the key is not cleared for as they are.
    """
    return RestoredBody.of(service.restore(owner_of(service, user, owner), name, user), user)


@router.delete("/snapshots/{name}", response_model=Dropped, responses=NO_SNAPSHOT, tags=["snapshots"])
def drop_snapshot(name: Name, service: Service, user: User, user_id: UserId = None, owner: Owner = None) -> Dropped:
    """Delete a snapshot; the memories stay. A key that is not cleared for all memories may not do this."""
    service.require_clearance(user)
    service.vault.drop_snapshot(owner_of(service, user, owner), name, actor=user)
    return Dropped(message=f"Snapshot {name!r} deleted.")


@router.post(
    "/pipelines",
    response_model=Memories,
    response_model_exclude_none=True,
    responses=MISSING | CONFLICT | TOO_LARGE,
    tags=["pipelines"],
)
def run_pipeline(body: PipelineRequest, service: Service, user: User) -> Memories:
    """Apply operations in their order, all of them or none. The answer holds one memory for each step, as the step
    left it, a deleted one as it was.
    """
    steps = [step.step(user) for step in body.steps]
    cubes = service.pipeline(steps, user, permit_for(service, user))
    return Memories(results=[Memory.of(cube, user) for cube in cubes])
