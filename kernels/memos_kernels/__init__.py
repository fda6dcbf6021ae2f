"""Kernels that move K/V between vLLM's paged blocks and contiguous KV cubes."""
