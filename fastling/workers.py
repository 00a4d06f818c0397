"""Processes that share some work. Each starts anew, and none outlives the process that it works for."""

import collections
import errno
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection

from fastling.errors import RunError


def own_cores() -> int:
    """Cores that this process may use: under Slurm, those of its job, and not all of the machine's."""
    return len(os.sched_getaffinity(0))


@contextmanager
def start_workers(
    number: int, start: Callable[..., None], *arguments: object, where: str, fix: str
) -> Iterator[ProcessPoolExecutor]:
    """So many processes, each of which begins with `start(*arguments)`.

    Raises RunError, of the setting `where`, when one of them is killed or cannot be started.
    """
    context = multiprocessing.get_context("forkserver")
    try:
        with ProcessPoolExecutor(number, context, _start, (start, *arguments)) as pool, _let_go_of(pool):
            yield pool
    except BrokenProcessPool:
        what = f"one of {number} processes was killed, most likely for lack of memory"
        raise RunError(where, what, fix) from None
    except OSError as error:
        if "AF_UNIX" in str(error):  # a socket through which they are started, whose path may have 107 bytes
            raise RunError("TMPDIR", f"is too long: {tempfile.gettempdir()}", "Set it to /tmp.") from None
        if error.errno not in (errno.EAGAIN, errno.EMFILE):
            raise
        raise RunError(where, f"cannot start {number} processes: {error.strerror}", fix) from None


def ahead(started: Iterable, most: int) -> Iterator:
    """Pieces of work, each begun when it is taken from `started`, in order, the next `most` begun by then."""
    waiting = collections.deque()
    for each in started:
        waiting.append(each)
        if len(waiting) > most:
            yield waiting.popleft()
    yield from waiting


@contextmanager
def _let_go_of(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Python before 3.11.5 never ends a pool that has work on its way to processes that are gone."""
    try:
        yield
    except BaseException:
        if sys.version_info < (3, 11, 5):
            pool._call_queue._reader.close()  # then its thread hears that nobody else reads
        raise


def _start(start: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    start(*arguments)


def _leave_with_parent() -> None:
    # A pool's processes wait for work for ever, and a parent that is killed tells them nothing.
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
