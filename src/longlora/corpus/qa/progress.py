"""The bar on stderr while a model is asked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn


@contextmanager
def progress_bar(*, total: int, progress: bool) -> Iterator[Callable[[int, str], None]]:
    """Draw a bar of calls; the block calls `advance(count, text)` with those done and a few words on how it stands."""
    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[text]}", TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("asking", total=total, text="")
        yield lambda count, text: bar.update(task, advance=count, text=text)
