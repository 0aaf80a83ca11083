"""The commands under `longlora corpus`. Like all commands they import what they need inside their bodies."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longlora.cli import make_qa, options
from longlora.support.choices import NearDuplicateRule, PdfEngine, References

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from longlora.corpus.checking import CheckReport

corpus = typer.Typer(help="Make training data from documents and question sets, and check it.", no_args_is_help=True)
corpus.command("make-qa")(make_qa.make_qa)
corpus.command("qa-prompts")(make_qa.qa_prompts)

_ROOM_FOR_QUESTIONS = 1024  # tokens of a row beside its document


@corpus.command("from-pdf")
def from_pdf(
    files: options.Documents,
    out: Annotated[Path, typer.Option("--out", help="Folder for corpus.jsonl; the same command resumes.")],
    engine: Annotated[
        PdfEngine,
        typer.Option(help="PDF reader: pdfium, docling (if installed), or auto: docling if installed, else pdfium."),
    ] = "pdfium",
    references: Annotated[
        References, typer.Option(help="What to do with the references at the end of a paper.")
    ] = "drop",
    kind: options.DocumentKind = "auto",
    near_duplicates: Annotated[
        NearDuplicateRule, typer.Option(help="Near duplicates of an earlier text: drop, mark, or keep.")
    ] = "drop",
    processes: options.FilesInParallel = 1,
    texts: Annotated[bool, typer.Option("--texts", help="Also write each text to a .txt file.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Convert documents to one JSONL file for training; exits with 1 if none of them gave a text."""
    from longlora.corpus.extract import check_installed

    check_installed()
    from longlora.corpus.extract import ExtractSettings, find_files
    from longlora.corpus.shelf import RECORDS_FILE, read_shelf

    result = read_shelf(
        find_files(files),
        out,
        settings=ExtractSettings(engine=engine, references=references, kind=kind),
        near_duplicates=near_duplicates,
        processes=processes,
        write_texts=texts,
    )
    if as_json:
        written = {"written": result.num_written, "done_before": result.num_done_before, "words": result.num_words}
        typer.echo(json.dumps(written | {"skipped": result.skipped, "marked": result.marked}, indent=2))
    else:
        typer.echo(
            f"{result.num_written} texts written ({result.num_words:,} words; {result.kinds['book']} books, "
            f"{result.kinds['paper']} papers), {result.num_done_before} there before, "
            f"{len(result.skipped)} files skipped"
        )
        for name, reason in result.skipped.items():
            typer.echo(f"  skipped {name}: {reason}")
        for name, earlier in result.marked.items():
            typer.echo(f"  marked {name}: nearly the same text as {earlier}")
        typer.echo(f"next: set data.source to {out / RECORDS_FILE}")
    if not result.num_written + result.num_done_before:
        raise typer.Exit(1)


@corpus.command("mix")
def mix_rows(
    long: Annotated[str, typer.Argument(help="Conversations about long documents: a file, folder or data set.")],
    short: Annotated[str, typer.Argument(help="Short conversations.")],
    out: Annotated[Path, typer.Option("--out", help="File for the rows: .json, or .jsonl for one row per line.")],
    ratio: options.Ratio = "9:3",
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Mix as many long and short conversations as a ratio allows."""
    from dataclasses import asdict

    from longlora.corpus.mixing import mix, parse_ratio

    parts = mix(long, short, out, ratio=parse_ratio(ratio), seed=seed)
    if as_json:
        typer.echo(json.dumps({name: asdict(part) for name, part in parts.items()}, indent=2))
        return
    for name, part in parts.items():
        typer.echo(
            f"{name:5}  {part.num_used:,} of {part.num_rows:,} rows, {part.num_characters:,} characters  {part.source}"
        )
    typer.echo(f"{sum(part.num_used for part in parts.values()):,} rows written to {out}")


Tokenizer = Annotated[str, typer.Option(help="Tokenizer for counting: a model directory, a hub name, or `tiny`.")]


File = Annotated[str, typer.Argument(help="Conversations or texts: whatever training reads.")]


@corpus.command()
def stats(
    file: File,
    tokenizer: Tokenizer,
    figure: Annotated[Path | None, typer.Option(help="Write a histogram to this .png, .svg or .pdf.")] = None,
    text_column: options.TextColumn = "text",
    as_json: options.AsJson = False,
) -> None:
    """Show the lengths of a file's prompts and answers in tokens, and its kinds of rows."""
    from longlora.corpus.extract import check_installed

    check_installed()
    from longlora.corpus.check_page import draw_lengths
    from longlora.corpus.checking import check_file
    from longlora.support.figures import figure_format

    if figure is not None:
        figure_format(figure)  # before the file is read, for a wrong name ends here
    report = check_file(file, _tokenizer(tokenizer), text_column=text_column)
    if figure is not None:
        draw_lengths(report, figure)
    if as_json:
        values = report.to_dict()
        wanted = {name: values[name] for name in ("file", "num_rows", "tokens", "kinds", "unusable")}
        typer.echo(json.dumps(wanted, indent=2))
        return
    _print_lengths(report)
    if figure is not None:
        typer.echo(f"drawn into {figure}")


@corpus.command()
def check(
    file: File,
    tokenizer: Tokenizer,
    context: options.RowLength,
    against: Annotated[
        list[str] | None, typer.Option(help="File that must not share documents or questions; may be repeated.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Write an HTML page with the findings.")] = None,
    text_column: options.TextColumn = "text",
    as_json: options.AsJson = False,
) -> None:
    """Report what training would cut or leave out, duplicates, leaks and missing evidence; exits with 1 if any."""
    from longlora.corpus.extract import check_installed

    check_installed()
    from longlora.corpus.checking import check_file

    loaded = _tokenizer(tokenizer)
    report = check_file(file, loaded, context_length=context, against=against or [], text_column=text_column)
    if page is not None:
        from longlora.corpus.check_page import write_page

        write_page(report, page)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print_report(report, loaded)
        if page is not None:
            typer.echo(f"page written to {page}")
    if report.describe():
        raise typer.Exit(1)


def _print_report(report: "CheckReport", tokenizer: "PreTrainedTokenizerBase") -> None:
    from rich.console import Console

    from longlora.data.encode import show_example

    findings = report.describe()
    for words, finding in findings:
        typer.echo(f"{finding.count:>8,} rows {words}")
        for example in finding.examples:
            typer.echo(f"{'':>14}{example}")
    if report.example is not None:
        typer.echo(f"answers were found by {'a search' if report.num_searched else 'marks of the chat template'}")
        show_example(tokenizer, report.example.input_ids, report.example.labels, console=Console())
    for line in report.quality.describe():
        typer.echo(line)
    typer.echo(f"{report.num_rows:,} rows checked" + ("" if findings else ", nothing found"))


@corpus.command()
@options.unfolded
def build(
    files: options.Documents,
    out: Annotated[Path, typer.Option("--out", help="Folder for all files; the same command resumes.")],
    tokenizer: Tokenizer,
    context: options.RowLength,
    asking: make_qa.QAOptions,
    kind: options.DocumentKind = "auto",
    short: Annotated[str | None, typer.Option(help="Short conversations to mix in.")] = None,
    ratio: options.Ratio = "9:3",
    processes: options.FilesInParallel = 1,
) -> None:
    """Build a checked training file from documents, cut to fit its rows: from-pdf, make-qa, mix and check in turn."""
    from longlora.corpus.qa.answering_model import choose_model
    from longlora.corpus.shelf import RECORDS_FILE

    server = {name: getattr(asking, name) for name in ("model", "base_url", "local", "window")}
    if asking.model or not asking.local:  # a mistake is said before hours of reading
        choose_model(**server, tokenizer=None, is_asked=False)
    texts, asked, mixed = out / "texts", out / "qa.jsonl", out / "train.jsonl"
    typer.echo(f"reading into {texts}")
    from_pdf(files, texts, kind=kind, processes=processes)
    typer.echo(f"asking into {asked}")
    make_qa.make_qa(
        texts=[str(texts / RECORDS_FILE)],
        out=asked,
        tokenizer=None if asking.local else tokenizer,
        max_document_tokens=max(context // 2, context - _ROOM_FOR_QUESTIONS),
        **vars(asking),
    )
    if short is not None:
        typer.echo(f"mixing into {mixed}")
        mix_rows(str(asked), short, mixed, ratio=ratio)
    typer.echo("checking")
    check(str(mixed if short is not None else asked), tokenizer, context, page=out / "check.html")


def _tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer as training does: with the paper's prompt where it has no template."""
    from longlora.models.chat_template import ensure_chat_template
    from longlora.models.load import load_tokenizer, model_source

    loaded = load_tokenizer(model_source(name))
    ensure_chat_template(loaded)
    return loaded


def _print_lengths(report: "CheckReport") -> None:
    from rich.console import Console
    from rich.table import Table

    from longlora.corpus.checking import percentiles

    table = Table("tokens", "total", *percentiles([0]), title=f"{len(report.answers):,} rows of {report.file}")
    for name, values in report.lengths.items():
        table.add_row(name, f"{sum(values):,}", *(f"{value:,}" for value in percentiles(values).values()))
    console = Console()
    console.print(table)
    for kind, count in report.kinds.most_common():
        console.print(f"{count:>8,} {kind}", highlight=False)
    for reason, finding in report.unusable.items():
        console.print(f"{finding.count:>8,} left out: {reason}", highlight=False)
