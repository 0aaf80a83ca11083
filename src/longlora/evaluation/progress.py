"""The bar that every evaluation draws on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

Advance = Callable[[int, str], None]


@contextmanager
def progress_bar(description: str, *, total: int, completed: int = 0, progress: bool = True) -> Iterator[Advance]:
    """Draw a bar; the block calls `advance(count, text)` with what was done and a few words on how it stands."""
    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[text]}", TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(description, total=total, completed=completed, text="")
        yield lambda count, text: bar.update(task, advance=count, text=text)
