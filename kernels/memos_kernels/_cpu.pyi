from collections.abc import Sequence
from enum import Enum

class Dtype(Enum):
    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2

class Paged:
    def __init__(
        self,
        layers: Sequence[int],
        dtype: Dtype,
        num_blocks: int,
        heads: int,
        head_dim: int,
        block_size: int,
        block_stride: int,
        head_stride: int,
    ) -> None: ...

class Cpu:
    def __init__(self, wanted: str) -> None: ...
    @property
    def isa(self) -> str: ...
    def capture(
        self,
        paged: Paged,
        table: Sequence[int],
        start: int,
        length: int,
        k: int,
        v: int,
        k_layer_stride: int,
        v_layer_stride: int,
        threads: int,
    ) -> None: ...
    def splice(
        self,
        paged: Paged,
        table: Sequence[int],
        start: int,
        length: int,
        k: int,
        v: int,
        k_layer_stride: int,
        v_layer_stride: int,
        cosines: Sequence[float],
        sines: Sequence[float],
        interleaved: bool,
        threads: int,
    ) -> None: ...

def copy(to: int, source: int, size: int, threads: int) -> None: ...
def prefer_huge_pages(at: int, size: int) -> None: ...
