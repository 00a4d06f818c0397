"""The standard streams: a run continues when they are closed or nobody reads them."""

import io
import os
import sys


class _LettingGo(io.RawIOBase):
    """Writes to a descriptor, and drops what cannot be written there (a closed pipe, a full disk)."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, content) -> int:
        try:
            return os.write(self._descriptor, content)
        except OSError:
            return len(content)


def settle() -> None:
    """Make the standard streams fit for a long run; called before a verb begins.

    A stream that was closed becomes /dev/null. Writing to stderr, which only a person reads, never fails: a
    day of training must not end because the disk of its log is full. stdout is UTF-8 whatever the locale is,
    as readers of JSON expect; only a terminal keeps its own encoding.
    """
    _fill_the_closed()
    if sys.stderr is sys.__stderr__:  # not a test's, nor settled before
        letting_go = io.BufferedWriter(_LettingGo(sys.stderr.fileno()))
        sys.stderr = io.TextIOWrapper(
            letting_go, encoding=sys.stderr.encoding, errors="backslashreplace", line_buffering=True
        )
    if sys.stdout is sys.__stdout__:
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


def _fill_the_closed() -> None:
    """Open /dev/null for closed streams; else the next file to be opened would get their descriptor."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    while nowhere <= 2:
        os.set_inheritable(nowhere, True)
        nowhere = os.open(os.devnull, os.O_RDWR)
    os.close(nowhere)
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")


def abandon_stdout() -> None:
    """Send what is still to be written to stdout nowhere, so that the process does not fail at its end."""
    if sys.stdout is sys.__stdout__:  # not a test's or a notebook's, which has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
