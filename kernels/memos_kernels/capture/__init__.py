"""capture: paged blocks → contiguous K/V rows of a token range, all layers."""

from memos_kernels.capture.reference import capture

__all__ = ["capture"]
