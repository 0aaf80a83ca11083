"""The commands under `longlora eval` that judge a model as a whole: the suite, the base comparison, benchmarks."""

from pathlib import Path
from typing import Annotated

import typer

from longlora.cli import options
from longlora.cli.eval import TextOptions, evaluate, loading_of, show, texts_of
from longlora.support.choices import SuiteName

Base = Annotated[
    str | None,
    typer.Option(
        help="Base model to compare with; an adapter records its base, a merged model does not.",
        callback=options.existing_model,
    ),
]


@evaluate.command()
@options.unfolded
def suite(
    models: options.Models,
    out: Annotated[Path, typer.Option(help="Folder for all results and the report; the same command resumes.")],
    columns: options.Columns,
    weights: options.Weights,
    suite: Annotated[SuiteName, typer.Option(help="How many questions to ask.")] = "quick",
    data: options.HeldOutData = None,
    base: Base = None,
    evaluator: options.Evaluator = None,
    lengths: options.SuiteLengths = "",
    beyond: Annotated[bool, typer.Option("--beyond", help="Also measure at twice the context.")] = False,
    short_tasks: Annotated[
        str,
        typer.Option(
            help="Benchmarks for models and base, as in `eval harness --tasks`; `short` is a common selection."
        ),
    ] = "",
    task_file: options.TaskFile = None,
    seed: options.Seed = 0,
) -> None:
    """Run all measurements at lengths up to the model's context, and compare the models in a report.

    In short: longlora eval MODEL --suite quick --out DIR.
    """
    from longlora.evaluation.harness import benchmark
    from longlora.evaluation.suite import run_suite
    from longlora.report.collect import collect
    from longlora.report.verdict import lead
    from longlora.report.write import write_report

    texts = texts_of(data, columns) if data else None
    records = run_suite(
        models,
        suite=suite,
        output=out,
        texts=texts,
        base=base,
        evaluator=evaluator,
        lengths=options.parse_numbers(lengths, "--lengths", int),
        seed=seed,
        beyond=beyond,
        loading=loading_of(weights),
    )
    if records and (short_tasks or task_file):
        benchmark(
            models, _words(short_tasks), output=out, task_files=task_file or [], base=base, loading=loading_of(weights)
        )
    if records:  # of several processes, only the main one has them
        page = write_report([str(out)], out)
        for model in collect([str(out)]).models:
            typer.echo(lead(model))
        typer.echo(f"written to {page}")


@evaluate.command()
@options.unfolded
def short(
    reading: TextOptions,
    out: Annotated[Path, typer.Option(help="Folder for short_context.json.")],
    base: Base = None,
    max_targets: Annotated[int | None, typer.Option(help="Score at most this many tokens.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare a model with its base on the same tokens, at the base's context length."""
    from longlora.evaluation.short_context import measure_short_context

    result = measure_short_context(
        reading.model, reading.texts(), loading_of(reading.weights), base=base, max_targets=max_targets
    )
    result.write(out)
    show(
        result,
        as_json,
        out,
        f"{result.base:>40}   perplexity {result.base_perplexity:9.3f}   {result.length:,} tokens",
        f"{result.model:>40}   perplexity {result.perplexity:9.3f}   {result.num_tokens:,} tokens scored",
        result.verdict,
    )


@evaluate.command()
@options.unfolded
def harness(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Folder for harness.json and samples; the same command resumes.")],
    weights: options.Weights,
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated tasks: ruler, longbench, longbench2, babilong, infinitebench, "
            "longproc, scrolls, short, or any of lm-eval's."
        ),
    ] = "",
    task_file: options.TaskFile = None,
    lengths: options.BenchmarkLengths = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Samples per task; default: all.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Few-shot examples; default: the task's.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens; default: the task's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per batch; each needs memory for its length.")] = 1,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Allow tasks that run code written by the model (longproc).")
    ] = False,
    chat: options.Chat = True,
    seed: options.Seed = 1234,
    as_json: options.AsJson = False,
) -> None:
    """Run published benchmarks or your own tasks through lm-evaluation-harness.

    Most tasks download their data from the hub on first use (HF_HUB_OFFLINE=1 forbids it); a task file with local
    data needs no network.
    """
    from longlora.evaluation.harness import HarnessOptions, run_harness

    result = run_harness(
        model,
        _words(tasks),
        output=out,
        task_files=task_file or [],
        options=HarnessOptions(
            lengths=options.parse_numbers(lengths, "--lengths", int),
            limit=limit,
            num_fewshot=num_fewshot,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            chat=chat,
            seed=seed,
            run_code=run_code,
        ),
        loading=loading_of(weights),
    )
    lines = []
    for score in result.scores:
        error = f" ± {score.standard_error:.3f}" if score.standard_error is not None else ""
        lines.append(f"{score.task:>40}   {score.metric:<20} {score.value:.3f}{error}   {score.num_samples:,} samples")
    show(result, as_json, out, *lines)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
