"""Makes and applies deltas: models published as differences from a base that may not be redistributed.

difference = target - base in float32, stored in half precision. Rows that the target's embeddings have
beyond the base's (added tokens) are stored as they are, as FastChat's deltas do.

What is exact: if a weight and its base have the same half-precision dtype, in which the difference is stored,
and have the same sign and differ by no more than a factor of two, as nearly all weights of a fine-tuned model
do, then the difference can be stored exactly (Sterbenz), and the applied weight is the target's bit for bit.
Otherwise the difference is rounded once to the stored dtype, and the sum once to the target's. `make` applies
what it stores, and records the largest error.

Memory: one written shard (1 GiB, or one tensor that is larger) and about five times the largest tensor
in float32.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from fastling import files
from fastling.errors import RunError, UserError
from fastling.json_files import json_text, read_json
from fastling.model.digests import digest
from fastling.model.huggingface import DELTA_RECORD
from fastling.surgery.folders import (
    Weights,
    copy_small_files,
    joint_digest,
    narrowed,
    new_folder,
    write_weights,
)
from fastling.surgery.progress import progress_over

FORMAT = "fastling-delta-1"


@dataclass
class Record:
    """delta.json: which base a delta fits, and what comes out. Digests are those of model/digests.py."""

    format: str = FORMAT
    base: dict[str, str] = field(default_factory=dict)
    delta: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    base_digest: str = ""
    target_digest: str = ""
    result_digest: str = ""
    result_dtype: str = ""
    largest_difference: float = 0.0
    largest_difference_in: str = ""
    weights: int = 0
    weights_not_exact: int = 0
    rows_beyond_base: dict[str, int] = field(default_factory=dict)

    def facts(self) -> dict:
        """The record without the digests of single tensors and files, for --json."""
        lists = ("base", "delta", "files")
        return {"exact": self.exact} | {key: value for key, value in asdict(self).items() if key not in lists}

    @property
    def exact(self) -> bool:
        """Whether applying the delta gives the target bit for bit."""
        return self.result_digest == self.target_digest


def make_delta(base_folder: Path, target_folder: Path, out: Path, dtype: torch.dtype | None) -> Record:
    """Write the folder of differences, in `dtype`; None is the target's own if that is half precision, else
    float16.

    Raises UserError if the models do not fit each other, or if a difference overflows `dtype`.
    """
    with ExitStack() as stack:
        base = stack.enter_context(Weights(base_folder))
        target = stack.enter_context(Weights(target_folder))
        _refuse_mismatches(base, target)
        target.refuse_meta("Only the base may be Meta's.")
        if dtype is None:
            dtype = target.dtype if target.dtype.itemsize == 2 else torch.float16
        aside = stack.enter_context(new_folder(out, target.num_weights * dtype.itemsize))
        advance = stack.enter_context(progress_over("making the delta", target.num_weights))
        record = Record(
            result_dtype=str(target.dtype).removeprefix("torch."),
            weights=target.num_weights,
            rows_beyond_base=_rows_beyond(base, target),
        )
        record.delta = write_weights(_differences(base, target, dtype, record, advance), aside, dtype)
        record.files = {name: files.sha256(aside / name) for name in copy_small_files(target_folder, aside)}
        files.write_text(aside / DELTA_RECORD, json_text(asdict(record)))
    return record


def _differences(
    base: Weights, target: Weights, dtype: torch.dtype, record: Record, advance: Callable[[int], None]
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, difference in `dtype`), and record the digests and what comes of applying each."""
    targets, results = {}, {}
    result_dtype = target.dtype
    for name in target.shapes:
        before, after = base.read(name), target.read(name)
        record.base[name], targets[name] = digest(name, before), digest(name, after)
        difference = after.to(torch.float32, copy=True)
        difference[: len(before)] -= before
        stored = narrowed(name, difference, dtype, target.folder)
        applied = _sum(name, before, stored, result_dtype, target.folder)
        results[name] = digest(name, applied)
        error = applied.to(torch.float32).sub_(after).abs_()
        record.weights_not_exact += int(error.count_nonzero())
        if error.numel() and error.max() > record.largest_difference:
            record.largest_difference, record.largest_difference_in = float(error.max()), name
        yield name, stored
        advance(after.numel())
    record.base_digest = joint_digest(record.base)
    record.target_digest, record.result_digest = joint_digest(targets), joint_digest(results)


def _sum(name: str, before: Tensor, stored: Tensor, dtype: torch.dtype, where: Path) -> Tensor:
    """Base (rows, ...) + difference (rows or more, ...), in float32, as `dtype`."""
    total = stored.to(torch.float32, copy=True)
    total[: len(before)] += before
    return narrowed(name, total, dtype, where)


def apply_delta(
    base_folder: Path, delta_folder: Path, out: Path, warn: Callable[[str], None]
) -> Record | None:
    """Write the target's folder. Returns the delta's record; None for a delta of other software.

    Raises UserError for another base than the delta's and for a damaged or incomplete delta, and RunError if
    the result is not what it was when the delta was made.
    """
    record = _read_record(delta_folder)
    with ExitStack() as stack:
        base = stack.enter_context(Weights(base_folder))
        delta = stack.enter_context(Weights(delta_folder, may_be_delta=True))
        _refuse_mismatches(base, delta)
        if record is None:
            warn(
                f"{delta_folder} has no {DELTA_RECORD}: "
                "whether this is the base it was made for cannot be checked"
            )
            dtype = delta.dtype
        else:
            _check_small_files(delta_folder, record)
            dtype = getattr(torch, record.result_dtype)
        aside = stack.enter_context(new_folder(out, delta.num_weights * dtype.itemsize))
        advance = stack.enter_context(progress_over("applying the delta", delta.num_weights))
        results = write_weights(_sums(base, delta, dtype, record, advance), aside, dtype)
        if record is not None and joint_digest(results) != record.result_digest:
            raise RunError(str(out), "came out other than when the delta was made", "Nothing was left there.")
        copy_small_files(delta_folder, aside, *([record.files] if record else []))
    return record


def _sums(
    base: Weights,
    delta: Weights,
    dtype: torch.dtype,
    record: Record | None,
    advance: Callable[[int], None],
) -> Iterator[tuple[str, Tensor]]:
    for name in delta.shapes:
        before, stored = base.read(name), delta.read(name)
        if record is not None:
            if digest(name, stored) != record.delta.get(name):
                what = f"is damaged: {name} {tuple(stored.shape)} is not what was written"
                raise UserError(str(delta.folder), what, "Copy it again.")
            if digest(name, before) != record.base.get(name):
                what = f"is another base than the delta was made for: {name} {tuple(before.shape)} differs"
                raise UserError(str(base.folder), what, "Also the same weights in another dtype do not fit.")
        yield name, _sum(name, before, stored, dtype, delta.folder)
        advance(stored.numel())


def _refuse_mismatches(base: Weights, other: Weights) -> None:
    found = base.mismatches(other)
    if found:
        raise UserError(str(other.folder), "\n  ".join([f"does not fit the base {base.folder}:", *found]))


def _rows_beyond(base: Weights, target: Weights) -> dict[str, int]:
    grown = {name: shape[0] - base.shapes[name][0] for name, shape in target.shapes.items()}
    return {name: count for name, count in grown.items() if count}


def _check_small_files(folder: Path, record: Record) -> None:
    for name, expected in record.files.items():
        if Path(name).name != name:
            raise UserError(str(folder / DELTA_RECORD), f"names a file outside its folder: {name}")
        if not (folder / name).is_file():
            raise UserError(str(folder), f"is incomplete: {name} is missing", "Copy the whole folder.")
        if files.sha256(folder / name) != expected:
            raise UserError(str(folder), f"is damaged: {name} is not what was written", "Copy it again.")


def _read_record(folder: Path) -> Record | None:
    path = folder / DELTA_RECORD
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise UserError(str(path), f"is not of the format {FORMAT}", "A newer fastling may read it.")
    default = Record()
    for each in fields(Record):
        if type(content.get(each.name)) is not type(getattr(default, each.name)):
            raise UserError(
                str(path), f"is damaged: {each.name} is missing or of another kind", "Copy it again."
            )
    if content["result_dtype"] not in ("float16", "bfloat16", "float32", "float64"):
        raise UserError(
            str(path), f"is damaged: result_dtype is {content['result_dtype']!r}", "Copy it again."
        )
    return Record(**{each.name: content[each.name] for each in fields(Record)})
