"""Words for a person go to stderr; stdout is for results that a program reads."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastling.files import json_line

WIDTH_OF_A_FILE = 120


def make_console(*, quiet: bool = False) -> Console:
    """A console on stderr; where that is a file or a pipe, wide enough not to cut numbers.

    It shows text as it is: what users name a source or a folder may look like rich's markup.
    """
    width = None if sys.stderr.isatty() else WIDTH_OF_A_FILE
    return Console(stderr=True, quiet=quiet, width=width, highlight=False, markup=False, emoji=False)


def make_progress(console: Console) -> Progress:
    """A bar that counts, on a terminal only; it is gone when all is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def print_result(result: object) -> None:
    """What --json asks for, as one line on stdout."""
    sys.stdout.write(json_line(result))
    sys.stdout.flush()
