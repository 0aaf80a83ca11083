"""From checkpoints to models and back: loading, "s2" for transformers, LoRA+, positions, vocabulary, memory."""
