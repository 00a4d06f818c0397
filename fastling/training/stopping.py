"""On a stop signal, a run finishes its step, saves and ends (P10).

SIGTERM is how clusters take machines back, SIGINT is Ctrl-C, and SIGHUP means that the terminal is gone.
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
    """The error of a run that was stopped by a signal and has saved a checkpoint to resume from."""
    what = f"was told to stop, and saved after step {step} of {steps}"
    error = RunError(str(run_dir), what, "The same command resumes from there.")
    error.exit_status = status_of(signal_number)
    return error


def status_of(signal_number: int) -> int:
    """Exit status of a process that a signal ended, as shells report it."""
    return 128 + signal_number


@contextlib.contextmanager
def told_to_stop() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the first signal received, or 0; in the block none ends the process.

    One signal may arrive several times: Slurm sends it to torchrun and to the processes, and torchrun
    forwards it. Without torchrun a second Ctrl-C can only be the user's, and raises KeyboardInterrupt. A
    signal that is ignored, as under nohup, stays ignored.
    """
    received: list[int] = []

    def note(number: int, _) -> None:
        if number == signal.SIGINT and not is_torchrun():
            if number in received:
                raise KeyboardInterrupt
            _say("\nsaving after this step; Ctrl-C again ends the run without saving\n")
        received.append(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    noted = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
    try:
        for number in noted:
            signal.signal(number, note)
        yield lambda: received[0] if received else 0
    finally:
        for number in noted:
            signal.signal(number, before[number])


def _say(text: str) -> None:
    """Write to stderr, which may be in the middle of another write when a signal arrives."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), text.encode())
