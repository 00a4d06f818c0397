"""Checkpoints: whole or absent, checked before a tensor is used, without pickle (P10, P11, P13).

    checkpoints/step-00000100/    safetensors, one file a rank   (torch.distributed.checkpoint)
                                  digests-0000.json, one a rank  sha256 of every tensor, from memory
                                  state.json                     step, and what the step depends on

Written to `step-00000100.tmp`, flushed, then renamed. Digests are taken before the write, so damage
on the way to the disk is found as surely as damage on it. Weights, moments and the step number are
all there is: data order is a function of the step, and nothing in the model is random.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from fastling import files
from fastling.errors import RunError


@dataclass(frozen=True)
class Found:
    """A checkpoint that passed its checks."""

    folder: Path
    state: dict


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All tensors of a run under stable names; optimizer moments are made if there are none yet."""
    tensors = {}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        if not moments:
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            zeros = [torch.zeros_like(parameter, requires_grad=False) for _ in range(2)]
            moments.update(step=step, exp_avg=zeros[0], exp_avg_sq=zeros[1])
        tensors[f"model.{name}"] = parameter.detach()
        tensors[f"exp_avg.{name}"] = moments["exp_avg"]
        tensors[f"exp_avg_sq.{name}"] = moments["exp_avg_sq"]
    return tensors


def save(folder: Path, step: int, tensors: dict[str, torch.Tensor], state: dict, *, keep_last: int) -> Path:
    """Write one checkpoint from all ranks together; then keep it and the `keep_last` - 1 before it.

    Raises RunError (disk full, no permission) with the earlier checkpoints untouched.
    """
    rank = dist.get_rank()
    final = step_folder(folder, step)
    aside = final.with_name(final.name + ".tmp")
    if rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    try:
        digests = {name: _digest(_local(tensor)) for name, tensor in tensors.items()}
        (aside / f"digests-{rank:04d}.json").write_text(json.dumps(digests, indent=0))
        with _quiet():
            dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(aside), save_distributed=True))
        if rank == 0:
            state = {**state, "step": step, "ranks": dist.get_world_size()}
            (aside / "state.json").write_text(json.dumps(state, indent=1))
    except (OSError, dcp.api.CheckpointException) as error:
        raise RunError(str(aside), f"the checkpoint could not be written: {_cause(error)}") from error
    dist.barrier()
    if rank == 0:
        files.publish(aside, final)
        # A later one can only be damaged, or this run would have begun there: it does not count.
        good = [path for path in sorted(folder.glob("step-????????")) if path.name <= final.name]
        for old in good[:-keep_last]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def newest_step(folder: Path, report=print) -> int:
    """Step of the newest checkpoint that is whole and undamaged, 0 without any; reports damaged ones.

    Raises RunError when there are checkpoints but none is good.
    """
    candidates = sorted(folder.glob("step-????????"), reverse=True)
    for candidate in candidates:
        problem = damage(candidate)
        if problem is None:
            return open_checkpoint(folder, int(candidate.name.removeprefix("step-"))).state["step"]
        report(f"{candidate}: damaged, so not used: {problem}")
    if candidates:
        raise RunError(
            str(folder), "no checkpoint is undamaged", "Restore one, or choose another run_dir to start anew."
        )
    return 0


def open_checkpoint(folder: Path, step: int) -> Found:
    """A checkpoint that `newest_step` found good."""
    found = step_folder(folder, step)
    return Found(found, json.loads((found / "state.json").read_text()))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming file and tensor; None if nothing is.

    Reads every byte of every tensor and compares it with the digests of what was in memory. Replicas
    are written by one of their ranks only, so a rank's tensor may lie in another rank's file.
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        saved = {
            (name, digest): rank
            for rank in range(state["ranks"])
            for name, digest in json.loads((folder / f"digests-{rank:04d}.json").read_text()).items()
            if digest != EMPTY  # a rank past the last row has none, and writes nothing
        }
        found = set()
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    stored = (name, _digest(file.get_tensor(name)))
                    if stored not in saved and stored[1] != EMPTY:
                        return f"{path.name}: {name} is not what was saved"
                    found.add(stored)
        for (name, digest), rank in saved.items():
            if (name, digest) not in found:
                return f"rank {rank}: {name} is missing"
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        return _cause(error)
    return None


def load(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Fill `tensors` in place, each rank its own rows, at any number of ranks."""
    with _quiet():
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Tell the optimizer how many steps it has made, for its bias correction."""
    for moments in optimizer.state.values():
        moments["step"].fill_(float(step))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _digest(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data).hexdigest()


EMPTY = hashlib.sha256(b"").hexdigest()


def _cause(error: Exception) -> str:
    """The innermost reason, in one line."""
    if isinstance(error, dcp.api.CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


@contextlib.contextmanager
def _quiet():
    """torch.distributed.checkpoint warns on every call of things that are as we want them."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
