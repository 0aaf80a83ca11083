"""The progress bar on stderr for everything that takes long.

Only the packing of rows shows the bar of datasets instead: TRL calls `Dataset.map` itself there, and nothing else says
how far it is.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

T = TypeVar("T")
Advance = Callable[[int, str], None]


@contextmanager
def progress_bar(
    description: str, *, total: int | None, completed: int = 0, show_progress: bool = True, transient: bool = False
) -> Iterator[Advance]:
    """Show a bar; the block calls `advance(count, text)` with the number of finished items and a short status.

    A `transient` bar disappears at the end.
    """
    if not show_progress:  # rich below 15 prints a newline even for a disabled bar
        yield lambda count, text: None
        return
    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[text]}", TimeRemainingColumn()
    console = Console(stderr=True)
    # Only a live display needs the thread that redraws; one that lacks the memory to start blocks forever (CPython).
    is_live = console.is_terminal or console.is_jupyter
    with Progress(*columns, console=console, transient=transient, auto_refresh=is_live) as bar:
        task = bar.add_task(description, total=total, completed=completed, text="")
        yield lambda count, text: bar.update(task, advance=count, text=text)


def shown(items: Iterable[T], description: str, *, total: int | None, show_progress: bool = True) -> Iterator[T]:
    """Yield items one by one, with a progress bar."""
    with progress_bar(description, total=total, show_progress=show_progress) as advance:
        for item in items:
            yield item
            advance(1, "")
