"""Types and defaults of options that occur in several places: on the command line, in recipes and in functions."""

from typing import Literal

Strategy = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]
"""How a run is divided among GPUs: not at all, or by DDP, FSDP2, DeepSpeed ZeRO-2 or ZeRO-3."""

DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
"""Type of weights; "auto" is bfloat16 if the device supports it, else float32."""

Quantization = Literal["nf4"]
"""How linear layers are quantized: 4-bit NF4 (QLoRA, arXiv 2305.14314)."""

Tuning = Literal["lora+", "lora", "full"]
"""What is trained: LoRA with embeddings and norms, LoRA alone, or all weights."""

LoraTargets = Literal["attention", "all-linear"]
"""Which linear layers LoRA adapts."""

Trainable = Literal["embed", "norm"]
"""Modules that LoRA+ trains fully."""

AttentionPattern = Literal["s2", "full"]
"""Attention during training: shifted sparse, or ordinary causal attention."""

DEFAULT_GROUP_RATIO = 0.25
"""Group size as a fraction of the context length (the paper, section 3.2)."""

DocumentKind = Literal["book", "paper"]
"""What kind of document a text is; it determines which questions are asked about it."""

DocumentKindOrAuto = Literal["auto", DocumentKind]
"""The same, or "auto", which detects papers."""

PdfEngine = Literal["pdfium", "docling", "auto"]
"""What reads PDFs; "auto" is docling if installed, else pdfium."""

References = Literal["keep", "drop"]
"""What to do with the references at the end of a paper."""

NearDuplicateRule = Literal["drop", "mark", "keep"]
"""What to do with near duplicates of an earlier text."""

Quotes = Literal["exact", "fuzzy", "off"]
"""How an answer's quotations must match the text."""

PerplexityProtocol = Literal["same-targets", "new", "all", "original"]
"""Which tokens are scored: the same at every length, each once, whole windows, or as the original does."""

PasskeyForm = Literal["measured", "original"]
"""Prompts of the passkey test: measured in the model's tokens, or those of the original's script."""

SuiteName = Literal["smoke", "quick", "full"]
"""How much a suite asks."""

ServerEngine = Literal["vllm", "transformers"]
"""What serves a model."""

EngineName = Literal["auto", ServerEngine]
"""The same, or "auto", which is vLLM if installed."""
