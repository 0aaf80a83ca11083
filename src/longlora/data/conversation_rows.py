"""Turn conversations into rows: token ids, labels on the answers, and the length of each conversation."""

import logging
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerBase

from longlora.data.answers import check_tokenizer
from longlora.data.encode import IGNORED, UnusableConversationError, encode_conversation
from longlora.data.sources import ConversationSource
from longlora.data.table_cache import Summary, cached_dataset, rows_beside, tokenizer_identity
from longlora.errors import DataError
from longlora.support.progress import progress_bar

logger = logging.getLogger("longlora")

# Increment when the same source, tokenizer and context produce different rows.
FORMAT_VERSION = 2

_TOKENS = {"input_ids": List(Value("int32")), "labels": List(Value("int32"))}
_CONVERSATION_FEATURES = Features({"name": Value("string"), **_TOKENS})
_ROW_FEATURES = Features({**_TOKENS, "seq_lengths": List(Value("int32"))})
_COUNTS = (
    *("num_rows", "num_tokens", "num_learned", "num_shortened", "num_cut"),
    *("num_searched", "num_without_end", "num_thoughts_dropped"),
)
_WARNINGS = {
    "num_thoughts_dropped": "%(num_thoughts_dropped)d thoughts of earlier answers are not learned: the chat template "
    "omits them, as it does in use",
    "num_without_end": "the end of a turn is not learned in %(num_without_end)d conversations: the chat template "
    "writes no token that ends an answer, so the model will not learn to stop; use a template that "
    "does",
    "num_shortened": "%(num_shortened)d conversations exceed context_length=%(context_length)d: %(num_cut)d tokens "
    "were cut out of the middle of their documents",
}


def tokenize_conversations(
    source: ConversationSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_length: int,
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
) -> Dataset:
    """Encode every conversation with the tokenizer's chat template (`encode_conversation`).

    What was cut, and what could not be used and why, is counted and logged, even if the result comes from `cache_dir`
    (default: `longlora` in the user's cache folder), which grows by eight bytes per token.

    Returns:
        Columns `name` (string), `input_ids` and `labels` (lists of int32), one row per conversation.

    Raises:
        DataError: the source cannot be read, none of it can be used, or the cache cannot be written.
        ConfigError: the tokenizer cannot be used for this.
    """
    check_tokenizer(tokenizer)
    identity = ["sft", FORMAT_VERSION, source.identity, context_length]
    rows, summary = cached_dataset(
        [*identity, tokenizer.chat_template, tokenizer_identity(tokenizer)],
        lambda writer: _write_conversations(writer, source, tokenizer, context_length, show_progress),
        features=_CONVERSATION_FEATURES,
        cache_dir=cache_dir,
    )
    _tell(summary, context_length)
    if not len(rows):
        raise DataError(f"no conversation can be trained on: {_reasons(summary)}; raise context_length or fix the data")
    return rows


def pack_conversations(conversations: Dataset, *, context_length: int, packing: bool = True) -> Dataset:
    """Pack whole conversations into rows of up to `context_length` tokens, longest first (best fit).

    Without `packing`, each conversation is a row, as in the original implementation. The rows are cached beside the
    conversations' own file.

    Returns:
        Columns `input_ids`, `labels` and `seq_lengths`, the lengths of the conversations in the row, which TRL's
        collator turns into positions and cut points.

    Raises:
        DataError: the rows cannot be written.
    """
    from trl import pack_dataset  # slow: it also imports trainers, which only training needs

    columns = conversations.select_columns(["input_ids", "labels"])

    def pack(**map_arguments: Any) -> Dataset:
        if packing:
            arguments = {"desc": "Packing", **map_arguments}
            return pack_dataset(columns, context_length, strategy="bfd", map_kwargs=arguments)
        return columns.map(
            lambda row: {"seq_lengths": [len(row["input_ids"])]},
            features=_ROW_FEATURES,
            desc="Measuring",
            **map_arguments,
        )

    return rows_beside(conversations, ["sft", FORMAT_VERSION, context_length, packing, version("trl")], pack)


def _write_conversations(
    writer: ArrowWriter,
    source: ConversationSource,
    tokenizer: PreTrainedTokenizerBase,
    context_length: int,
    show_progress: bool,
) -> Summary:
    summary = Counter(dict.fromkeys(_COUNTS, 0))
    unusable: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    with progress_bar("Tokenizing conversations", total=source.num_documents, show_progress=show_progress) as advance:
        for name, conversation in source:
            advance(1, f"{summary['num_tokens']:,} tokens")
            try:
                encoded = encode_conversation(
                    tokenizer, conversation.messages, context_length=context_length, tools=conversation.tools
                )
            except UnusableConversationError as error:
                unusable[str(error)] += 1
                continue
            writer.write({"name": name, "input_ids": encoded.input_ids, "labels": encoded.labels})
            summary.update(
                num_rows=1,
                num_tokens=len(encoded.input_ids),
                num_learned=sum(label != IGNORED for label in encoded.labels),
                num_shortened=encoded.num_cut > 0,
                num_cut=encoded.num_cut,
                num_searched=encoded.method == "search",
                num_without_end=not encoded.are_ended,
                num_thoughts_dropped=encoded.num_thoughts_dropped,
            )
            unread.update(f"column {column!r}" for column in conversation.unread)
            unread.update(f"message field {field!r}" for field in encoded.unread)
    return {**summary, "unusable": dict(unusable), "unread": dict(unread)}


def _tell(summary: Summary, context_length: int) -> None:
    counts = {**summary, "context_length": context_length}
    sizes = (f"{counts[name]:,}" for name in ("num_rows", "num_tokens", "num_learned"))
    logger.info("%s conversations with %s tokens, %s of them in answers", *sizes)
    if not summary["num_searched"]:
        found = "answers were found by marks, in the chat template or in TRL's version of it"
    elif summary["num_searched"] < summary["num_rows"]:
        found = (
            "answers were found by TRL's marks for the chat template, in %(num_searched)d of %(num_rows)d "
            "conversations by a search: TRL's training template writes those differently from the model's own"
        )
    else:
        found = "answers were found by a search: neither the chat template nor TRL marks them"
    logger.info(found, counts)
    if summary["unread"]:
        logger.info("not read: %s", ", ".join(f"{what} ({count} rows)" for what, count in summary["unread"].items()))
    for what, warning in _WARNINGS.items():
        if summary[what]:
            logger.warning(warning, counts)
    if summary["unusable"]:
        logger.warning("left out %s", _reasons(summary))


def _reasons(summary: Summary) -> str:
    return "; ".join(f"{count} conversations {reason}" for reason, count in summary["unusable"].items())
