"""HTTP: memory routes, identity of callers, and memory in the prompts of vLLM's chat routes."""
