"""What a user sees when something is wrong: where, what, and how to mend it; never a traceback."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

MOST_LINES = 6
"""Of one message; a model that does not fit its config has a complaint for every tensor."""


class UserError(Exception):
    """A mistake in what the user gave: arguments, configuration, or data. Exit status 2.

    Shown as ``where: what`` and, on the next line, how to mend it.
    """

    exit_status = 2

    def __init__(self, where: str, what: str, fix: str = ""):
        self.where, self.what, self.fix = where, what, fix
        super().__init__(f"{where}: {what}" + (f"\n  {fix}" if fix else ""))

    def __reduce__(self):  # so that it crosses from a worker process whole
        return type(self), (self.where, self.what, self.fix)


class RunError(UserError):
    """A check or a run that failed although the arguments were fine. Exit status 1."""

    exit_status = 1


def run_command(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> int:
    """Run a verb and turn its outcome into an exit status: 0 done, 1 failed, 2 bad arguments."""
    try:
        return main(arguments) or 0
    except UserError as error:
        _say(str(error))
        return error.exit_status
    except BrokenPipeError:  # `fastling preview | head` is not a failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # no permission, a folder where a file should be, a full disk
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        _say(f"{error.filename or 'while writing'}: {error.strerror}")
        return 1
    except KeyboardInterrupt:
        print("stopped by the keyboard", file=sys.stderr)
        return 130


def leave(status: int) -> NoReturn:
    """End a process of a process group at once; everything must be written and closed by now.

    torch 2.13's gloo groups, taken apart while the interpreter ends, abort about one process in twenty
    on a busy machine, and torchrun then calls a finished run a failed one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _say(message: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # every rank finds the same mistake; one of them says it
    lines = f"error: {message}".splitlines()
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1 :] = [f"  ... and {len(lines) - MOST_LINES + 1} lines more"]
    print("\n".join(lines), file=sys.stderr)
