"""The commands under `longlora eval`. They import what they need inside their bodies."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from longlora.cli import options
from longlora.errors import ConfigError
from longlora.support.choices import PasskeyForm, PerplexityProtocol

if TYPE_CHECKING:
    from longlora.evaluation.haystack import Haystack
    from longlora.evaluation.questions import RetrievalTest
    from longlora.evaluation.results import Result
    from longlora.evaluation.subject import Loading
    from longlora.evaluation.texts import ModelAndTexts, Texts


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

Depths = Annotated[str, typer.Option(help="Comma-separated positions of the fact, from 0 (start) to 1 (end).")]
Trials = Annotated[int, typer.Option(help="Questions at each length and depth.")]
Beyond = Annotated[bool, typer.Option("--beyond", help="Allow lengths beyond the model's context.")]

DEPTHS = "0,0.25,0.5,0.75,1"


@dataclass(frozen=True)
class TextOptions:
    """A model, and the texts that it reads."""

    model: options.Model
    data: options.Data
    columns: options.Columns
    weights: options.Weights
    across_documents: Annotated[
        bool, typer.Option("--across-documents", help="Join all documents into one stream first.")
    ] = False

    def texts(self) -> "Texts":
        """Return the texts."""
        return texts_of(self.data, self.columns, across_documents=self.across_documents)

    def material(self) -> "ModelAndTexts":
        """Load the model, and read the texts."""
        from longlora.evaluation.subject import load_subject

        return self.texts().read_by(load_subject(self.model, loading_of(self.weights)))


@dataclass(frozen=True)
class RetrievalOptions:
    """A model, and the options common to all retrieval tests."""

    model: options.Model
    out: Annotated[Path, typer.Option(help="Folder for trials, result and figure; the same command resumes.")]
    weights: options.Weights
    lengths: options.PromptLengths = ""
    seed: options.Seed = 0
    bar: Annotated[
        float, typer.Option(help="A length counts as read if the lower end of the share's 95 % interval reaches this.")
    ] = 0.8
    beyond: Beyond = False
    chat: options.Chat = True
    as_json: options.AsJson = False


@dataclass(frozen=True)
class Hiding:
    """The texts that facts are hidden in."""

    columns: options.Columns
    haystack: Annotated[
        list[str] | None,
        typer.Option(
            help="Texts to hide facts in, as for --data; default: generated text.", callback=options.existing_texts
        ),
    ] = None

    def read(self) -> "Haystack | None":
        """Read the texts; None if there are none."""
        from longlora.evaluation.haystack import read_haystack

        return (
            read_haystack(text for _, text in texts_of(self.haystack, self.columns).read()) if self.haystack else None
        )


@evaluate.command()
@options.unfolded
def perplexity(
    reading: TextOptions,
    lengths: options.Lengths = "",
    stride: Annotated[
        int | None, typer.Option(help="Tokens between the starts of windows; default: 256 if the lengths allow.")
    ] = None,
    protocol: Annotated[
        PerplexityProtocol,
        typer.Option(
            help="same-targets: the same tokens at every length. new: every token once. all: whole windows. "
            "original: whole windows and the averages of the original's eval.py."
        ),
    ] = "same-targets",
    max_targets: Annotated[int | None, typer.Option(help="Score at most this many tokens at each length.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for perplexity.json.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure perplexity by context length, by default on the same target tokens at every length."""
    if protocol == "original" and max_targets is not None:
        raise ConfigError("the original's protocol scores all the text: leave out --max-targets, or give less text")
    chosen = options.parse_numbers(lengths, "--lengths", int)
    from longlora.evaluation.perplexity import measure_perplexity

    result = measure_perplexity(
        reading.material(), lengths=chosen, stride=stride, protocol=protocol, max_targets=max_targets
    )
    if out is not None:
        result.write(out)
    if as_json:
        by_length = {str(length): value.to_dict() for length, value in result.perplexity.items()}
        typer.echo(json.dumps({"model": reading.model, "protocol": protocol, "perplexity": by_length}, indent=2))
        return
    for length, value in result.perplexity.items():
        typer.echo(f"{length:>9,} tokens   perplexity {value.perplexity:9.3f}   {value.num_tokens:,} tokens scored")


@evaluate.command()
@options.unfolded
def positions(
    reading: TextOptions,
    out: Annotated[Path, typer.Option(help="Folder for the result and the figure.")],
    length: Annotated[int | None, typer.Option(help="Window length in tokens; default: the model's context.")] = None,
    buckets: Annotated[int, typer.Option(help="Number of position ranges to average over.")] = 32,
    max_windows: Annotated[int | None, typer.Option(help="Read at most this many windows.")] = None,
    beyond: Beyond = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure loss by position in the window: the curve shows how far a model reads."""
    from longlora.evaluation.drawing import result_table, write_result
    from longlora.evaluation.perplexity import measure_positions

    result = measure_positions(
        reading.material(), length=length, num_buckets=buckets, max_windows=max_windows, beyond=beyond, settings={}
    )
    write_result(result, out)
    show(result, as_json, out, result_table(result), result.verdict)


@evaluate.command()
@options.unfolded
def longppl(
    reading: TextOptions,
    out: Annotated[Path, typer.Option(help="Folder for the chosen tokens and the result.")],
    evaluator: options.Evaluator = None,
    length: Annotated[int | None, typer.Option(help="Tokens that MODEL reads; default: its context.")] = None,
    short: Annotated[
        int | None,
        typer.Option(
            help="Distance in tokens from which evidence is distant; default: an eighth of the evaluator's context."
        ),
    ] = None,
    max_targets: Annotated[int, typer.Option(help="Choose among this many tokens.")] = 16384,
    as_json: options.AsJson = False,
) -> None:
    """Measure LongPPL: perplexity on tokens that need distant context, as chosen by an evaluator, and by distance."""
    from longlora.evaluation.key_tokens import measure_long_perplexity

    result = measure_long_perplexity(
        reading.model,
        reading.texts(),
        loading_of(reading.weights),
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
@options.unfolded
def tokens(
    model: options.Model,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="File to write; must end in .bin.")],
    columns: options.Columns,
) -> None:
    """Tokenize texts into a .bin of token ids, the format of the original's evaluation."""
    from longlora.evaluation.texts import write_tokens

    num_tokens = write_tokens(model, texts_of(data, columns), out)
    typer.echo(f"{num_tokens:,} tokens written to {out}")


@evaluate.command()
@options.unfolded
def passkey(
    asking: RetrievalOptions,
    depths: Depths = DEPTHS,
    trials: Trials = 10,
    form: Annotated[
        PasskeyForm,
        typer.Option(
            help="measured: prompt lengths counted in the model's tokens. original: the original script's prompts."
        ),
    ] = "measured",
) -> None:
    """Find a number in long filler text, with the wording of the original LongLoRA's test."""
    from longlora.evaluation import retrieval_tests as tests

    _retrieve(asking, tests.passkey(form=form, chat=asking.chat), depths, trials)


@evaluate.command()
@options.unfolded
def needle(
    asking: RetrievalOptions,
    hiding: Hiding,
    depths: Depths = DEPTHS,
    trials: Trials = 10,
    needles: Annotated[int, typer.Option(help="Number of facts to hide and ask for.")] = 1,
) -> None:
    """Find one or several facts in unrelated text, and draw a heat map of length and depth."""
    from longlora.evaluation import retrieval_tests as tests

    test = tests.needle(num_needles=needles, haystack=hiding.read(), chat=asking.chat)
    _retrieve(asking, test, depths, trials)


@evaluate.command()
@options.unfolded
def topics(
    asking: RetrievalOptions,
    trials: Trials = 50,
    num_topics: Annotated[
        int | None, typer.Option("--topics", help="Topics per conversation; default: one per 650 tokens.")
    ] = None,
) -> None:
    """Name the first topic of a long conversation, as in LongChat's LongEval."""
    from longlora.evaluation import retrieval_tests as tests

    _retrieve(asking, tests.topics(num_topics=num_topics, chat=asking.chat), DEPTHS, trials)


@evaluate.command()
@options.unfolded
def recall(
    asking: RetrievalOptions,
    hiding: Hiding,
    depths: Depths = "0",
    trials: Trials = 50,
    pairs: Annotated[int, typer.Option(help="Pairs per prompt; chance is one in this many.")] = 8,
) -> None:
    """Recall the value of a key from far back, by generation and by choice; a graded signal even for small models."""
    from longlora.evaluation import retrieval_tests as tests

    test = tests.recall(num_pairs=pairs, haystack=hiding.read(), chat=asking.chat)
    _retrieve(asking, test, depths, trials)


@evaluate.command()
@options.unfolded
def association(
    asking: RetrievalOptions,
    hiding: Hiding,
    depths: Depths = DEPTHS,
    trials: Trials = 10,
    people: Annotated[int, typer.Option(help="People per text; chance is one in this many.")] = 6,
) -> None:
    """Name the person in question when question and fact share no words, as in NoLiMa."""
    from longlora.evaluation import retrieval_tests as tests

    test = tests.association(num_people=people, haystack=hiding.read(), chat=asking.chat)
    _retrieve(asking, test, depths, trials)


@evaluate.command()
@options.unfolded
def tracking(
    asking: RetrievalOptions,
    hiding: Hiding,
    depths: Depths = "0",
    trials: Trials = 50,
    hops: Annotated[int, typer.Option(help="Assignments from one variable to the next.")] = 2,
    chains: Annotated[int, typer.Option(help="Chains of variables; chance is one in this many.")] = 4,
) -> None:
    """Follow a variable through assignments spread over the text, as in RULER."""
    from longlora.evaluation import retrieval_tests as tests

    test = tests.tracking(num_hops=hops, num_chains=chains, haystack=hiding.read(), chat=asking.chat)
    _retrieve(asking, test, depths, trials)


@evaluate.command()
@options.unfolded
def counting(asking: RetrievalOptions, hiding: Hiding, trials: Trials = 50) -> None:
    """Name what the whole text reports most often; the end of the text alone suggests another answer."""
    from longlora.evaluation import retrieval_tests as tests

    test = tests.counting(haystack=hiding.read(), chat=asking.chat)
    _retrieve(asking, test, DEPTHS, trials)


def _retrieve(asking: RetrievalOptions, test: "RetrievalTest", depths: str, trials: int) -> None:
    from longlora.evaluation.drawing import result_table
    from longlora.evaluation.retrieval import Sweep, measure_retrieval

    sweep = Sweep(
        lengths=options.parse_numbers(asking.lengths, "--lengths", int),
        depths=options.parse_numbers(depths, "--depths", float) or [],
        num_trials=trials,
        seed=asking.seed,
        bar=asking.bar,
        beyond=asking.beyond,
    )
    result = measure_retrieval(asking.model, test, sweep, loading_of(asking.weights), output=asking.out)
    if result is not None:  # of several processes, only the main one prints
        show(result, asking.as_json, asking.out, result_table(result), result.verdict)


def loading_of(weights: options.Weights) -> "Loading":
    """Return how to load a model, from the options."""
    from longlora.evaluation.subject import Loading

    return Loading(**vars(weights))


def texts_of(data: list[str], columns: options.Columns, *, across_documents: bool = False) -> "Texts":
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
