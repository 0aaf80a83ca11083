"""The commands under `longlora eval`. They import what they need inside their bodies."""

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
    from longlora.evaluation.questions import RetrievalTest
    from longlora.evaluation.results import Result
    from longlora.evaluation.subject import Loading
    from longlora.evaluation.texts import Material, Texts


class _SuiteWhereAsked(TyperGroup):
    """Lets `longlora eval MODEL --suite quick` mean `longlora eval suite MODEL --suite quick`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Insert the command's name before arguments that contain `--suite`."""
        asked = any(word.partition("=")[0] == "--suite" for word in args)
        return super().resolve_command(ctx, ["suite", *args] if asked and args[0] not in self.commands else args)


evaluate = typer.Typer(
    help="Measure a model, merged or not, or an adapter. `longlora eval MODEL --suite quick` measures everything.",
    no_args_is_help=True,
    cls=_SuiteWhereAsked,
)

AcrossDocuments = Annotated[bool, typer.Option("--across-documents", help="Join all documents into one stream first.")]
Depths = Annotated[str, typer.Option(help="Comma-separated positions of the fact, from 0 (start) to 1 (end).")]
Trials = Annotated[int, typer.Option(help="Questions at each length and depth.")]
Beyond = Annotated[bool, typer.Option("--beyond", help="Allow lengths beyond the model's context.")]
Haystack = Annotated[
    list[str] | None,
    typer.Option(help="Texts to hide facts in, as for --data; default: generated text.", callback=existing_texts),
]

DEPTHS = "0,0.25,0.5,0.75,1"


@dataclass(frozen=True)
class Asked:
    """The options common to all retrieval tests."""

    out: Annotated[Path, typer.Option(help="Folder for trials, result and figure; the same command resumes.")]
    lengths: Annotated[str, typer.Option(help="Comma-separated lengths in tokens, prompt and answer together.")] = ""
    seed: Seed = 0
    bar: Annotated[
        float, typer.Option(help="A length counts as read if the lower end of the share's 95 % interval reaches this.")
    ] = 0.8
    beyond: Beyond = False
    chat: Chat = True
    as_json: AsJson = False


@evaluate.command()
@unfolded
def perplexity(
    model: Model,
    data: Data,
    columns: Columns,
    weights: Weights,
    lengths: Annotated[str, typer.Option(help="Comma-separated context lengths in tokens.")] = "",
    stride: Annotated[
        int | None, typer.Option(help="Tokens between the starts of windows; default: 256 if the lengths allow.")
    ] = None,
    protocol: Annotated[
        Literal["same-targets", "new", "all", "original"],
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
    """Measure perplexity by context length, by default on the same target tokens at every length."""
    from longlora.evaluation.perplexity import measure_perplexity

    result = measure_perplexity(
        _read(model, weights, texts_of(data, columns, across_documents=across_documents)),
        lengths=parse_numbers(lengths, "--lengths", int),
        stride=stride,
        protocol=protocol,
        max_targets=max_targets,
    )
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
    out: Annotated[Path, typer.Option(help="Folder for the result and the figure.")],
    columns: Columns,
    weights: Weights,
    length: Annotated[int | None, typer.Option(help="Window length in tokens; default: the model's context.")] = None,
    buckets: Annotated[int, typer.Option(help="Number of position ranges to average over.")] = 32,
    max_windows: Annotated[int | None, typer.Option(help="Read at most this many windows.")] = None,
    across_documents: AcrossDocuments = False,
    beyond: Beyond = False,
    as_json: AsJson = False,
) -> None:
    """Measure loss by position in the window: the curve shows how far a model reads."""
    from longlora.evaluation.drawing import result_table, write_result
    from longlora.evaluation.perplexity import measure_positions

    result = measure_positions(
        _read(model, weights, texts_of(data, columns, across_documents=across_documents)),
        length=length,
        num_buckets=buckets,
        max_windows=max_windows,
        beyond=beyond,
        settings={},
    )
    write_result(result, out)
    show(result, as_json, out, result_table(result), result.verdict)


@evaluate.command()
@unfolded
def longppl(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the chosen tokens and the result.")],
    columns: Columns,
    weights: Weights,
    evaluator: Annotated[
        str | None,
        typer.Option(help="Model that chooses the tokens within its own context; default: an adapter's base."),
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens that MODEL reads; default: its context.")] = None,
    short: Annotated[
        int | None,
        typer.Option(
            help="Distance in tokens from which evidence is distant; default: an eighth of the evaluator's context."
        ),
    ] = None,
    max_targets: Annotated[int, typer.Option(help="Choose among this many tokens.")] = 16384,
    across_documents: AcrossDocuments = False,
    as_json: AsJson = False,
) -> None:
    """Measure LongPPL: perplexity on tokens that need distant context, as chosen by an evaluator, and by distance."""
    from longlora.evaluation.key_tokens import measure_long_perplexity

    result = measure_long_perplexity(
        model,
        texts_of(data, columns, across_documents=across_documents),
        loading_of(weights),
        output=out,
        evaluator=evaluator,
        length=length,
        short=short,
        max_targets=max_targets,
    )
    result.write(out)
    lines = [
        f"evidence {part.start:>7,} to {part.end:>7,} tokens back   loss {part.loss:7.3f}   {part.num_tokens:,} tokens"
        for part in result.by_distance
    ]
    show(result, as_json, out, *lines, result.verdict)


@evaluate.command()
@unfolded
def tokens(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="File to write; must end in .bin.")],
    columns: Columns,
) -> None:
    """Tokenize texts into a .bin of token ids, the format of the original's evaluation."""
    from longlora.evaluation.texts import write_tokens

    num_tokens = write_tokens(model, texts_of(data, columns), out)
    typer.echo(f"{num_tokens:,} tokens written to {out}")


@evaluate.command()
@unfolded
def passkey(
    model: Model,
    asked: Asked,
    weights: Weights,
    depths: Depths = DEPTHS,
    trials: Trials = 10,
    form: Annotated[
        Literal["measured", "original"],
        typer.Option(
            help="measured: prompt lengths counted in the model's tokens. original: the original script's prompts."
        ),
    ] = "measured",
) -> None:
    """Find a number in long filler text, with the wording of the original LongLoRA's test."""
    from longlora.evaluation.retrieval_tests import passkey as make_test

    _retrieve(model, make_test(form=form, chat=asked.chat), asked, weights, depths, trials)


@evaluate.command()
@unfolded
def needle(
    model: Model,
    asked: Asked,
    weights: Weights,
    columns: Columns,
    depths: Depths = DEPTHS,
    trials: Trials = 10,
    needles: Annotated[int, typer.Option(help="Number of facts to hide and ask for.")] = 1,
    haystack: Haystack = None,
) -> None:
    """Find one or several facts in unrelated text, and draw a heat map of length and depth."""
    from longlora.evaluation.retrieval_tests import needle as make_test

    test = make_test(num_needles=needles, haystack=_haystack(haystack, columns), chat=asked.chat)
    _retrieve(model, test, asked, weights, depths, trials)


@evaluate.command()
@unfolded
def topics(
    model: Model,
    asked: Asked,
    weights: Weights,
    trials: Trials = 50,
    num_topics: Annotated[
        int | None, typer.Option("--topics", help="Topics per conversation; default: one per 650 tokens.")
    ] = None,
) -> None:
    """Name the first topic of a long conversation, as in LongChat's LongEval."""
    from longlora.evaluation.retrieval_tests import topics as make_test

    _retrieve(model, make_test(num_topics=num_topics, chat=asked.chat), asked, weights, DEPTHS, trials)


@evaluate.command()
@unfolded
def recall(
    model: Model,
    asked: Asked,
    weights: Weights,
    columns: Columns,
    depths: Depths = "0",
    trials: Trials = 50,
    pairs: Annotated[int, typer.Option(help="Pairs per prompt; chance is one in this many.")] = 8,
    haystack: Haystack = None,
) -> None:
    """Recall the value of a key from far back, by generation and by choice; a graded signal even for small models."""
    from longlora.evaluation.retrieval_tests import recall as make_test

    test = make_test(num_pairs=pairs, haystack=_haystack(haystack, columns), chat=asked.chat)
    _retrieve(model, test, asked, weights, depths, trials)


@evaluate.command()
@unfolded
def association(
    model: Model,
    asked: Asked,
    weights: Weights,
    columns: Columns,
    depths: Depths = DEPTHS,
    trials: Trials = 10,
    people: Annotated[int, typer.Option(help="People per text; chance is one in this many.")] = 6,
    haystack: Haystack = None,
) -> None:
    """Name the person in question when question and fact share no words, as in NoLiMa."""
    from longlora.evaluation.retrieval_tests import association as make_test

    test = make_test(num_people=people, haystack=_haystack(haystack, columns), chat=asked.chat)
    _retrieve(model, test, asked, weights, depths, trials)


@evaluate.command()
@unfolded
def tracking(
    model: Model,
    asked: Asked,
    weights: Weights,
    columns: Columns,
    depths: Depths = "0",
    trials: Trials = 50,
    hops: Annotated[int, typer.Option(help="Assignments from one variable to the next.")] = 2,
    chains: Annotated[int, typer.Option(help="Chains of variables; chance is one in this many.")] = 4,
    haystack: Haystack = None,
) -> None:
    """Follow a variable through assignments spread over the text, as in RULER."""
    from longlora.evaluation.retrieval_tests import tracking as make_test

    test = make_test(num_hops=hops, num_chains=chains, haystack=_haystack(haystack, columns), chat=asked.chat)
    _retrieve(model, test, asked, weights, depths, trials)


@evaluate.command()
@unfolded
def counting(
    model: Model,
    asked: Asked,
    weights: Weights,
    columns: Columns,
    trials: Trials = 50,
    haystack: Haystack = None,
) -> None:
    """Name what the whole text reports most often; the end of the text alone suggests another answer."""
    from longlora.evaluation.retrieval_tests import counting as make_test

    test = make_test(haystack=_haystack(haystack, columns), chat=asked.chat)
    _retrieve(model, test, asked, weights, DEPTHS, trials)


def _haystack(texts: list[str] | None, columns: Columns) -> Any:
    from longlora.evaluation.haystack import read_haystack

    return read_haystack(text for _, text in texts_of(texts, columns).read()) if texts else None


def _retrieve(model: str, test: "RetrievalTest", asked: Asked, weights: Weights, depths: str, trials: int) -> None:
    from longlora.evaluation.drawing import result_table
    from longlora.evaluation.retrieval import Sweep, measure_retrieval

    sweep = Sweep(
        lengths=parse_numbers(asked.lengths, "--lengths", int),
        depths=parse_numbers(depths, "--depths", float) or [],
        num_trials=trials,
        seed=asked.seed,
        bar=asked.bar,
        beyond=asked.beyond,
    )
    result = measure_retrieval(model, test, sweep, loading_of(weights), output=asked.out)
    if result is not None:  # with several processes, only the first prints
        show(result, asked.as_json, asked.out, result_table(result), result.verdict)


def _read(model: str, weights: Weights, texts: "Texts") -> "Material":
    from longlora.evaluation.subject import load_subject

    return texts.read_by(load_subject(model, loading_of(weights)))


def loading_of(weights: Weights) -> "Loading":
    """Return how to load a model, from the options."""
    from longlora.evaluation.subject import Loading

    return Loading(**vars(weights))


def texts_of(data: list[str], columns: Columns, *, across_documents: bool = False) -> "Texts":
    """Return the texts given by the options."""
    from longlora.evaluation.texts import Texts

    return Texts(data, across_documents=across_documents, **vars(columns))


def show(result: "Result", as_json: bool, output: Path, *parts: object) -> None:
    """Print a result as JSON, or as lines and tables."""
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for part in (*parts, f"written to {output}"):
        console.print(part, soft_wrap=isinstance(part, str))
