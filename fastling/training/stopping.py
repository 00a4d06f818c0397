"""SIGTERM, as of a cluster that wants its machines back: the step is made, saved, and the run ends (P10)."""

import contextlib
import signal
from collections.abc import Callable, Iterator

from fastling.errors import RunError

STATUS = 128 + signal.SIGTERM


class Stopped(RunError):
    """A run that was told to end, and can go on where it was."""

    exit_status = STATUS


@contextlib.contextmanager
def told_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether this process was sent SIGTERM within: it ends nothing there, however often it comes.

    Slurm sends it to torchrun and to the processes, which torchrun sends it once more.
    """
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
