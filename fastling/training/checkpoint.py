"""Checkpoints: complete or absent, verified before any tensor is used, without pickle (P10, P11, P13).

    checkpoints/step-00000100/    safetensors, one file a rank   (torch.distributed.checkpoint)
                                  digests-0000.json, one a rank  of every tensor, from memory: sha256,
                                                                 type, shape, place in the whole; and in
                                                                 which file it was written
                                  state.json                     step, and what the step depends on

Written to `step-00000100.tmp`, flushed, then renamed. Digests are taken before the write, so damage
on the way to the disk is found as surely as damage on it. Weights, moments and the step number suffice:
the order of the data is a function of the step, and nothing in the model is random.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from fastling import files
from fastling.config import Checkpoint
from fastling.errors import RunError, kind_and_line
from fastling.json_files import read_sealed_json, sealed_json
from fastling.model.llama import local_rows

BYTES_OF_A_WEIGHT = 12
"""Bytes in a checkpoint of each weight: the weight and two moments, in float32."""
EMPTY = hashlib.sha256(b"").hexdigest()
"""Digest of the rows of a rank that has none."""
HOST_COPIES = 2
"""Copies in a process's memory of what it writes: the tensors on the CPU, and the file's bytes."""


@dataclass(frozen=True)
class Found:
    """A checkpoint that passed its checks."""

    folder: Path
    state: dict


class Digest(NamedTuple):
    """What a file must contain of a tensor: the digest and the position of all rows of one rank."""

    sha256: str
    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    """Position of its first value in the whole tensor."""


class _DamagedFile(Exception):
    """A file of a checkpoint differs from what was written."""


def step_folder(folder: Path, step: int) -> Path:
    """The folder of a step's checkpoint, inside the folder of all checkpoints."""
    return folder / f"step-{step:08d}"


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Name -> tensor, of all weights and moments; missing moments are created as zeros."""
    tensors = {}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        if not moments:
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            zeros = [torch.zeros_like(parameter) for _ in range(2)]
            moments.update(step=step, exp_avg=zeros[0], exp_avg_sq=zeros[1])
        tensors[f"model.{name}"] = parameter.detach()
        tensors[f"exp_avg.{name}"] = moments["exp_avg"]
        tensors[f"exp_avg_sq.{name}"] = moments["exp_avg_sq"]
    return tensors


def save(
    folder: Path,
    step: int,
    tensors: dict[str, torch.Tensor],
    state: dict,
    *,
    keep_last: int,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write one checkpoint from all ranks together, then delete earlier ones except the last `keep_last` - 1.

    The ranks wait for the slowest in `group`, which has all of them. Raises RunError (disk full, no
    permission) and leaves the earlier checkpoints as they were.
    """
    rank = dist.get_rank()
    final = step_folder(folder, step)
    aside = final.with_name(final.name + ".tmp")
    if rank == 0:
        files.remove(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier(group)
    try:
        digests = {name: _digest_of_rows(tensor) for name, tensor in tensors.items()}
        with _quiet():
            dcp.save(tensors, storage_writer=_Writer(aside, step, digests), process_group=group)
        if rank == 0:
            state = {**state, "step": step, "ranks": dist.get_world_size()}
            (aside / "state.json").write_text(sealed_json(state))
    except (OSError, dcp.api.CheckpointException) as error:
        shutil.rmtree(aside, ignore_errors=True)  # do not leave it on a full disk
        raise RunError(str(aside), f"the checkpoint could not be written: {_cause(error)}") from error
    dist.barrier(group)
    if rank == 0:
        files.publish(aside, final)
        # A later checkpoint must be damaged, since this run would have begun there; it is not counted.
        good = [path for path in sorted(folder.glob("step-????????")) if path.name <= final.name]
        for old in good[:-keep_last]:
            # Rename first: a kill during the deletion would otherwise leave half a checkpoint under its name.
            # Over NFS the folder of a file that is being read stays; the next start removes it.
            files.remove(old.rename(old.with_name(old.name + ".tmp")), ignore_errors=True)
    dist.barrier(group)
    return final


class _Writer(HuggingFaceStorageWriter):
    """Also writes the digests of this rank's rows. All ranks learn of it if one rank cannot write them."""

    def __init__(self, folder: Path, step: int, digests: dict[str, Digest]):
        super().__init__(str(folder), save_distributed=True)
        self._file, self._step, self._digests = _digests_file(folder, dist.get_rank()), step, digests
        self._is_shared = folder.is_dir()  # rank 0 created it; check before torch creates one here
        # No tensors are copied ahead from a GPU: they would go to pinned memory, in blocks whose sizes are
        # powers of two, which PyTorch keeps for the life of the process.
        self.per_thread_copy_ahead = 0

    def write_data(self, plan, planner):
        if not self._is_shared:
            raise OSError(f"this process does not see what rank 0 made: rank {dist.get_rank()}")
        written = super().write_data(plan, planner)
        file_of = {each.index.fqn: each.storage_data.relative_path for each in written.wait()}
        tensors = {name: [*digest, file_of.get(name)] for name, digest in self._digests.items()}
        self._file.write_text(sealed_json({"step": self._step, "tensors": tensors}))
        return written


def newest_step(folder: Path, report=print) -> int:
    """Step of the newest undamaged checkpoint, 0 if there are none at all; newer damaged ones are reported.

    Raises RunError if there are checkpoints and all are damaged. Their run may be going on meanwhile.
    """
    candidates = sorted(folder.glob("step-????????"), reverse=True)
    for candidate in candidates:
        problem = damage(candidate)
        if problem is None:
            return _step_of(candidate)
        if not os.path.lexists(candidate):  # the run has meanwhile deleted it, for newer ones
            return newest_step(folder, report)
        report(f"{candidate}: damaged, so not used: {problem}")
    if candidates:
        raise RunError(
            str(folder),
            "all checkpoints are damaged",
            "Restore one, or choose another run_dir to start over.",
        )
    return 0


def open_checkpoint(folder: Path, step: int) -> Found:
    """The folder and state of a checkpoint that `newest_step` found undamaged, perhaps in another process.

    Raises RunError if this process cannot read it.
    """
    found = step_folder(folder, step)
    try:
        return Found(found, _read_state(found))
    except _DamagedFile as error:
        raise RunError(str(found), f"passed its check, but cannot be read now: {error}") from None


def clear_leftovers(folder: Path) -> None:
    """Remove the half-written or half-deleted remains of killed saves. No save may be in progress."""
    for left in (*folder.glob("step-????????.tmp"), *folder.glob(".step-????????.replaced")):
        files.remove(left)


def copies_at_once(config: Checkpoint, steps: int, already: int = 0) -> int:
    """Most checkpoints on the disk at once during `steps` steps, including those `already` there: a new one
    is written before an old one is deleted."""
    saves = -(-steps // config.every_steps)
    return max(min(already + saves, config.keep_last + 1), already + min(saves, 1))


def check_room(folder: Path, num_weights: int, config: Checkpoint, steps: int, *, other_bytes: int) -> None:
    """Raise UserError if the disk has no room for the checkpoints of `steps` more steps, beside those that
    are there, and for `other_bytes` of other files."""
    there = sum(path.lstat().st_size for path in folder.glob("step-????????/*"))
    copies = copies_at_once(config, steps, already=len(list(folder.glob("step-????????"))))
    needed = max(0, copies * BYTES_OF_A_WEIGHT * num_weights - there) + other_bytes
    what = f"{copies} checkpoints and the export, less what is there, need"
    fix = "Make room, name a run_dir on another disk, or lower checkpoint.keep_last."
    files.check_disk(folder, needed, str(folder), what, fix)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming file and tensor; None if nothing is.

    Reads every byte of every tensor and compares it with the digests of what was in memory. With replicas,
    only one of the ranks with equal rows writes them, so a rank's tensor may be in another rank's file.
    """
    try:
        with _as_damage(folder):  # the sealed content may be anything
            saved = [
                (rank, *each)
                for rank in range(_read_state(folder)["ranks"])
                for each in _read_digests(folder, rank)
                if each[1].sha256 != EMPTY  # a rank past the last row has none, and writes nothing
            ]
            written = {(file, name, digest) for _, name, digest, file in saved}
        paths = sorted(folder.glob("*.safetensors"))
        with ThreadPoolExecutor() as threads:  # hashing releases the GIL
            stored = dict(zip([path.name for path in paths], threads.map(_stored, paths), strict=True))
    except _DamagedFile as error:
        return str(error)
    for file, tensors in stored.items():
        for name, digest in tensors:
            if (file, name, digest) not in written and digest.sha256 != EMPTY:
                return f"{file}: {name} is not what was saved"
    found = {each for tensors in stored.values() for each in tensors}
    for rank, name, digest, file in saved:
        if (name, digest) not in found:
            return f"{file or f'rank {rank}'}: {name} is missing"
    return None


@contextlib.contextmanager
def _as_damage(path: Path):
    """Turn whatever is raised while reading a file, which may hold anything, into a _DamagedFile."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, RuntimeError) as error:
        raise _DamagedFile(f"{path.name}: {_cause(error)}") from None


def _stored(path: Path) -> list[tuple[str, Digest]]:
    """(name, digest) of each tensor in a file; reads all of it."""
    with _as_damage(path), safe_open(path, framework="pt") as file:
        places = json.loads(file.metadata()["DCP_SHARDING_INFO"])
        return [(name, _digest(file.get_tensor(name), places[name]["saved_offsets"])) for name in file.keys()]


def _digests_file(folder: Path, rank: int) -> Path:
    return folder / f"digests-{rank:04d}.json"


def _read_digests(folder: Path, rank: int) -> list[tuple[str, Digest, str | None]]:
    """(name, digest, file) of each tensor of a rank; the file is None if this rank did not write it."""
    tensors = _read_sealed(_digests_file(folder, rank))["tensors"]
    return [
        (name, Digest(sha256, dtype, tuple(shape), tuple(offsets)), file)
        for name, (sha256, dtype, shape, offsets, file) in tensors.items()
    ]


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _read_sealed(path: Path) -> dict:
    """The content of a file of `sealed_json`. Raises _DamagedFile if a character of it has changed, or if it
    was written for another step."""
    with _as_damage(path):
        content = read_sealed_json(path)
        if content is None:
            raise _DamagedFile(f"{path.name}: is not what was saved")
        if content["step"] != _step_of(path.parent):
            raise _DamagedFile(f"{path.name}: is of step {content['step']}")
        return content


def _read_state(folder: Path) -> dict:
    return _read_sealed(folder / "state.json")


def load(folder: Path, tensors: dict[str, torch.Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Fill `tensors` in place, each rank its own rows, at any number of ranks; they wait in `group`.

    Raises RunError if the checkpoint cannot be read, perhaps because it changed after `newest_step` read it.
    """
    try:
        with _quiet():
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), process_group=group)
    except (OSError, SafetensorError, dcp.api.CheckpointException) as error:
        raise RunError(str(folder), f"the checkpoint could not be read: {_cause(error)}") from error


def load_newest(folder: Path, tensors: dict[str, torch.Tensor], report=print) -> int:
    """Fill `tensors` from the newest undamaged checkpoint; return its step, 0 if there are no checkpoints.

    The run may be going on, and delete the checkpoint meanwhile: then a newer one is read. Raises RunError if
    there are checkpoints and all are damaged, or if the chosen one cannot be read.
    """
    while step := newest_step(folder, report):
        try:
            load(step_folder(folder, step), tensors)
            return step
        except RunError:
            if step_folder(folder, step).exists():
                raise
    return 0


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Tell the optimizer how many steps it has made, for its bias correction."""
    for moments in optimizer.state.values():
        moments["step"].fill_(float(step))


def _digest_of_rows(tensor: torch.Tensor) -> Digest:
    """Digest of this rank's rows of a tensor."""
    local, first_row, _ = local_rows(tensor)
    return _digest(local, (first_row, *[0] * (local.dim() - 1)))


def _digest(tensor: torch.Tensor, offsets: tuple[int, ...] | list[int]) -> Digest:
    data = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return Digest(hashlib.sha256(data).hexdigest(), str(tensor.dtype), tuple(tensor.shape), tuple(offsets))


def _cause(error: Exception) -> str:
    """The innermost cause of an error, in one line."""
    if isinstance(error, dcp.api.CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return kind_and_line(error)


@contextlib.contextmanager
def _quiet():
    """Silence torch.distributed.checkpoint, which warns on every call about things that are intended here."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
