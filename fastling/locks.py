"""Locks that keep two processes out of one file or folder. They end when their process does."""

import errno
import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


def no_link_or_pipe(path: str, flags: int) -> int:
    """An `opener` for `open`, which raises OSError for a link or a pipe.

    In a folder of somebody else a link may lead to any file of the user's, which would be emptied, and a pipe
    would keep the process waiting until somebody reads it.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


@contextmanager
def alone(lock_file: Path) -> Iterator[str]:
    """Let one process at a time run the block, by a lock on a file.

    Yields "" where the lock holds for every machine. On a disk without locks, such as Lustre mounted without
    them, only the processes of this machine wait for one another, and its name is yielded.
    """
    with open(lock_file, "w", opener=no_link_or_pipe) as lock, ExitStack() as stack:
        machine = ""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            name = hashlib.sha256(bytes(lock_file.absolute())).hexdigest()
            local = Path(tempfile.gettempdir(), f"fastling-{os.getuid()}-{name}.lock")
            descriptor = os.open(local, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            machine = os.uname().nodename
        yield machine


def takes(descriptor: int, path: Path) -> bool:
    """Lock an opened file or folder; the lock ends when it is closed, or when this process is killed.

    Returns False if another process holds the lock. On a disk without locks it returns True, keeps nobody
    out, and says so on stderr.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        unnoticed = "another process working in it would go unnoticed"
        print(f"note: {path}: its disk has no locks ({error.strerror}): {unnoticed}", file=sys.stderr)
    try:
        # The process that held the lock until now may have renamed or deleted it.
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


class Hold:
    """A lock on a folder, which is made if it is missing. It lasts as long as this object does."""

    def __init__(self, folder: Path):
        """Raises BlockingIOError if another process holds the folder."""
        self._descriptor = None
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        if not takes(self._descriptor, folder):
            raise BlockingIOError(errno.EAGAIN, "is held by another process", str(folder))

    def is_of(self, folder: Path) -> bool:
        """Whether the folder of this name is still the one that is locked: it may have been replaced."""
        return folder.exists() and os.path.samestat(os.fstat(self._descriptor), os.stat(folder))

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self):
        self.close()
