"""Measure a model by name on texts by name: what `longlora eval` does."""

from collections.abc import Sequence

from longlora.data import read_documents, tokenize_documents
from longlora.evaluation.perplexity import Perplexity, perplexity_by_length
from longlora.model import load_for_inference
from longlora.positions import readable_context


def measure_perplexity(
    model_name: str,
    sources: Sequence[str],
    *,
    lengths: Sequence[int] | None = None,
    stride: int | None = None,
    max_targets: int | None = None,
    text_column: str = "text",
    split: str = "validation",
    max_documents: int | None = None,
) -> dict[int, Perplexity]:
    """Load a model, read and tokenise texts, and measure perplexity at each length on the same targets.

    Without `lengths`: an eighth, a quarter, a half and the whole of the model's context. Without `stride`: 256 tokens
    as in the paper, or half of the shortest length where that is less.

    Raises:
        CheckpointError: the model cannot be loaded.
        DataError: the texts cannot be read, or none is as long as the longest length.
        ConfigError: lengths and stride do not go together.
    """
    model, tokenizer = load_for_inference(model_name)
    if not lengths:
        context = readable_context(model.config)
        lengths = [context // 8, context // 4, context // 2, context]
    source = read_documents(sources, text_column=text_column, split=split, max_documents=max_documents)
    documents = tokenize_documents(source, tokenizer)
    return perplexity_by_length(
        model,
        documents["input_ids"],
        lengths=lengths,
        stride=stride or max(1, min(256, min(lengths) // 2)),
        max_targets=max_targets,
        description=model_name,
    )
