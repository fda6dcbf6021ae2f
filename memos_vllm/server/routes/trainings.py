"""`/v1/adapters/train`: adapters made of memories, by processes of their own that serve nobody."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as PathParameter

from memos_vllm.errors import BadInput
from memos_vllm.parameter.choosing import choose, parted
from memos_vllm.parameter.job import JobSpec, JobStatus
from memos_vllm.server import metrics
from memos_vllm.server.routes.adapters import MISSING, UNUSABLE
from memos_vllm.server.routes.common import (
    COMMON,
    MemoryRoute,
    Owner,
    Service,
    User,
    UserId,
    error,
    owner_of,
)
from memos_vllm.server.schemas import EXAMPLE_ID
from memos_vllm.server.schemas_adapters import RetrainRequest, TrainingBody, Trainings, TrainRequest

NO_TRAINING = error(
    404,
    "not_found_error",
    "The caller has no such training.",
    "There is no training '0198c0de7a1b7c3d9e5f6a7b8c9d0e1f'.",
)
TOO_MANY = error(
    409,
    "invalid_request_error",
    "The caller has a training that has not ended, the server has many, or this one has ended.",
    "Training 0198c0de7a1b7c3d9e5f6a7b8c9d0e1f is running: let it end, go on with it, or cancel it.",
)
TrainingId = Annotated[str, PathParameter(description="32 hex digits.", examples=[EXAMPLE_ID])]

router = APIRouter(prefix="/v1/adapters", tags=["adapters"], responses=COMMON, route_class=MemoryRoute)


@router.post("/train", response_model=TrainingBody, response_model_exclude_none=True, responses=TOO_MANY)
def train(body: TrainRequest, service: Service, user: User, owner: Owner = None) -> TrainingBody:
    """Have an adapter made of memories: one that answers what they tell without them in the prompt.

    It is stored, with its figures, only if it answers held-out questions right and others as before.
    """
    whose = owner_of(service, user, owner)
    chosen = choose(service.vault, whose, tags=body.tags, ids=body.memory_ids)
    cubes = service.cleared(user, chosen)
    if len(cubes) < len(chosen) and (body.memory_ids or not cubes):
        raise BadInput("This API key is not cleared for all of these memories; choose others.")
    spec = JobSpec(
        owner=whose,
        author=user,
        name=body.name,
        model=service.model,
        cubes=tuple(f"{cube.id}@{cube.version}" for cube in cubes),
        recipe=body.recipe.fields(service.adapters.max_rank),
        tags=tuple(body.tags),
        activate=body.activate,
    )
    return _asked_for("train", service.jobs.submit(spec))


@router.post("/retrain", response_model=TrainingBody, response_model_exclude_none=True, responses=MISSING | UNUSABLE)
def retrain(body: RetrainRequest, service: Service, user: User) -> TrainingBody:
    """Have an adapter made anew without some of the memories it was made of, and proved that it does not tell them.

    Memories that were deleted since are forgotten with them.
    """
    version = service.adapters.resolve(service.caller(user), body.adapter)
    owner_of(service, user, version.owner)
    kept, forgotten = parted(service.vault, version, body.without)
    spec = JobSpec(
        owner=version.owner,
        author=user,
        name=version.name,
        model=service.model,
        cubes=kept,
        forgotten=forgotten,
        recipe=body.recipe.fields(service.adapters.max_rank),
        tags=version.tags,
        activate=body.activate,
    )
    return _asked_for("retrain", service.jobs.submit(spec))


@router.get("/train", response_model=Trainings, response_model_exclude_none=True)
def list_trainings(service: Service, user: User, user_id: UserId = None, owner: Owner = None) -> Trainings:
    """The trainings of a user, oldest first."""
    found = service.jobs.list(owner_of(service, user, owner))
    return Trainings(results=[TrainingBody.of(status) for status in found])


@router.get(
    "/train/{training_id}", response_model=TrainingBody, response_model_exclude_none=True, responses=NO_TRAINING
)
def get_training(
    training_id: TrainingId, service: Service, user: User, user_id: UserId = None, owner: Owner = None
) -> TrainingBody:
    """How far a training is."""
    return TrainingBody.of(service.jobs.status(owner_of(service, user, owner), training_id))


@router.delete(
    "/train/{training_id}", response_model=TrainingBody, response_model_exclude_none=True, responses=NO_TRAINING
)
def cancel_training(
    training_id: TrainingId, service: Service, user: User, user_id: UserId = None, owner: Owner = None
) -> TrainingBody:
    """Stop a training at its next step; one that has ended stays as it is."""
    return TrainingBody.of(service.jobs.cancel(owner_of(service, user, owner), training_id))


@router.post(
    "/train/{training_id}/resume",
    response_model=TrainingBody,
    response_model_exclude_none=True,
    responses=NO_TRAINING | TOO_MANY,
)
def resume_training(
    training_id: TrainingId, service: Service, user: User, user_id: UserId = None, owner: Owner = None
) -> TrainingBody:
    """Go on with a training whose process died. A server that starts does so with all of them."""
    return _asked_for("resume", service.jobs.resume(owner_of(service, user, owner), training_id))


def _asked_for(kind: str, status: JobStatus) -> TrainingBody:
    """The answer to a request that made a training run."""
    metrics.trainings().labels(kind).inc()
    return TrainingBody.of(status)
