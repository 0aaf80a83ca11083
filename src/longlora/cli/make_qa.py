"""The commands `longlora corpus make-qa` and `qa-prompts`. They import what they need inside their bodies."""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from longlora.cli.options import AsJson, CallSeed, DocumentKind, MaxDocuments, Split, TextColumn, unfolded
from longlora.errors import ConfigError
from longlora.support.choices import Quotes


@dataclass(frozen=True)
class QAOptions:
    """The options of `make-qa` and `build` about the model that asks, what it asks, and its cost."""

    model: Annotated[str, typer.Option(help="Name of the model on the server.")] = ""
    base_url: Annotated[
        str | None, typer.Option(help="Server URL, such as http://localhost:8000/v1; default: OpenAI's.")
    ] = None
    local: Annotated[str, typer.Option(help="Model directory or hub name to run locally instead of a server.")] = ""
    window: Annotated[int | None, typer.Option(help="Tokens the model reads and writes in one call.")] = None
    questions: Annotated[int, typer.Option(help="Questions of each kind per call.")] = 2
    quotes: Annotated[Quotes, typer.Option(help="How an answer's quotations must match the text.")] = "exact"
    judge: Annotated[bool, typer.Option("--judge", help="Let the model check each answer against the text.")] = False
    price_in: Annotated[float | None, typer.Option(help="Price per million input tokens.")] = None
    price_out: Annotated[float | None, typer.Option(help="Price per million output tokens.")] = None
    max_cost: Annotated[float | None, typer.Option(help="Maximum cost of all runs together.")] = None
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Send calls without asking for confirmation.")] = False


@unfolded
def make_qa(
    texts: Annotated[list[str], typer.Argument(help="Documents: files, folders, globs, tables or data sets.")],
    out: Annotated[Path, typer.Option(help="File for the records: .json, or .jsonl for one record per line.")],
    asking: QAOptions,
    kind: DocumentKind = "auto",
    prompts: Annotated[Path | None, typer.Option(help="Folder of your own prompts; see `corpus qa-prompts`.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer for counting tokens; default: estimate from characters.")
    ] = None,
    chars_per_token: Annotated[float, typer.Option(help="Characters per token, without --tokenizer.")] = 3.0,
    ask_sections: Annotated[int, typer.Option(help="Sections of a long document to ask about individually.")] = 8,
    reply_tokens: Annotated[int, typer.Option(help="Maximum tokens per reply.")] = 2048,
    notes_tokens: Annotated[int, typer.Option(help="Maximum tokens for the notes on a section.")] = 1024,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")] = 0.7,
    seed: CallSeed = 0,
    quote_similarity: Annotated[
        float, typer.Option(help="Share of a quotation's words that must match, for fuzzy.")
    ] = 0.85,
    max_document_tokens: Annotated[int | None, typer.Option(help="Cut documents to this length first.")] = None,
    text_column: TextColumn = "text",
    split: Split = "train",
    max_documents: MaxDocuments = None,
    concurrency: Annotated[int, typer.Option(help="Concurrent calls.")] = 8,
    requests_per_minute: Annotated[float | None, typer.Option(help="Maximum calls per minute.")] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(help="Maximum tokens per minute, read and written.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a reply.")] = 600.0,
    attempts: Annotated[int, typer.Option(help="Attempts per call if the server fails.")] = 6,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum tokens of all runs together.")] = None,
    from_journal: Annotated[
        bool, typer.Option("--from-journal", help="Write the records from the journal without new calls.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let a language model write questions and answers about whole documents; the same command resumes."""
    options = locals() | vars(asking)
    from longlora.corpus.qa.answering_model import choose_model
    from longlora.corpus.qa.chunks import shelf_texts
    from longlora.corpus.qa.make import make_questions
    from longlora.corpus.qa.prompt_files import load_prompts
    from longlora.corpus.qa.qa_settings import QASettings, Sending
    from longlora.data.sources import find_items

    sending = Sending(**_named(Sending.__dataclass_fields__, options))
    server = ("model", "base_url", "local", "window", "tokenizer", "chars_per_token", "attempts")
    chosen = choose_model(**_named(server, options), timeout_seconds=timeout, is_asked=not from_journal)
    measured = {"model": chosen.name, "window": chosen.window, "tokenizer": chosen.tokenizer}
    names = QASettings.__dataclass_fields__.keys() - {"tries", "duplicate_similarity"}  # these two have no option
    summary = make_questions(
        find_items(texts, shelf_texts(text_column), split, max_documents, identity=[text_column]),
        out,
        settings=QASettings(**_named(names, options) | measured),
        prompts=load_prompts(prompts),
        counter=chosen.counter,
        answerer=chosen.answerer,
        sending=sending,
        confirm=lambda estimate: _confirm(estimate.describe(sending), is_agreed=asking.yes),
    )
    typer.echo(json.dumps(summary.to_dict(), indent=2) if as_json else summary.describe(out))
    if not summary.is_complete or not summary.num_records:
        raise typer.Exit(1)


def qa_prompts(folder: Annotated[Path, typer.Argument(help="Folder to create.")]) -> None:
    """Write make-qa's prompts to a folder, for you to edit and pass to --prompts."""
    from longlora.corpus.qa.prompt_files import write_prompts

    write_prompts(folder)
    typer.echo(f"written to {folder}; use them with --prompts {folder}")


def _named(names: Iterable[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Select options by a dataclass's field names; a field without an option is a bug and raises KeyError."""
    return {name: options[name] for name in names}


def _confirm(estimate: str, *, is_agreed: bool) -> bool:
    typer.echo(estimate, err=True)
    if is_agreed:
        return True
    if not sys.stdin.isatty():
        raise ConfigError("cannot ask for confirmation without a terminal; run it in one, or confirm with --yes")
    return typer.confirm("Send them?", err=True)
