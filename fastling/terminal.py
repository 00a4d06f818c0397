"""Words for a person go to stderr; stdout is for results that a program reads."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastling.files import json_line

WIDTH_OF_A_FILE = 120


def make_console(*, quiet: bool = False) -> Console:
    """A console on stderr. Where stderr is a file or a pipe, it is wide enough not to cut numbers.

    Text is shown as it is, without rich's markup: the name of a user's source or folder may look like some.
    """
    width = None if sys.stderr.isatty() else WIDTH_OF_A_FILE
    return Console(stderr=True, quiet=quiet, width=width, highlight=False, markup=False, emoji=False)


def make_progress(console: Console) -> Progress:
    """A progress bar with counts, on a terminal only; it disappears at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def print_result(result: object) -> None:
    """Print the result that --json asks for, as one line of JSON on stdout."""
    sys.stdout.write(json_line(result))
    sys.stdout.flush()
