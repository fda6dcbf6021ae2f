"""Parameter memory: LoRA adapters as cubes."""
