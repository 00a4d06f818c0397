"""Progress of work on weights: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fastling.terminal import make_console

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress_over(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of weights, of `total`, done since the last call."""
    console = make_console()
    columns = (TextColumn(label), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", total=total)
    shown_at, done = time.monotonic(), 0

    def advance(count: int) -> None:
        nonlocal shown_at, done
        done += count
        bar.advance(task, count)
        if not console.is_terminal and time.monotonic() - shown_at > SECONDS_BETWEEN_LINES:
            shown_at = time.monotonic()
            console.print(f"{label}: {100 * done / max(total, 1):.0f} %")

    with bar:
        yield advance
