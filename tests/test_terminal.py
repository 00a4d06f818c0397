"""Where long work is, on a terminal and in a file."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from fastling import terminal
from fastling.terminal import make_console, make_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves on."""
    seconds = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: seconds[0])
    return seconds


def test_without_a_terminal_a_line_now_and_then_says_how_far_work_is(clock):
    file = io.StringIO()
    with make_progress(Console(file=file, width=80)) as progress:
        task, endless = progress.add_task("answering", total=7000), progress.add_task("reading", total=None)
        progress.advance(task)
        assert file.getvalue() == ""
        clock[0] = 11.0
        progress.advance(task, 1199)
        progress.advance(task)
        assert file.getvalue() == "answering: 1,200 of 7,000\n"
        clock[0] = 22.0
        progress.update(endless, completed=30, description="reading on")
    assert file.getvalue() == "answering: 1,200 of 7,000\nreading on: 30\n"


def test_on_a_terminal_there_is_a_bar_and_no_line(clock):
    file = io.StringIO()
    with make_progress(Console(file=file, width=80, force_terminal=True)) as progress:
        clock[0] = 11.0
        progress.advance(progress.add_task("answering", total=7000), 1200)
    assert "1200/7000" in file.getvalue() and "1,200 of" not in file.getvalue()


def test_no_name_steers_the_terminal(capsys):
    """Such as that of a source, a tensor or a checkpoint in the run of somebody else."""
    hostile, console = "\x1b]52;c;eA==\x07\u202e[red]", make_console()
    table = Table(title=hostile)
    table.add_column(hostile)
    table.add_row(hostile)
    console.print(hostile, style="yellow")
    console.print(table)
    said = capsys.readouterr().err
    assert "\x1b" not in said and "\u202e" not in said
    assert said.count("\\x1b]52;c;eA==\\x07\\u202e[red]") == 4
