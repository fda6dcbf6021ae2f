"""The part of memos-vllm that lives inside vLLM's engine processes; with `server`, the only one that imports vllm."""
