"""The commands under `longlora corpus`. Like all commands they import what they need inside their bodies."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from longlora.cli_make_qa import add_commands

corpus = typer.Typer(help="Make training data out of documents and question sets, and check it.", no_args_is_help=True)
add_commands(corpus)

Engine = Literal["pdfium", "docling", "auto"]
References = Literal["keep", "drop"]
NearDuplicates = Literal["drop", "mark", "keep"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@corpus.command("from-pdf")
def from_pdf(
    files: Annotated[list[str], typer.Argument(help="PDF, EPUB, HTML, Markdown and text files, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for corpus.jsonl; the same again goes on.")],
    engine: Annotated[
        Engine, typer.Option(help="What reads PDFs: pdfium; docling, if installed; auto: docling if it is installed.")
    ] = "pdfium",
    references: Annotated[References, typer.Option(help="The list of references at a paper's end.")] = "drop",
    near_duplicates: Annotated[
        NearDuplicates, typer.Option(help="Texts that nearly repeat an earlier one: leave out, mark, or keep.")
    ] = "drop",
    processes: Annotated[int, typer.Option(min=1, help="Files read at the same time.")] = 1,
    texts: Annotated[bool, typer.Option("--texts", help="Write a .txt for each text as well, to read.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn documents into one JSONL to train on; status 1 if not one of them gave a text."""
    from longlora.corpus.extract import Settings, find_files
    from longlora.corpus.shelf import RECORDS_FILE, read_shelf

    result = read_shelf(
        find_files(files),
        out,
        settings=Settings(engine=engine, references=references),
        near_duplicates=near_duplicates,
        processes=processes,
        write_texts=texts,
    )
    if as_json:
        written = {"written": result.num_written, "done_before": result.num_done_before, "words": result.num_words}
        typer.echo(json.dumps(written | {"skipped": result.skipped, "marked": result.marked}, indent=2))
    else:
        typer.echo(
            f"{result.num_written} texts written ({result.num_words:,} words), {result.num_done_before} there before, "
            f"{len(result.skipped)} files skipped"
        )
        for name, reason in result.skipped.items():
            typer.echo(f"  skipped {name}: {reason}")
        for name, earlier in result.marked.items():
            typer.echo(f"  marked {name}: nearly the same text as {earlier}")
        typer.echo(f"next: set data.source to {out / RECORDS_FILE}")
    if not result.has_texts:
        raise typer.Exit(1)
