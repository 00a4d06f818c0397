"""Model folders for surgery: read tensor by tensor, written under another name, read back, then renamed.

Whatever goes wrong, there is never half a folder at the destination, and nothing is overwritten.
"""

import argparse
import hashlib
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fastling import files
from fastling.errors import RunError, UserError
from fastling.locks import Hold
from fastling.model.digests import digested, misread
from fastling.model.huggingface import DTYPES, check_shapes, check_tied, open_weights, read_config
from fastling.model.llama import Llama
from fastling.model.meta_format import MetaFolder
from fastling.model.safetensors_folder import save_weights

SHARD_BYTES = 2**30
"""Largest shard that is written, which is held in memory; a larger tensor is a shard of its own."""
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
"""The tensors that have a row for each token."""
SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "chat_template.json", "template.yaml", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "USE_POLICY.md",
)  # fmt: skip
"""Files that are copied together with the weights; other files of a folder are not."""
HALF_DTYPES = {name: DTYPES[name] for name in ("bf16", "fp16")}
_UNFINISHED = ".unfinished"


class Weights:
    """The tensors of a Hugging Face or Meta folder, in Hugging Face's names. Use as a context.

    Rotary frequencies and the head of a tied model, which only some software stores, are left out. Raises
    UserError for a folder that holds no model of a supported kind, or not all tensors that its config needs.
    """

    def __init__(self, folder: Path, *, may_be_delta: bool = False):
        self.folder = folder
        self.config = read_config(folder, may_be_delta=may_be_delta)
        self._source = open_weights(folder)
        check_shapes(Llama.on_meta(self.config), self._source.shapes, folder)
        embedding, head = EMBEDDINGS
        ignored = {head} if self.config.tie_word_embeddings else set()
        for name in ignored & self._source.shapes.keys():
            rows = self._source.shapes[name][0]
            check_tied(*(self._source.read(each, 0, rows) for each in (embedding, head)), folder)
        self.shapes = {
            name: shape
            for name, shape in sorted(self._source.shapes.items())
            if name not in ignored and not name.endswith("rotary_emb.inv_freq")
        }

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *_) -> None:
        self._source.close()

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU in the dtype of the file. It may be the mapped file: do not write to it."""
        return self._source.read(name, 0, self.shapes[name][0])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensors; if they differ, the narrowest that holds all of them."""
        dtypes = {self._source.read(name, 0, 0).dtype for name in self.shapes}
        widest = dtypes.pop()
        for dtype in dtypes:
            widest = torch.promote_types(widest, dtype)
        return widest

    @property
    def num_weights(self) -> int:
        """Number of weights in all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def refuse_meta(self, fix: str) -> None:
        """Raise UserError for Meta's original format, which has no small files to copy."""
        if isinstance(self._source, MetaFolder):
            raise UserError(str(self.folder), "is no Hugging Face folder", fix)

    def mismatches(self, other: "Weights") -> list[str]:
        """Descriptions of how another folder's tensors differ from these in name or shape.

        The other folder's embeddings may have more rows.
        """
        found = [f"{name} {shape} is only in {self.folder}" for name, shape in _without(self, other)]
        found += [f"{name} {shape} is only in {other.folder}" for name, shape in _without(other, self)]
        for name in self.shapes.keys() & other.shapes.keys():
            mine, theirs = self.shapes[name], other.shapes[name]
            grown = name in EMBEDDINGS and mine[0] < theirs[0] and mine[1:] == theirs[1:]
            if mine != theirs and not grown:
                found.append(f"{name} is {mine} in {self.folder}, and {theirs} in {other.folder}")
        return sorted(found)


def _without(one: Weights, other: Weights) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, shape) for name, shape in one.shapes.items() if name not in other.shapes]


def joint_digest(digests: Mapping[str, str]) -> str:
    """One digest for many tensors, whatever their files and order."""
    return hashlib.sha256("\n".join(sorted(digests.values())).encode()).hexdigest()


def narrowed(name: str, exact: Tensor, dtype: torch.dtype, where: Path) -> Tensor:
    """A float32 tensor in `dtype`. Raises UserError if it is not finite, or overflows `dtype`."""
    found = exact.to(dtype)
    if found.isfinite().all():
        return found
    if not exact.isfinite().all():
        raise UserError(
            str(where), f"{name} comes out with values that are not finite", "Its source is damaged."
        )
    what = (
        f"{name} overflows {str(dtype).removeprefix('torch.')}: its largest value is {exact.abs().max():.4g}"
    )
    raise UserError(str(where), what, "bf16 has the range of float32.")


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every verb that writes a folder by `new_folder`."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write; must not exist, or be empty")
    add("--json", action="store_true", help="print what was done as one JSON object on stdout")


@contextmanager
def new_folder(path: Path, num_bytes: int) -> Iterator[Path]:
    """Yield a folder to write into, which is renamed to `path` at the end; after an error it is deleted.

    Raises UserError if there is something at `path`, if another process is writing it, or if the disk has
    fewer than `num_bytes` bytes free.
    """
    path = Path(os.path.abspath(path))
    aside = path.with_name(path.name + ".tmp")
    _refuse_if_taken(path)
    with closing(_hold(aside, path)):
        _take_over(aside)
        try:
            # The folder is inside the marked one, so it never exists without the mark, and is renamed
            # without it.
            unfinished = aside / path.name
            unfinished.mkdir()
            files.check_disk(aside, num_bytes, f"--out {path}", "the weights need")
            yield unfinished
            _refuse_if_taken(path)  # hours may have passed since the first check
            files.publish(unfinished, path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _hold(aside: Path, path: Path) -> Hold:
    """Lock `aside`, the folder beside `path`, so that no other process writes `path`."""
    try:
        return Hold(aside)
    except BlockingIOError:
        what = f"is being written by another process: {path}"
        raise UserError("--out", what, "Wait for it, stop it, or name another folder.") from None
    except FileExistsError:
        raise _taken(aside) from None
    except OSError as error:
        raise UserError("--out", f"cannot be written: {path}: {error.strerror}") from None


def _take_over(aside: Path) -> None:
    """Mark the folder as ours, and remove the remains of a killed run."""
    mark = aside / _UNFINISHED
    if any(aside.iterdir()) and not mark.is_file():
        raise _taken(aside)
    mark.touch()
    for left in aside.iterdir():
        if left != mark:
            shutil.rmtree(left)


def _taken(aside: Path) -> UserError:
    return UserError("--out", f"needs a folder beside it whose name is taken: {aside}", "Move or rename it.")


def _refuse_if_taken(path: Path) -> None:
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise UserError("--out", f"exists already: {path}", "Nothing is overwritten: name another folder.")


def copy_small_files(source: Path, into: Path, names: Iterable[str] = SMALL_FILES) -> list[str]:
    """Copy the small files of a model; return the names of those that were there."""
    found = [name for name in names if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, into / name)
    return found


def write_weights(
    named_tensors: Iterator[tuple[str, Tensor]], folder: Path, dtype: torch.dtype
) -> dict[str, str]:
    """Write tensors that are in `dtype` as shards, read them back, and return name -> digest.

    Raises RunError if what is read back is not what was written.
    """
    digests: dict[str, str] = {}
    save_weights(digested(named_tensors, dtype, digests), folder, max_shard_bytes=SHARD_BYTES, dtype=dtype)
    if different := misread(folder, digests):
        raise RunError(str(folder), different, "Check the disk.")
    return digests
