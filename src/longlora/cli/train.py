"""The commands about recipes: list them, plan a run, train. They import what they need inside their bodies."""

import json
from pathlib import Path
from typing import Annotated

import typer

from longlora.cli.options import AsJson, Overrides, RecipeName
from longlora.support.choices import Strategy


class Launched(SystemExit):
    """The end of a launcher, whose processes have said why they ended."""


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one, to read or to save as your own.")] = None,
) -> None:
    """List the recipes that ship with longlora, or print one."""
    from longlora.recipes import describe_recipe, find_recipe, recipe_names

    if name is not None:
        typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)
        return
    width = max(map(len, recipe_names()))
    for known in recipe_names():
        typer.echo(f"{known:{width}}  {describe_recipe(known)}")


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Number of GPUs; by default hardware.gpus of the recipe.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.1, help="GiB of each; by default the GPU type's, or hardware.memory_gib of the recipe."),
    ] = None,
    gpu_type: Annotated[str, typer.Option(help="For the time: a100-80gb, h100-80gb, h200, b200, rtx-4090, …")] = "",
    host_memory: Annotated[float | None, typer.Option(min=0.1, help="GiB of the host; without, not checked.")] = None,
    strategy: Annotated[
        Strategy | None,
        typer.Option(help="By default `single` on one GPU, on several hardware.strategy of the recipe, or `ddp`."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a recipe needs in memory and time, without loading anything; status 1 if it does not fit."""
    from longlora.config import load_recipe
    from longlora.planner import GIB, find_gpu, make_plan
    from longlora.planner.plan_report import plan_to_dict, print_plan
    from longlora.training.preflight import planned_run

    loaded = load_recipe(recipe, overrides or [])
    gpus = gpus or loaded.hardware.gpus
    run = planned_run(loaded, num_gpus=gpus, strategy=strategy or loaded.hardware.strategy_on(gpus))
    gpu = find_gpu(gpu_type) if gpu_type else None
    memory_gib = memory or (gpu.memory_gib if gpu else loaded.hardware.memory_gib)
    result = make_plan(
        run,
        memory_bytes=int(memory_gib * GIB),
        host_memory_bytes=int(host_memory * GIB) if host_memory else None,
        gpu=gpu,
    )
    if as_json:
        typer.echo(json.dumps(plan_to_dict(result), indent=2))
    else:
        from rich.console import Console

        print_plan(result, Console())
        if loaded.num_train_epochs is not None:
            typer.echo(
                f"num_train_epochs={loaded.num_train_epochs:g}: the number of steps depends on the data, and the time "
                "is that of one step"
            )
    if not result.fits:
        raise typer.Exit(1)


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    strategy: Annotated[
        Strategy | None,
        typer.Option(
            help="What divides the work among processes (docs/engines.md compares them); by default hardware.strategy "
            "of the recipe where hardware.gpus are visible."
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on each node; by default one for each visible GPU.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that share the run.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Which of them this is, from 0.")] = 0,
    main_address: Annotated[str | None, typer.Option(help="Address of node 0.")] = None,
    main_port: Annotated[int | None, typer.Option(min=1, help="Port on node 0; by default 29500.")] = None,
    sequence_parallel: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share each row (sequence_parallel_size of the recipe)."),
    ] = None,
    miniature: Annotated[
        bool, typer.Option("--miniature", help="A dry run: a random miniature of the model, four short steps.")
    ] = False,
) -> None:
    """Follow a recipe, in one process or several; started again after an interruption, resume where it stopped."""
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
        check_started(strategy, processes)
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
    """Merge what a run trained, unless an earlier start did; a failure costs nothing but the merge."""
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
