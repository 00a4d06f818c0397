"""Files that are whole or absent: written aside, flushed to the disk, then renamed."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from fastling.errors import UserError

GIT_LFS = b"version https://git-lfs"


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
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError of writing; Python adds it only to errors of opening."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a file's text. Readers see the old text or the new one, even if several processes write."""
    write_parts(path, [text])


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """As `write_text`, for a text that comes in parts, which are not held together."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        # In a folder of somebody else, a link of that name may lead to any file of the user's.
        aside.unlink(missing_ok=True)
        with naming(path), open(aside, "x", encoding="utf-8") as file:
            file.writelines(parts)
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
