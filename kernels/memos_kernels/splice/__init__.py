"""splice: contiguous K/V rows → paged blocks at any position, keys rotated by the position delta."""

from memos_kernels.splice.reference import rotate, splice

__all__ = ["rotate", "splice"]
