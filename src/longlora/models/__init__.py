"""Models: loading checkpoints, "s2" attention for transformers, LoRA+, positions, vocabulary, memory optimizations."""
