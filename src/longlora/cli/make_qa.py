"""The commands `longlora corpus make-qa` and `qa-prompts`. They import what they need inside their bodies."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from longlora.errors import ConfigError

Kind = Literal["auto", "book", "paper"]
Quotes = Literal["exact", "fuzzy", "off"]


Model = Annotated[str, typer.Option(help="Name of the answering model at the server.")]
BaseUrl = Annotated[str | None, typer.Option(help="Server, as in http://localhost:8000/v1; else OpenAI's.")]
Local = Annotated[str, typer.Option(help="Instead of a server: a model directory or hub name, run here.")]
Window = Annotated[int | None, typer.Option(help="Tokens the model reads and writes in one call.")]
Questions = Annotated[int, typer.Option(help="Questions of each kind in one call.")]
QuoteRule = Annotated[Quotes, typer.Option(help="How an answer's quotations must stand in the text.")]
Judge = Annotated[bool, typer.Option("--judge", help="Let the model check each answer against the text.")]
PriceIn = Annotated[float | None, typer.Option(help="Price of a million tokens read.")]
PriceOut = Annotated[float | None, typer.Option(help="Price of a million tokens written.")]
MaxCost = Annotated[float | None, typer.Option(help="Most that all runs together may cost.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before calls are sent.")]


def make_qa(
    texts: Annotated[list[str], typer.Argument(help="Documents: files, folders, globs, tables or data sets.")],
    out: Annotated[Path, typer.Option(help="File for the records: .json, or .jsonl for one in a line.")],
    model: Model = "",
    base_url: BaseUrl = None,
    local: Local = "",
    window: Window = None,
    kind: Annotated[Kind, typer.Option(help="What the documents are.")] = "auto",
    prompts: Annotated[Path | None, typer.Option(help="Folder of your own prompts; see `corpus qa-prompts`.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer that measures; else characters do.")] = None,
    chars_per_token: Annotated[float, typer.Option(help="Characters for a token, without --tokenizer.")] = 3.0,
    questions: Questions = 2,
    ask_sections: Annotated[int, typer.Option(help="Sections of a long document asked about by themselves.")] = 8,
    reply_tokens: Annotated[int, typer.Option(help="Most tokens of a reply.")] = 2048,
    notes_tokens: Annotated[int, typer.Option(help="Most tokens of the notes on a section.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    seed: Annotated[int, typer.Option(help="Sent with every call.")] = 0,
    quotes: QuoteRule = "exact",
    quote_similarity: Annotated[float, typer.Option(help="Share of a quotation's words, for fuzzy.")] = 0.85,
    judge: Judge = False,
    max_document_tokens: Annotated[int | None, typer.Option(help="Cut documents to this length first.")] = None,
    text_column: Annotated[str, typer.Option(help="Column with the text, for tabular data.")] = "text",
    split: Annotated[str, typer.Option(help="Split, for data that has splits.")] = "train",
    max_documents: Annotated[int | None, typer.Option(min=1, help="Read at most this many documents.")] = None,
    concurrency: Annotated[int, typer.Option(help="Calls under way at once.")] = 8,
    requests_per_minute: Annotated[float | None, typer.Option(help="Most calls sent in a minute.")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="Most tokens, read and written, in a minute.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a reply.")] = 600.0,
    attempts: Annotated[int, typer.Option(help="Of a call, while the server has faults.")] = 6,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    max_cost: MaxCost = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of all runs together.")] = None,
    yes: Yes = False,
    from_journal: Annotated[bool, typer.Option("--from-journal", help="Write the records; ask nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Let a language model write questions and answers about whole documents; the same command again resumes."""
    options = locals()
    from longlora.corpus.qa import Sending, Settings, choose_model, load_prompts, make_questions
    from longlora.corpus.qa.chunks import shelf_texts
    from longlora.data.sources import find_items

    sending = Sending(**_named(Sending.__dataclass_fields__, options))
    chosen = choose_model(
        model=model,
        base_url=base_url,
        local=local,
        window=window,
        tokenizer=tokenizer,
        chars_per_token=chars_per_token,
        timeout_seconds=timeout,
        attempts=attempts,
        is_asked=not from_journal,
    )
    measured = {"model": chosen.name, "window": chosen.window, "tokenizer": chosen.tokenizer}
    names = Settings.__dataclass_fields__.keys() - {"tries", "duplicate_similarity"}  # which nobody needs to choose
    summary = make_questions(
        find_items(texts, shelf_texts(text_column), split, max_documents, identity=[text_column]),
        out,
        settings=Settings(**_named(names, options) | measured),
        prompts=load_prompts(prompts),
        counter=chosen.counter,
        answerer=chosen.answerer,
        sending=sending,
        confirm=lambda estimate: _confirm(estimate.describe(sending), is_agreed=yes),
    )
    typer.echo(json.dumps(summary.to_dict(), indent=2) if as_json else summary.describe(out))
    if not summary.is_complete or not summary.num_records:
        raise typer.Exit(1)


def qa_prompts(folder: Annotated[Path, typer.Argument(help="Folder to make.")]) -> None:
    """Write the prompts of make-qa into a folder, to be changed there and given to --prompts."""
    from longlora.corpus.qa.prompt_files import write_prompts

    write_prompts(folder)
    typer.echo(f"written to {folder}; use them with --prompts {folder}")


def _named(names: Iterable[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Take options by the names of a dataclass' fields; a field without an option is our mistake, and a KeyError."""
    return {name: options[name] for name in names}


def _confirm(estimate: str, *, is_agreed: bool) -> bool:
    typer.echo(estimate, err=True)
    if is_agreed:
        return True
    if not sys.stdin.isatty():
        raise ConfigError("nobody is there to agree to that; run it in a terminal, or agree beforehand with --yes")
    return typer.confirm("Send them?", err=True)
