"""Files that are whole or absent: written aside, flushed to the disk, then renamed."""

import os
import shutil
from pathlib import Path


def flush(folder: Path) -> None:
    """Make a folder's files and its entries survive a power failure."""
    for path in [*(path for path in folder.iterdir() if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def publish(aside: Path, final: Path) -> None:
    """Flush a finished folder and give it its name, in place of what had it before."""
    flush(aside)
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    flush(final.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a file by another one, never by half of it."""
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
