"""The calls about LoRA adapters and the trainings that make them. An adapter is `NAME`, or `OWNER/NAME` of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from memos_vllm.client.call import Call, given, words
from memos_vllm.client.models import Adapter, AdapterRemoved, Training

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
AdapterFile = Literal["adapter_config.json", "adapter_model.safetensors"]


def _at(name: str, *rest: str) -> str:
    return "/".join(["/v1/adapters", quote(name), *rest])


def _training(training_id: str, *rest: str) -> str:
    return "/".join(["/v1/adapters/train", quote(training_id, safe=""), *rest])


def adapters(*, user_id: str | None = None) -> Call[list[Adapter]]:
    """The adapters that the user may name as a request's model: their own, then those that are shared with them."""
    return Call("GET", "/v1/adapters", Adapter, user_id, many=True)


def adapter(name: str, *, user_id: str | None = None) -> Call[Adapter]:
    """An adapter with its versions. Raises NotFoundError."""
    return Call("GET", _at(name), Adapter, user_id)


def add_adapter(
    name: str,
    folder: Path | str,
    *,
    activate: bool | None = None,
    default: bool | None = None,
    tags: Iterable[str] | None = None,
    owner: str | None = None,
    user_id: str | None = None,
) -> Call[Adapter]:
    """Store the LoRA adapter that PEFT saved in a folder, or a new version of the one of that name.

    activate: whether it answers from now on (unless said, it does); default: in the base model's place; owner: a group
    of the user's that is to have it.
    """
    files = (Path(folder) / CONFIG, Path(folder) / WEIGHTS)
    body = given(name=name, activate=activate, default=default, tags=words(tags))
    return Call("POST", "/v1/adapters", Adapter, user_id, given(owner=owner), body, files)


def activate_adapter(
    name: str, version: int | None = None, *, default: bool | None = None, user_id: str | None = None
) -> Call[Adapter]:
    """Say which version answers from now on, the newest where none is named. default: in the base model's place."""
    return Call("POST", _at(name, "activate"), Adapter, user_id, body=given(version=version, default=default))


def deactivate_adapter(name: str, *, user_id: str | None = None) -> Call[Adapter]:
    """Let no version answer any more under the adapter's name."""
    return Call("POST", _at(name, "deactivate"), Adapter, user_id, body={})


def rollback_adapter(name: str, *, user_id: str | None = None) -> Call[Adapter]:
    """Go back to the version that was active before."""
    return Call("POST", _at(name, "rollback"), Adapter, user_id, body={})


def remove_adapter(name: str, version: int | None = None, *, user_id: str | None = None) -> Call[AdapterRemoved]:
    """Remove one version of an adapter, or all of it where none is named."""
    return Call("DELETE", _at(name), AdapterRemoved, user_id, given(version=version))


def adapter_file(
    name: str, file: AdapterFile, version: int | None = None, *, user_id: str | None = None
) -> Call[bytes]:
    """One of the two files of an adapter's version, the active one where none is named."""
    return Call("GET", _at(name, "files", quote(file, safe="")), bytes, user_id, given(version=version))


def train(
    name: str,
    *,
    tags: Iterable[str] | None = None,
    memory_ids: Iterable[str] | None = None,
    recipe: Mapping[str, float] | None = None,
    activate: bool | None = None,
    owner: str | None = None,
    user_id: str | None = None,
) -> Call[Training]:
    """Have an adapter made of memories: of all the user's texts, or those with one of the tags, or those named.

    recipe: rank, epochs, learning_rate, replay_weight, seed, min_accuracy; owner: a group of the user's.
    """
    body = given(name=name, tags=words(tags), memory_ids=words(memory_ids), recipe=_recipe(recipe), activate=activate)
    return Call("POST", "/v1/adapters/train", Training, user_id, given(owner=owner), body)


def retrain(
    adapter: str,
    without: Iterable[str],
    *,
    recipe: Mapping[str, float] | None = None,
    activate: bool | None = None,
    user_id: str | None = None,
) -> Call[Training]:
    """Have the next version of an adapter (`NAME` or `NAME@vN`) made without some of its memories, by their ids."""
    body = given(adapter=adapter, without=words(without), recipe=_recipe(recipe), activate=activate)
    return Call("POST", "/v1/adapters/retrain", Training, user_id, body=body)


def trainings(*, owner: str | None = None, user_id: str | None = None) -> Call[list[Training]]:
    """The user's trainings, or those of a group of theirs, oldest first."""
    return Call("GET", "/v1/adapters/train", Training, user_id, given(owner=owner), many=True)


def training(training_id: str, *, owner: str | None = None, user_id: str | None = None) -> Call[Training]:
    """How far a training is."""
    return Call("GET", _training(training_id), Training, user_id, given(owner=owner))


def cancel_training(training_id: str, *, owner: str | None = None, user_id: str | None = None) -> Call[Training]:
    """Stop a training at its next step; one that has ended stays as it is."""
    return Call("DELETE", _training(training_id), Training, user_id, given(owner=owner))


def resume_training(training_id: str, *, owner: str | None = None, user_id: str | None = None) -> Call[Training]:
    """Go on with a training whose process died."""
    return Call("POST", _training(training_id, "resume"), Training, user_id, given(owner=owner))


def _recipe(recipe: Mapping[str, float] | None) -> dict[str, Any] | None:
    return None if recipe is None else dict(recipe)
