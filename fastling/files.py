"""Files that are whole or absent: written aside, flushed to the disk, then renamed. And lines of JSON."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    """Flush a finished folder and give it its name, in place of what had it before.

    What had it before is deleted last: after a kill, either lies whole under one name or another.
    """
    flush(aside)
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)  # of a run that was killed
        final.rename(replaced)
    aside.rename(final)
    flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def gone_after_error(folder: Path) -> Iterator[None]:
    """Leave nothing of a folder where its making fails: a full disk is no place for half of it."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def alone(lock_file: Path) -> Iterator[str]:
    """One process after the other, by a lock on a file.

    Yields "", or this machine's name where only its own processes wait for one another: on a disk that knows
    no locks, such as Lustre mounted without.
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
    """Keep other processes out of an opened file or folder until it is closed, or this process killed.

    False where another process does so. A disk that knows no locks keeps nobody out, and that is said.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        unnoticed = "another process at work in it would go unnoticed"
        print(f"note: {path}: its disk knows no locks ({error.strerror}): {unnoticed}", file=sys.stderr)
    try:
        # Who had it until now may have given it another name.
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


class Hold:
    """Keeps other processes out of a folder, made if need be, for as long as this lives."""

    def __init__(self, folder: Path):
        """Raises BlockingIOError where another process has it."""
        self._descriptor = None
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        if not takes(self._descriptor, folder):
            raise BlockingIOError(errno.EAGAIN, "is held by another process", str(folder))

    def is_of(self, folder: Path) -> bool:
        """Whether it is still this folder that has the name."""
        return folder.exists() and os.path.samestat(os.fstat(self._descriptor), os.stat(folder))

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self):
        self.close()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name into an error of the system: of opening it is there, of writing it is not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a file by another one, never by half of it, whoever else is at it."""
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
    """Raise UserError, before hours of work and not after it, where no file of that name can be written."""
    if endings and path.suffix not in endings:
        raise UserError(option, f"must end in {endings[0]}: {path}")
    if path.is_dir():
        raise UserError(option, f"is a folder: {path}")
    if not path.parent.is_dir():
        raise UserError(option, f"no such folder: {path.parent}", "Make it first.")


def check_disk(
    folder: Path, needed: int, where: str, what: str, fix: str = "Make room, or choose another disk."
) -> None:
    """Raise UserError where a folder's disk has fewer bytes free than are `needed`; `what` says for what."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        words = f"the disk has {free / 2**30:.3f} GiB free, {what} {needed / 2**30:.3f}"
        raise UserError(where, words, fix)


def check_no_pointer(path: Path) -> None:
    """Raise UserError for what git-lfs leaves in a file's place until it is fetched."""
    try:
        with open(path, "rb") as file:
            is_pointer = file.read(len(GIT_LFS)) == GIT_LFS
    except OSError:
        return  # told by who reads it
    if is_pointer:
        what = "is a pointer that git-lfs left in the file's place"
        raise UserError(str(path), what, "Fetch the file itself: git lfs pull")


def json_text(content: dict) -> str:
    """Return it as the JSON files of a model's folder have it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def json_line(content: object) -> str:
    r"""Return it as one line of JSON, its end included, that any reader takes for one line.

    Text stays readable, but for what `str.splitlines` breaks at, too (U+0085, U+2028, U+2029), and what is no
    UTF-8 (of a file's name).
    """
    text = json.dumps(content, ensure_ascii=False).translate(_LINE_ENDS)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def read_json_lines(path: Path) -> list[dict]:
    """Objects of a file that a run appends to, without the lines that a kill or a full disk has spoilt."""
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


def read_steps(path: Path, last: int) -> list[dict]:
    """Of such a file, what was written of the steps up to this one."""
    lines = [(line.get("step"), line) for line in read_json_lines(path)]
    return [line for step, line in lines if isinstance(step, int) and step <= last]


def read_json(file: Path) -> dict:
    """Return the object in a JSON file; a UserError names the file that is not valid."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(str(file), f"is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(str(file), f"holds no JSON object: {str(found)[:40]}")
    return found
