"""The commands about recipes: recipes, plan, init, train. They import what they need inside their bodies."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longlora.cli import options
from longlora.errors import ConfigError

if TYPE_CHECKING:
    from longlora.training.draft import Hardware


class Launched(SystemExit):
    """The exit of a launcher, whose processes have already reported why they ended."""


def recipes(
    name: Annotated[str | None, typer.Argument(help="Recipe to print, to read it or save a copy.")] = None,
) -> None:
    """List the bundled recipes, or print one."""
    from longlora.recipes import describe_recipe, find_recipe, recipe_names

    if name is not None:
        typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)
        return
    width = max(map(len, recipe_names()))
    for known in recipe_names():
        typer.echo(f"{known:{width}}  {describe_recipe(known)}")


@options.unfolded
def plan(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|MODEL",
            help="A recipe, or a model: a directory, a hub name, or a short name such as qwen3-8b.",
        ),
    ],
    machine: options.Machine,
    overrides: options.Overrides = None,
    context: options.ContextOrNone = None,
    as_json: options.AsJson = False,
) -> None:
    """Estimate the memory and time of a run without loading anything; exits with 1 if it does not fit.

    For a model, it finds the settings that make the context fit, on your GPU and on four others.
    """
    from longlora.recipes import is_recipe

    chosen = list(overrides or [])
    if is_recipe(target):
        fits = _plan_recipe(target, [*chosen, *([f"context_length={context}"] if context else [])], machine, as_json)
    elif context is None:
        _check_model(target)
        raise ConfigError(f"give the context length to plan for: longlora plan {target} --context 65536")
    else:
        fits = _plan_model(target, context, chosen, machine, as_json)
    if not fits:
        raise typer.Exit(1)


def _plan_recipe(name: str, overrides: list[str], machine: options.Machine, as_json: bool) -> bool:
    from rich.console import Console

    from longlora.config import load_recipe
    from longlora.planner.plan_report import plan_to_dict, print_plan
    from longlora.training.draft import plan_recipe

    recipe = load_recipe(name, overrides)
    planned = plan_recipe(recipe, _hardware(machine, recipe.hardware.gpus, recipe.hardware.memory_gib))
    if as_json:
        typer.echo(json.dumps(plan_to_dict(planned), indent=2))
        return planned.fits
    print_plan(planned, Console())
    if recipe.num_train_epochs is not None:
        typer.echo(
            f"num_train_epochs={recipe.num_train_epochs:g}: the number of steps depends on the data; the time is "
            "that of one step"
        )
    return planned.fits


def _plan_model(model: str, context: int, overrides: list[str], machine: options.Machine, as_json: bool) -> bool:
    """Plan the settings found for a model on the user's card, if given, and on each of four others."""
    from rich.console import Console

    from longlora.planner.plan_report import plan_to_dict, print_cards, print_plan, print_source
    from longlora.training.draft import CARDS, RecipeDraft, draft_recipe

    _check_model(model)

    def on(machine: options.Machine) -> RecipeDraft:
        return draft_recipe(model, context, _hardware(machine), overrides=overrides)

    drafts = {card: on(replace(machine, gpu_type=card, memory=None)) for card in CARDS}
    named = on(machine) if machine.gpu_type or machine.memory else None
    if as_json:
        cards = {card: plan_to_dict(draft.plan, draft.changes) for card, draft in drafts.items()}
        typer.echo(json.dumps({**(plan_to_dict(named.plan, named.changes) if named else {}), "cards": cards}, indent=2))
    else:
        console = Console()
        if named:
            print_plan(named.plan, console, named.changes)
            console.print()
        any_draft = next(iter(drafts.values()))
        print_cards({card: (draft.plan, draft.changes) for card, draft in drafts.items()}, console)
        print_source(model, console)
        if any_draft.recipe.data.kind == "sft":
            typer.echo(f"{model} already reads {context:,} tokens: planned for conversations (data.kind: sft)")
    return named.plan.fits if named else any(draft.plan.fits for draft in drafts.values())


@options.unfolded
def init(
    model: Annotated[str, typer.Argument(help="A directory, a hub name, or a short name such as qwen3-8b.")],
    machine: options.Machine,
    context: options.Context,
    data: options.Data,
    overrides: options.Overrides = None,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe for a model, with the settings that `longlora plan MODEL` finds for your GPU."""
    from longlora.support.files import write_atomically
    from longlora.training.draft import draft_recipe, draft_to_yaml

    _check_model(model)
    if not (machine.gpu_type or machine.memory):
        raise ConfigError("name the GPU: --gpu-type rtx-4090, or its memory in GiB: --memory 24")
    if out.exists():
        raise ConfigError(f"{out} already exists; choose another --out, or remove it")
    draft = draft_recipe(model, context, _hardware(machine), data=data, overrides=overrides or [])
    if not draft.plan.fits:
        longest = draft.plan.longest_context
        most = f"{longest:,} tokens would" if longest else "no context would"
        raise ConfigError(
            f"{context:,} tokens do not fit with any settings ({most}); add --gpus, or compare GPUs with "
            f"`longlora plan {model} --context {context}`"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, draft_to_yaml(draft, str(out)))
    typer.echo(f"written to {out}; to see its plan: longlora plan {out}")


def _hardware(machine: options.Machine, gpus: int = 1, memory_gib: float = 80) -> "Hardware":
    """Return the hardware from the options, with the recipe's values as defaults."""
    from longlora.planner.compute import find_gpu
    from longlora.training.draft import Hardware

    gpu = find_gpu(machine.gpu_type) if machine.gpu_type else None
    return Hardware(
        gpus=machine.gpus or gpus,
        memory_gib=machine.memory or (gpu.memory_gib if gpu else memory_gib),
        gpu=gpu,
        host_memory_gib=machine.host_memory,
        strategy=machine.strategy,
    )


def _check_model(name: str) -> None:
    """Check that a name can be a model's before asking the hub.

    Raises:
        ConfigError: it cannot, or is an adapter's.
        CheckpointError: it is a directory without a model.
    """
    import difflib

    from longlora.models.directories import training_source
    from longlora.planner.known_models import find_known_model, known_models
    from longlora.recipes import contained_recipe, recipe_names
    from longlora.tiny import TINY_MODEL

    directory = Path(name).expanduser()
    if directory.is_dir() and name != TINY_MODEL:
        if not (directory / "config.json").is_file() and (hint := contained_recipe(directory)):
            raise ConfigError(f"{name} is a directory, but neither a recipe nor a model{hint}")
        training_source(name)
    if "/" in name or directory.is_dir() or find_known_model(name) or name == TINY_MODEL:
        return
    known = [*recipe_names(), *(model.name for model in known_models())]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "`longlora recipes` lists the recipes; hub names contain a slash"
    raise ConfigError(f"there is no recipe {name!r} and no model of that name; {hint}")


def train(
    recipe: options.RecipeName,
    overrides: options.Overrides = None,
    strategy: options.StrategyOfRun = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes per node; default: one per visible GPU.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines in the run.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Index of this machine, from 0.")] = 0,
    main_address: Annotated[str | None, typer.Option(help="Address of node 0.")] = None,
    main_port: Annotated[int | None, typer.Option(min=1, help="Port on node 0; default: 29500.")] = None,
    sequence_parallel: Annotated[
        int | None, typer.Option(min=1, help="Processes that share each row (sequence_parallel_size of the recipe).")
    ] = None,
    miniature: Annotated[
        bool,
        typer.Option("--miniature", help="Dry run: four short steps of a small random model of the same architecture."),
    ] = False,
) -> None:
    """Train a recipe, in one process or several; after an interruption, the same command resumes."""
    from longlora.config import load_recipe
    from longlora.distributed import is_launched, is_main_process, shutdown
    from longlora.training.preflight import check_places

    overrides = overrides or []
    if sequence_parallel is not None:
        overrides = [*overrides, f"sequence_parallel_size={sequence_parallel}"]
    loaded = load_recipe(recipe, overrides)
    if miniature:
        from longlora.training.miniature import miniature_recipe

        loaded = miniature_recipe(loaded)
    merges = loaded.merge and loaded.tuning != "full"
    if not is_launched():
        check_places(loaded, merge_follows=merges)
    from longlora.training.launch import check_started, launch, plan_launch, strategy_of

    if is_launched():
        check_started(loaded, strategy, processes)
    else:
        launch_plan = plan_launch(
            strategy=strategy or strategy_of(loaded, nodes=nodes),
            per_node=processes,
            nodes=nodes,
            node_rank=node_rank,
            main_address=main_address,
            main_port=main_port,
        )
        if launch_plan is not None:
            raise Launched(launch(launch_plan, ["train", recipe, *overrides, *["--miniature"] * miniature]))
    from longlora.training.run import train as run_training

    result = run_training(loaded, merge_follows=merges)
    decides = is_main_process()
    shutdown()
    if not decides:
        return
    typer.echo(f"written to {result}")
    merged = result.parent / "merged"
    if merges:
        _merge_result(result, merged)
    elif loaded.tuning != "full":
        typer.echo(f"next: longlora merge {result} {merged}")


def _merge_result(adapter: Path, merged: Path) -> None:
    """Merge a run's adapter, unless an earlier run of the command did; a failure costs only the merge."""
    from longlora.merge import merge_adapter
    from longlora.support.files import remove_partial
    from longlora.training.run_summary import attempted

    remove_partial(merged)
    if not merged.exists():
        with attempted(f"merging into {merged}"):
            merge_adapter(adapter, merged)
        if not merged.exists():
            raise typer.Exit(1)
    typer.echo(f"merged into {merged}")
