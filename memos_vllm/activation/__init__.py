"""Activation memory: KV cubes, their identity, files and RAM pool, and the plans that splice them into prompts."""
