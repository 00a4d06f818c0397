"""SIGTERM, by which clusters take their machines back: the run finishes its step, saves and ends (P10)."""

import contextlib
import signal
from collections.abc import Callable, Iterator

from fastling.errors import RunError

STATUS = 128 + signal.SIGTERM


class Stopped(RunError):
    """The run was told to end, and has saved a checkpoint to go on from."""

    exit_status = STATUS


@contextlib.contextmanager
def told_to_stop() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM has come; in the block the signal does not end the process.

    It may come several times: Slurm sends it to torchrun and to the processes, and torchrun sends it on.
    """
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
