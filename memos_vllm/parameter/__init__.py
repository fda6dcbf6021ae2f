"""Parameter memory: LoRA adapters as cubes; trained from memories, merged, read back as text."""
