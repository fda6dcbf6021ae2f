"""The form in which a memory enters a prompt, and why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from memos_vllm.cube import MemCube, Parameter, Plaintext

Form = Literal["text", "kv", "adapter"]


@dataclass(frozen=True)
class Shape:
    """kv: spliced from ready K/V; text: computed in the prompt; adapter: in weights that the model is run with."""

    form: Form
    why: str


LEARNED = Shape("adapter", "the adapter that answers has learned it")

Forms = Callable[[Sequence[MemCube]], Sequence[Shape]]
"""The shape of each cube."""


def plain_forms(cubes: Sequence[MemCube]) -> list[Shape]:
    """Where nothing is spliced: text is text, an adapter is one."""
    return [plain_form(cube) for cube in cubes]


def plain_form(cube: MemCube) -> Shape:
    if isinstance(cube.payload, Parameter):
        return Shape("adapter", f"a rank {cube.payload.rank} adapter of {cube.payload.base_model}")
    return Shape("text", "splicing is off" if isinstance(cube.payload, Plaintext) else "holds no text")
