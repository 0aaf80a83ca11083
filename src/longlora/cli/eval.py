"""The commands under `longlora eval`. Like all commands they import what they need inside their bodies."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from longlora.cli.options import (
    AsJson,
    Chat,
    Columns,
    Data,
    Model,
    Seed,
    Weights,
    existing_texts,
    parse_numbers,
    unfolded,
)

if TYPE_CHECKING:
    from longlora.evaluation.results import Result
    from longlora.evaluation.subject import Loading
    from longlora.evaluation.texts import Texts
    from longlora.evaluation.trials import RetrievalTest


class _SuiteWhereAsked(TyperGroup):
    """Lets `longlora eval MODEL --suite quick` mean `longlora eval suite MODEL --suite quick`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Put the command's name in front of arguments that name a model and a suite."""
        asked = any(word.partition("=")[0] == "--suite" for word in args)
        return super().resolve_command(ctx, ["suite", *args] if asked and args[0] not in self.commands else args)


evaluate = typer.Typer(
    help="Measure a model, merged or not, or an adapter. `longlora eval MODEL --suite quick` measures everything.",
    no_args_is_help=True,
    cls=_SuiteWhereAsked,
)

Protocol = Literal["same-targets", "new", "all", "original"]
Form = Literal["measured", "original"]

AcrossDocuments = Annotated[bool, typer.Option("--across-documents", help="Join all documents into one stream first.")]
Depths = Annotated[str, typer.Option(help="Places of the fact, 0 (beginning) to 1 (end), with commas between.")]
Trials = Annotated[int, typer.Option(help="Questions at each length and depth.")]
Output = Annotated[Path, typer.Option(help="Folder for trials, result and picture; the same again resumes.")]
Beyond = Annotated[bool, typer.Option("--beyond", help="Read more tokens than the model has positions.")]
Haystack = Annotated[
    list[str] | None,
    typer.Option(help="Texts to hide facts in, as for --data; else made up.", callback=existing_texts),
]

DEPTHS = "0,0.25,0.5,0.75,1"


@dataclass(frozen=True)
class Sweep:
    """What is asked of a retrieval test."""

    lengths: Annotated[str, typer.Option(help="Lengths in tokens, prompt and answer, with commas between.")] = ""
    seed: Seed = 0
    bar: Annotated[float, typer.Option(help="Share of right answers that counts as reading.")] = 0.9
    beyond: Beyond = False


@evaluate.command()
@unfolded
def perplexity(
    model: Model,
    data: Data,
    columns: Columns,
    weights: Weights,
    lengths: Annotated[str, typer.Option(help="Context lengths in tokens, with commas between.")] = "",
    stride: Annotated[int | None, typer.Option(help="Tokens by which windows move; 256 if the lengths allow.")] = None,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="same-targets: the same tokens at every length. new: every token once. all: whole windows. "
            "original: whole windows and the averages of the original's eval.py."
        ),
    ] = "same-targets",
    across_documents: AcrossDocuments = False,
    max_targets: Annotated[int | None, typer.Option(help="Score at most this many tokens at each length.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for perplexity.json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Perplexity by context length, on the same target tokens at every length unless told otherwise."""
    from longlora.evaluation.measure import Scored, measure_perplexity

    scored = Scored(
        lengths=parse_numbers(lengths, "--lengths", int), stride=stride, protocol=protocol, max_targets=max_targets
    )
    texts = texts_of(data, columns, across_documents=across_documents)
    result = measure_perplexity(model, texts, scored, loading_of(weights))
    if out is not None:
        result.write(out)
    if as_json:
        by_length = {str(length): value.to_dict() for length, value in result.perplexity.items()}
        typer.echo(json.dumps({"model": model, "protocol": protocol, "perplexity": by_length}, indent=2))
        return
    for length, value in result.perplexity.items():
        typer.echo(f"{length:>9,} tokens   perplexity {value.perplexity:9.3f}   {value.num_tokens:,} tokens scored")


@evaluate.command()
@unfolded
def positions(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for result and picture.")],
    columns: Columns,
    weights: Weights,
    length: Annotated[int | None, typer.Option(help="Tokens of a window; the model's context if not given.")] = None,
    buckets: Annotated[int, typer.Option(help="Ranges of position to average in.")] = 32,
    max_windows: Annotated[int | None, typer.Option(help="Read at most this many windows.")] = None,
    across_documents: AcrossDocuments = False,
    beyond: Beyond = False,
    as_json: AsJson = False,
) -> None:
    """Loss by position in the window: the curve that shows up to where a model reads."""
    from longlora.evaluation.loss_by_position import positions_table, write_positions
    from longlora.evaluation.measure import measure_positions

    result = measure_positions(
        model,
        texts_of(data, columns, across_documents=across_documents),
        loading_of(weights),
        length=length,
        num_buckets=buckets,
        max_windows=max_windows,
        beyond=beyond,
    )
    write_positions(result, out)
    print_result(as_json, result, positions_table(result), result.verdict, out)


@evaluate.command()
@unfolded
def tokens(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="File to write, named .bin.")],
    columns: Columns,
) -> None:
    """Write texts as a .bin of token ids, as the original's evaluation reads them, with a model's tokenizer."""
    from longlora.evaluation.measure import write_tokens

    num_tokens = write_tokens(model, texts_of(data, columns), out)
    typer.echo(f"{num_tokens:,} tokens written to {out}")


@evaluate.command()
@unfolded
def passkey(
    model: Model,
    out: Output,
    sweep: Sweep,
    weights: Weights,
    depths: Depths = DEPTHS,
    trials: Trials = 10,
    form: Annotated[
        Form, typer.Option(help="measured: sized in the model's own tokens. original: the original script's prompts.")
    ] = "measured",
    chat: Chat = True,
    as_json: AsJson = False,
) -> None:
    """Find a number in a long text of nothing, in the words of the original LongLoRA's test."""
    from longlora.evaluation.passkey import passkey as make_test

    _retrieve(model, make_test(form=form, chat=chat), out, depths, trials, sweep, weights, as_json)


@evaluate.command()
@unfolded
def needle(
    model: Model,
    out: Output,
    sweep: Sweep,
    weights: Weights,
    columns: Columns,
    depths: Depths = DEPTHS,
    trials: Trials = 10,
    needles: Annotated[int, typer.Option(help="Facts to hide and to ask for.")] = 1,
    haystack: Haystack = None,
    chat: Chat = True,
    as_json: AsJson = False,
) -> None:
    """Find one or several facts in a text about other things; a heat map of length and depth."""
    from longlora.evaluation.measure import haystack_of
    from longlora.evaluation.needle import needle as make_test

    texts = haystack_of(texts_of(haystack, columns) if haystack else None)
    test = make_test(num_needles=needles, haystack=texts, chat=chat)
    _retrieve(model, test, out, depths, trials, sweep, weights, as_json)


@evaluate.command()
@unfolded
def topics(
    model: Model,
    out: Output,
    sweep: Sweep,
    weights: Weights,
    trials: Trials = 10,
    num_topics: Annotated[
        int | None, typer.Option("--topics", help="Topics of a conversation; one for each 650 tokens if not given.")
    ] = None,
    chat: Chat = True,
    as_json: AsJson = False,
) -> None:
    """Name the first topic of a long conversation, as in LongChat's LongEval."""
    from longlora.evaluation.topics import topics as make_test

    _retrieve(model, make_test(num_topics=num_topics, chat=chat), out, DEPTHS, trials, sweep, weights, as_json)


@evaluate.command()
@unfolded
def recall(
    model: Model,
    out: Output,
    sweep: Sweep,
    weights: Weights,
    columns: Columns,
    depths: Depths = "0",
    trials: Trials = 20,
    pairs: Annotated[int, typer.Option(help="Pairs in a prompt; chance is one in so many.")] = 8,
    haystack: Haystack = None,
    chat: Chat = True,
    as_json: AsJson = False,
) -> None:
    """Recall the value of a key from far back, by generation and by choice: a graded signal for small models too."""
    from longlora.evaluation.measure import haystack_of
    from longlora.evaluation.recall import recall as make_test

    texts = haystack_of(texts_of(haystack, columns) if haystack else None)
    test = make_test(num_pairs=pairs, haystack=texts, chat=chat)
    _retrieve(model, test, out, depths, trials, sweep, weights, as_json)


def _retrieve(
    model: str,
    test: "RetrievalTest",
    out: Path,
    depths: str,
    trials: int,
    sweep: Sweep,
    weights: Weights,
    as_json: bool,
) -> None:
    from longlora.evaluation.measure import measure_retrieval
    from longlora.evaluation.retrieval_report import result_table
    from longlora.evaluation.trials import Sweep as Asked

    asked = Asked(
        lengths=parse_numbers(sweep.lengths, "--lengths", int),
        depths=parse_numbers(depths, "--depths", float) or [],
        num_trials=trials,
        seed=sweep.seed,
        bar=sweep.bar,
        beyond=sweep.beyond,
    )
    result = measure_retrieval(model, test, asked, loading_of(weights), output=out)
    if result is not None:  # of several processes the first one speaks
        print_result(as_json, result, result_table(result), result.verdict, out)


def loading_of(weights: Weights) -> "Loading":
    """How the options say that a model is loaded."""
    from longlora.evaluation.subject import Loading

    return Loading(device_map=weights.device_map, dtype=weights.dtype)


def texts_of(data: list[str], columns: Columns, *, across_documents: bool = False) -> "Texts":
    """The texts that options name."""
    from longlora.evaluation.texts import Texts

    return Texts(
        data,
        text_column=columns.text_column,
        split=columns.split,
        max_documents=columns.max_documents,
        across_documents=across_documents,
    )


def print_result(as_json: bool, result: "Result", table: object, verdict: str, output: Path) -> None:
    """Print a result for a machine, or its table and its verdict for a reader."""
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
        return
    from rich.console import Console

    console = Console()
    console.print(table)
    console.print(verdict, highlight=False, soft_wrap=True)
    console.print(f"written to {output}", highlight=False, soft_wrap=True)
