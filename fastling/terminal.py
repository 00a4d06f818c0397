"""Text for people goes to stderr; stdout is for results that programs read."""

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fastling.errors import visible
from fastling.json_files import json_line

WIDTH_OF_A_FILE = 120
SECONDS_BETWEEN_LINES = 10.0
"""Where stderr is no terminal, long work reports its progress at this interval."""


class _Console(Console):
    def render_str(self, text: str, **how) -> Text:
        return super().render_str(visible(text), **how)


def make_console(*, quiet: bool = False) -> Console:
    """A console on stderr. Where stderr is a file or a pipe, it is wide enough not to cut numbers.

    Text is shown as it is, without rich's markup: the name of a user's source or folder may look like some.
    Control characters are spelled out: names in files of other people may have some that steer a terminal.
    """
    width = None if sys.stderr.isatty() else WIDTH_OF_A_FILE
    return _Console(stderr=True, quiet=quiet, width=width, highlight=False, markup=False, emoji=False)


class LoggedProgress(Progress):
    """A bar that disappears at the end; without a terminal, as in a job's log, an occasional line."""

    def __init__(self, *columns: ProgressColumn, console: Console):
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.said_at = time.monotonic()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say(task_id)

    def update(self, task_id: TaskID, **changes: object) -> None:
        super().update(task_id, **changes)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        if self.console.is_terminal or time.monotonic() - self.said_at < SECONDS_BETWEEN_LINES:
            return
        self.said_at = time.monotonic()
        (task,) = (task for task in self.tasks if task.id == task_id)
        of_total = f" of {task.total:,.0f}" if task.total is not None else ""
        self.console.print(f"{task.description}: {task.completed:,.0f}{of_total}")


def make_progress(console: Console, *columns: ProgressColumn) -> LoggedProgress:
    """The progress of counted work: its description, and a bar with counts if no other columns are given."""
    columns = columns or (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return LoggedProgress(TextColumn("{task.description}"), *columns, console=console)


def print_result(result: object) -> None:
    """Print the result that --json asks for, as one line of JSON on stdout."""
    sys.stdout.write(json_line(result))
    sys.stdout.flush()
