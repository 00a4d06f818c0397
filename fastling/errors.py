"""What a user sees when something is wrong: where, what, and how to fix it; never a traceback."""

import errno
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import NoReturn

from fastling import garbage, streams

MOST_LINES = 6
"""Longest message in lines: a model that does not fit its config would have a complaint for every tensor."""

SECONDS_FOR_RANK_0 = 5.0
"""How long the other ranks wait before they report an error. If all ranks found it, rank 0 reports it
meanwhile, and torchrun ends the others before they repeat it."""
STOPPED = "stopped by the keyboard"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of writing that name no file. Any other OSError without a file's name is a bug of ours."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class UserError(Exception):
    """A mistake in what the user gave: arguments, configuration, or data. Exit status 2.

    Shown as ``where: what`` and, on the next line, how to fix it.
    """

    exit_status = 2

    def __init__(self, where: str, what: str, fix: str = ""):
        self.where, self.what, self.fix = where, what, fix
        super().__init__(f"{where}: {what}" + (f"\n  {fix}" if fix else ""))

    def __reduce__(self):  # so that it can be pickled by a worker process
        return type(self), (self.where, self.what, self.fix)


class RunError(UserError):
    """A check or a run that failed although the arguments were fine. Exit status 1."""

    exit_status = 1


@contextmanager
def needing(extra: str, where: str) -> Iterator[None]:
    """Turn a missing package, imported within the block, into a UserError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fastling"):  # a bug of ours
            raise
        fix = f"pip install 'fastling[{extra}]'"
        raise UserError(where, f"needs the package {error.name}", fix) from None


def run_command(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> int:
    """Run a verb and turn its outcome into an exit status: 0 done, 1 failed, 2 bad arguments."""
    streams.settle()
    try:
        _check_folder()
        status = main(arguments) or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        _say(str(error))
        return error.exit_status
    except BrokenPipeError:  # `fastling preview | head` is not a failure
        streams.abandon_stdout()
        return 0
    except OSError as error:  # no permission, a folder in a file's place, a full disk, a quota
        if error.filename is None and error.errno not in _DISK:
            raise
        if error.filename is None:  # it may be stdout's, whose buffer would fail again at the end
            streams.abandon_stdout()
        _say(f"{error.filename or 'while writing'}: {error.strerror}")
        return 1
    except MemoryError as error:  # of the host; numpy says how much was wanted
        _say(f"memory is full: {error}".removesuffix(": "))
        return 1
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 130


def run_program(main: Callable[[Sequence[str]], int | None]) -> int:
    """`run_command` with the arguments of this process, which does nothing else."""
    garbage.pass_over_imports()
    return run_command(main, sys.argv[1:])


def leave(status: int) -> NoReturn:
    """End this process at once, without the interpreter's own end; everything must be written by now.

    For processes with a process group: when the interpreter ends, torch 2.13 takes gloo groups apart, which
    on a busy machine aborts about one process in twenty, and torchrun calls the finished run a failed one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def visible(text: str) -> str:
    r"""Text with control characters spelled out (\x1b), so that it cannot steer a terminal.

    Line ends and tabs stay. Marks that reverse the order of the letters after them (U+202E and its kin) are
    spelled out as well.
    """
    return _CONTROL.sub(_spelled_out, text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def kind_and_line(error: Exception) -> str:
    """The name of an error's class and the first line of its message, at most 300 characters."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def tell_of_the_keyboard() -> None:
    """Have Ctrl-C end this process without a traceback also while a verb is imported."""
    usual = sys.excepthook

    def say(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print(STOPPED, file=sys.stderr)
        else:
            usual(kind, error, traceback)

    sys.excepthook = say


def _check_folder() -> None:
    """Raise UserError if the current folder was deleted: libraries of PyTorch would abort the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("current folder", "was deleted", "Change to one that exists.") from None


def _spelled_out(found: re.Match) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _say(message: str) -> None:
    lines = visible(f"error: {message}").splitlines()
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1 :] = [f"  ... and {len(lines) - MOST_LINES + 1} lines more"]
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(SECONDS_FOR_RANK_0)
        lines[0] = f"rank {rank}: {lines[0]}"  # still running, so the error is this rank's alone
    print("\n".join(lines), file=sys.stderr)
    _tell_torchrun("\n  ".join(lines))


def _tell_torchrun(message: str) -> None:
    """Have torchrun's final report show the error, in place of a page about tracebacks."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        # On a full disk, which may be the mistake, there is no such report.
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": message, "timestamp": int(time.time())}, file)
