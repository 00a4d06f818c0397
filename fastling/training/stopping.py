"""A run that is told to stop finishes its step, saves and ends (P10).

SIGTERM is how clusters take their machines back, SIGINT is Ctrl-C, and SIGHUP the end of a connection.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from fastling.errors import RunError
from fastling.launcher import is_torchrun

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def stopped(run_dir: Path, step: int, steps: int, signal_number: int) -> RunError:
    """The error of a run that was told to end by a signal, and has saved a checkpoint to go on from."""
    what = f"was told to stop, and is saved after step {step} of {steps}"
    error = RunError(str(run_dir), what, "The same command goes on from there.")
    error.exit_status = status_of(signal_number)
    return error


def status_of(signal_number: int) -> int:
    """Exit status of a process that has ended because of a signal, as shells give it."""
    return 128 + signal_number


@contextlib.contextmanager
def told_to_stop() -> Iterator[Callable[[], int]]:
    """Yield a function that gives the signal that has come, or 0; in the block it does not end the process.

    It may come several times: Slurm sends it to torchrun and to the processes, and torchrun sends it on. Only
    without torchrun a second Ctrl-C must be another wish of the user's, and raises KeyboardInterrupt. A
    signal that is ignored, as by nohup, goes on being ignored.
    """
    came: list[int] = []

    def note(number: int, _) -> None:
        if number == signal.SIGINT and not is_torchrun():
            if number in came:
                raise KeyboardInterrupt
            _say("\nsaving after this step; Ctrl-C again ends the run without\n")
        came.append(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    noted = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
    try:
        for number in noted:
            signal.signal(number, note)
        yield lambda: came[0] if came else 0
    finally:
        for number in noted:
            signal.signal(number, before[number])


def _say(text: str) -> None:
    """Write to stderr, which may be in the midst of writing something else when a signal comes."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), text.encode())
