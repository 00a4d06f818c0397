"""Files that are whole or absent: written aside, flushed to the disk, then renamed. Also JSON."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from fastling.errors import UserError

GIT_LFS = b"version https://git-lfs"
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})


def flush(folder: Path) -> None:
    """Make a folder's files and its entries survive a power failure."""
    for path in [*(path for path in folder.iterdir() if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def publish(aside: Path, final: Path) -> None:
    """Flush a finished folder and give it its final name, replacing the folder that has that name.

    The replaced folder is deleted only when the new one is in its place: after a kill at any moment at least
    one of the two is whole, although perhaps under another name.
    """
    flush(aside)
    replaced = final.with_name(f".{final.name}.replaced")
    if os.path.lexists(final):
        remove(replaced, ignore_errors=True)  # of a run that was killed
        final.rename(replaced)
    aside.rename(final)
    flush(final.parent)
    remove(replaced, ignore_errors=True)


def remove(path: Path, *, ignore_errors: bool = False) -> None:
    """Delete a folder with all that is in it, or the file or link that lies in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        with suppress(OSError) if ignore_errors else nullcontext():
            path.unlink()


@contextmanager
def gone_after_error(folder: Path) -> Iterator[None]:
    """Delete the folder if an error ends the block: half a folder would only fill the disk."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def alone(lock_file: Path) -> Iterator[str]:
    """Let one process at a time run the block, by a lock on a file.

    Yields "" where the lock holds for every machine. On a disk without locks, such as Lustre mounted without
    them, only the processes of this machine wait for one another, and its name is yielded.
    """
    with open(lock_file, "w") as lock, ExitStack() as stack:
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
        unnoticed = "another process at work in it would go unnoticed"
        print(f"note: {path}: its disk knows no locks ({error.strerror}): {unnoticed}", file=sys.stderr)
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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError of writing; Python adds it only to errors of opening."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a file's text. Readers see the old text or the new one, even if several processes write."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        aside.unlink(missing_ok=True)  # a full disk is no place to leave it
        raise
    aside.replace(path)


def check_can_be_made(option: str, path: Path, *endings: str) -> None:
    """Raise UserError if no file of that name can be written. Called before the hours of work, not after."""
    if endings and path.suffix not in endings:
        raise UserError(option, f"must end in {endings[0]}: {path}")
    if path.is_dir():
        raise UserError(option, f"is a folder: {path}")
    if not path.parent.is_dir():
        raise UserError(option, f"no such folder: {path.parent}", "Make it first.")


def check_disk(
    folder: Path, needed: int, where: str, what: str, fix: str = "Make room, or choose another disk."
) -> None:
    """Raise UserError if a folder's disk has fewer than `needed` bytes free.

    `what` ends the message's clause about the need, as in "the export needs".
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        words = f"the disk has {free / 2**30:.3f} GiB free, {what} {needed / 2**30:.3f}"
        raise UserError(where, words, fix)


def check_no_pointer(path: Path) -> None:
    """Raise UserError for the pointer that git-lfs leaves in a file's place until the file is fetched."""
    try:
        with open(path, "rb") as file:
            is_pointer = file.read(len(GIT_LFS)) == GIT_LFS
    except OSError:
        return  # whoever reads the file reports this
    if is_pointer:
        what = "is a pointer that git-lfs left in the file's place"
        raise UserError(str(path), what, "Fetch the file itself: git lfs pull")


def sha256(path: Path) -> str:
    """Digest of a file's content. Raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}") from None


def json_text(content: dict) -> str:
    r"""Return an object as indented JSON; what is no UTF-8 (in a file's name) is escaped as \udce9."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def json_line(content: object) -> str:
    r"""Return a value as one line of JSON, with its line end, that every reader takes for one line.

    Text is not escaped, with two exceptions: the characters at which `str.splitlines` breaks a line as well
    (U+0085, U+2028, U+2029), and what cannot be encoded as UTF-8 (in the name of a file).
    """
    text = json.dumps(content, ensure_ascii=False).translate(_LINE_ENDS)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def read_json_lines(path: Path) -> list[dict]:
    """Return the objects of a file of JSON lines; none if there is no such file.

    Lines that a kill or a full disk has left broken are skipped.
    """
    lines: list[dict] = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict):
                lines.append(line)
    return lines


def drop_later_steps(path: Path, last: int) -> None:
    """Keep of a file of JSON lines, if it is there, those of steps up to `last`; not those without a step."""
    if path.exists():
        lines = [(line.get("step"), line) for line in read_json_lines(path)]
        kept = [line for step, line in lines if isinstance(step, int) and step <= last]
        write_text(path, "".join(map(json_line, kept)))


def read_json(file: Path) -> dict:
    """Return the object that a JSON file holds. Raises UserError, naming the file, if it holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(str(file), f"is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(str(file), f"holds no JSON object: {str(found)[:40]}")
    return found


def read_json_if_there(file: Path) -> dict:
    """Return the object that a JSON file holds, or {} if there is no such file. Raises as `read_json`."""
    return read_json(file) if file.is_file() else {}
