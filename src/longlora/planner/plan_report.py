"""Print a plan as tables, or convert it to JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from rich.bar import Bar
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from longlora.planner.compute import GIB, LINKS, Duration, exchange_seconds, ulysses_bytes
from longlora.planner.known_models import find_known_model
from longlora.planner.plan import Plan
from longlora.planner.savings import RunChange
from longlora.support.wording import short_number


def print_plan(plan: Plan, console: Console, changes: Sequence[RunChange] = ()) -> None:
    """Print a plan as tables and sentences; `changes` are those already applied to make it fit."""
    found = [Text.assemble("Switched on: ", (str(change), "cyan")) for change in changes]
    for part in (_headline(plan), "", _memory(plan), "", _verdict(plan), *found, *_advice(plan)):
        console.print(part, highlight=False)
    console.print()
    console.print(_facts(plan), highlight=False)


def print_cards(cards: Mapping[str, tuple[Plan, Sequence[RunChange]]], console: Console) -> None:
    """Print one row for each card: the run's memory and time there, with the changes that make it fit."""
    table = _columns()
    for heading in ("card", "of", "needs", "a step", "the run", "longest so"):
        table.add_column(heading, justify="left" if heading == "card" else "right", no_wrap=True)
    table.add_column("with", ratio=1)
    for name, (plan, changes) in cards.items():
        time, steps = plan.duration, plan.run.steps
        verdict = "green" if plan.fits and plan.keeps_margin else "yellow" if plan.fits else "red"
        needed = ", ".join(change.name for change in changes)
        needed += (" – only just" if needed else "only just") * (not plan.keeps_margin)
        table.add_row(
            name,
            f"{plan.memory_bytes / GIB:g}",
            Text(_gib(plan.memory.total), verdict),
            _time(time.seconds / steps, short=True) if time and plan.fits else "–",
            _time(time.seconds, short=True) if time and plan.fits else "–",
            f"{plan.longest_context:,}" if plan.longest_context else "none",
            needed if plan.fits else Text("does not fit", "red"),
        )
    console.print(table)


def print_source(model: str, console: Console) -> None:
    """Print the source of a known model's shape, which was not read from the model's own configuration."""
    if known := find_known_model(model):
        unverified = f"; not verified: {known.unverified}" if known.unverified else ""
        console.print(f"shape: {known.source}{unverified}", style="dim", highlight=False)


def plan_to_dict(plan: Plan, changes: Sequence[RunChange] = ()) -> dict[str, Any]:
    """Convert a plan to plain values; amounts are in bytes, times in seconds, `changes` as recipe keys."""
    run, memory = plan.run, plan.memory
    return {
        "model": run.architecture.name,
        "parameters": run.architecture.num_parameters,
        "trained_parameters": run.trained_by_kind(),
        "context_length": run.context_length,
        "num_gpus": run.num_gpus,
        "strategy": run.strategy,
        "sequence_parallel_size": run.sequence_parallel_size,
        "sink_tokens": run.sink_tokens if run.sees_sinks else 0,
        "fits": plan.fits,
        "memory_bytes": plan.memory_bytes,
        "total_bytes": memory.total,
        "items": [asdict(item) for item in memory.items],
        "reserved_with_room_bytes": memory.reserved_with_room,
        "keep_free": plan.keep_free,
        "keeps_margin": plan.keeps_margin,
        "measured": plan.measured,
        "host_memory_bytes": plan.host_memory_bytes,
        "host_bytes": memory.host_total,
        "host_items": [asdict(item) for item in memory.host_items],
        "longest_context": plan.longest_context,
        **(asdict(plan.duration) if plan.duration else dict.fromkeys(field.name for field in fields(Duration))),
        "advice": [asdict(advice) for advice in plan.advice],
        "advice_suffices": plan.advice_suffices,
        "switched_on": {key: value for change in changes for key, value in change.recipe.items()},
    }


def _headline(plan: Plan) -> Text:
    run = plan.run
    attention = "full attention" if run.attention == "full" else "S²-Attn" if run.shift else "unshifted groups"
    if run.attention == "s2" and run.dense_finish:
        attention += f", the last {run.dense_finish:.0%} full"
    if run.attention == "s2" and run.full_attention_interval:
        attention += f", one layer of {run.full_attention_interval} full"
    if run.sees_sinks:
        attention += f", {run.sink_tokens:,} sink token{'s' * (run.sink_tokens > 1)}"
    gpus = "1 GPU" if run.num_gpus == 1 else f"{run.num_gpus} GPUs ({run.strategy})"
    sharing = "GPU"
    if run.sequence_parallel_size > 1:
        sharing = f"{run.sequence_parallel_size} GPUs"
        gpus += f", each row on {run.sequence_parallel_size}"
    return Text.assemble(
        (run.architecture.name, "bold"),
        f" at {run.context_length:,} tokens on {gpus}, {attention}\n",
        (
            f"{run.tuning} trains {short_number(run.trained_parameters)} of "
            f"{short_number(run.architecture.num_parameters)} parameters; "
            f"{run.batch_size} x {run.accumulation_steps} rows per {sharing} and step",
            "dim",
        ),
    )


def _memory(plan: Plan) -> Table:
    table = _columns()
    table.add_column("on each GPU", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column(f"of {plan.memory_bytes / GIB:g}", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("", style="dim")

    def add(name: str, amount: int, note: str = "", *, bar: str = "cyan", style: str | None = None) -> None:
        share = f"{amount / plan.memory_bytes:.0%}" if amount >= plan.memory_bytes / 200 else "<1%"
        drawn = Bar(max(plan.memory_bytes, plan.memory.total), 0, amount, width=16, color=bar)
        table.add_row(*(Text(text, style or "") for text in (name, _gib(amount), share)), drawn, note)

    for item in plan.memory.items:
        add(item.name, item.bytes, item.note)
    add("total", plan.memory.total, bar="green" if plan.fits else "red", style="bold")
    return table


def _verdict(plan: Plan) -> Text:
    difference = (plan.memory_bytes - plan.memory.total) / GIB
    if not plan.fits_gpus:
        answer = (f"It does not fit: {-difference:,.1f} GiB are missing.", "bold red")
    elif not plan.fits_host:
        answer = (f"It fits the GPU, with {difference:,.1f} GiB to spare, but not the host.", "bold red")
    elif plan.keeps_margin:
        answer = (f"It fits, with {difference:,.1f} GiB to spare.", "bold green")
    else:
        answer = (f"It fits only just, with {difference:,.1f} GiB to spare.", "bold yellow")
    known = "Runs of this kind were measured (H100, H200)" if plan.measured else "Not measured on a GPU"
    trust = f"\n{known}: keep {plan.keep_free:.0%} free ({plan.keep_free * plan.memory_bytes / GIB:,.1f} GiB)."
    host = (f"\n{_host(plan)}", "" if plan.fits_host else "bold red")
    return Text.assemble(answer, trust if plan.fits_gpus else "", host)


def _host(plan: Plan) -> str:
    needed = f"The host needs {_gib(plan.memory.host_total)} GiB of memory"
    if plan.host_memory_bytes is None:
        return f"{needed}; give --host-memory to check."
    there = f"{plan.host_memory_bytes / GIB:,.0f} GiB"
    if plan.fits_host:
        return f"{needed} and has {there}."
    largest = max(plan.memory.host_items, key=lambda item: item.bytes)
    return f"{needed} and has {there}; most of it is {largest.name}: {largest.note}."


def _advice(plan: Plan) -> list[RenderableType]:
    if plan.fits_gpus:
        return []
    if not plan.advice:
        return ["No setting makes it fit; use more or larger GPUs, or a shorter context."]
    table = _columns()
    table.add_column("what would help, in this order", ratio=1)
    table.add_column("GiB then", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for number, advice in enumerate(plan.advice, start=1):
        time = f"{advice.slowdown - 1:+.0%}" if plan.duration else ""
        table.add_row(f"{number}. {advice.change}", _gib(advice.total_bytes), time)
    if plan.advice_suffices:
        return ["", table]
    return ["", table, "Even so it does not fit; use more or larger GPUs, or a shorter context."]


def _facts(plan: Plan) -> Table:
    table, run, memory, duration = _columns(show_header=False), plan.run, plan.memory, plan.duration
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    longest = f"{plan.longest_context:,} tokens, all else unchanged" if plan.longest_context else "none fits"
    table.add_row("longest context", longest)
    if plan.fits_gpus:
        most = _gib(min(memory.reserved_with_room, plan.memory_bytes))
        table.add_row("reserved", f"up to {most} GiB if there is room; torch releases what it does not need")
    processes, loading, *training = (f"{item.name} {_gib(item.bytes)}" for item in memory.host_items)
    host = f"{processes}; {loading}" + (f", later {', '.join(training)}" if training else "")
    table.add_row("host memory", f"{_gib(memory.host_total)} GiB ({host})")
    if run.sequence_parallel_size > 1:
        each = {name: exchange_seconds(run, speed) for name, speed in LINKS.items()}
        times = ", ".join(f"{_time(seconds)} over {name}" for name, seconds in each.items())
        table.add_row("exchanges", f"{_gib(ulysses_bytes(run))} GiB into each GPU per layer; per row, {times}")
    if duration is None:
        table.add_row("time", "unknown; name the GPU with --gpu-type")
        return table
    source = duration.efficiency_measured_on
    table.add_row("time", f"{_time(duration.seconds)} for {run.steps:,} steps")
    table.add_row(
        "speed",
        f"{duration.tokens_per_second_per_gpu:,.0f} tokens/s and {duration.flops_per_second_per_gpu / 1e12:.0f} "
        f"TFLOP/s per GPU; efficiency {f'fitted to {source}' if source else 'assumed'}",
    )
    return table


def _columns(*, show_header: bool = True) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=show_header, header_style="dim")


def _gib(amount: int) -> str:
    if amount < GIB / 200:
        return "<0.01"
    return f"{amount / GIB:.2f}" if amount < GIB else f"{amount / GIB:,.1f}"


def _time(seconds: float, *, short: bool = False) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= (2 * size if unit == "days" else size):
            return f"{seconds / size:.1f} {unit[: 3 if unit == 'minutes' else 1] if short else unit}"
    return f"{seconds:.1f} s" if short else f"{seconds:.0f} seconds"
