"""Progress of work on weights, by their number."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.progress import BarColumn, TaskProgressColumn, TimeRemainingColumn

from fastling.terminal import make_console, make_progress


@contextmanager
def progress_over(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of weights, of `total`, done since the last call."""
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with make_progress(make_console(), *columns) as progress:
        task = progress.add_task(f"{label}, by weight", total=total)
        yield partial(progress.advance, task)
