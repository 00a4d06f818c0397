"""The standard streams: whoever closes them, or reads them no longer, ends no work by it."""

import io
import os
import sys


class _LettingGo(io.RawIOBase):
    """Writes to a descriptor; what it does not take, as a closed pipe or a full disk, is let go."""

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
    """Make the standard streams such as a long run can rely on; called before a verb begins.

    What was closed is /dev/null. stderr, which is for a person, takes everything, whether it can be shown or
    not: a day of training must not end because its log's disk is full. stdout is UTF-8, as what reads JSON
    expects, whatever the locale; a terminal's own encoding is kept.
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
    """Open /dev/null for those that were closed: else the next file that is opened would be taken for one."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    while nowhere <= 2:
        os.set_inheritable(nowhere, True)
        nowhere = os.open(os.devnull, os.O_RDWR)
    os.close(nowhere)
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")


def abandon_stdout() -> None:
    """What is still to be written there goes nowhere, so that the end of the process does not fail at it."""
    if sys.stdout is sys.__stdout__:  # not a test's or a notebook's, which has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
