"""Processes that share some work. They do not inherit their parent's memory, and do not outlive it."""

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
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path

from fastling.errors import RunError

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""In a container: microseconds of all its cores together in each period, and the period's microseconds."""


def own_cores() -> int:
    """Number of cores that this process may use: a Slurm job's own, a container's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        microseconds, period = map(int, CPU_QUOTA.read_text().split())
    except (OSError, ValueError):  # no container, or one without a quota ("max")
        return cores
    return min(cores, -(-microseconds // period))


@contextmanager
def start_workers(
    number: int, start: Callable[..., None], *arguments: object, where: str, fix: str
) -> Iterator[ProcessPoolExecutor]:
    """A pool of `number` processes, each of which first calls `start(*arguments)`.

    Raises RunError, naming the setting `where`, if a process is killed or cannot be started.
    """
    context = multiprocessing.get_context("forkserver")
    try:
        _start_servers()
        with ProcessPoolExecutor(number, context, _start, (start, *arguments)) as pool, _let_go_of(pool):
            yield pool
    except BrokenProcessPool:
        what = f"one of {number} processes was killed, most likely for lack of memory"
        raise RunError(where, what, fix) from None
    except OSError as error:
        if "AF_UNIX" in str(error):  # they are started through a socket, whose path may have 107 bytes
            raise RunError("TMPDIR", f"is too long: {tempfile.gettempdir()}", "Set it to /tmp.") from None
        if error.errno not in (errno.EAGAIN, errno.EMFILE):
            raise
        raise RunError(where, f"cannot start {number} processes: {error.strerror}", fix) from None


def _start_servers() -> None:
    """Start the two helpers of multiprocessing, whatever files of Python the current folder holds.

    They are run by `python -c`, which looks for modules there first: a types.py beside the data would be run.
    Workers are forked from them, and are then told where their parent looks for modules.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        resource_tracker.ensure_running()
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def ahead(started: Iterable, most: int) -> Iterator:
    """Items of `started` in order, each taken `most` items ahead of the one that is yielded.

    Taking an item starts a piece of work, so up to `most` more are in progress meanwhile.
    """
    waiting = collections.deque()
    for each in started:
        waiting.append(each)
        if len(waiting) > most:
            yield waiting.popleft()
    yield from waiting


@contextmanager
def _let_go_of(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Python before 3.11.5 waits for ever for a pool whose processes died while work was sent to them."""
    try:
        yield
    except BaseException:
        if sys.version_info < (3, 11, 5):
            pool._call_queue._reader.close()  # then the thread that writes there finds no reader left
        raise


def _start(start: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    start(*arguments)


def _leave_with_parent() -> None:
    # A pool's processes wait for work for ever, and a killed parent cannot tell them to stop.
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
