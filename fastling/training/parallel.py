"""The processes of a run, and how the model is laid out on them: by FSDP2, or without it in a single process.

Weights and optimizer state are float32 and sharded by rows; forward and backward run in bf16 (or float32).
Gradients are summed in float32 and not averaged, since the weights of a step's tokens already add up to 1.
"""

import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from fastling import launcher, ops
from fastling.config import Config
from fastling.errors import RunError, UserError
from fastling.kernels.attention import ASK_FOR_LENGTHS
from fastling.model.full_memory import full_memory_in_words
from fastling.model.llama import Llama
from fastling.training.determinism import prepare_device
from fastling.training.float8 import check_float8, use_float8
from fastling.training.memory import keep_freed_memory, let_blocks_grow

IN_LESS_MEMORY = "Lower train.micro_batch_tokens, set train.activation_checkpointing full, or use more GPUs."
PATIENCE = timedelta(days=1)
"""How long processes wait for one another while a machine prepares its data, or while rank 0 verifies a
checkpoint or writes an export. By default gloo waits for half an hour, and so does NCCL beside it."""


@dataclass(frozen=True)
class World:
    """The processes of a run."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    patient: dist.ProcessGroup | None = None
    """A gloo group of all processes, on the CPU, whose collectives wait for PATIENCE."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank. Waits for the ranks, not for their devices."""
        count = torch.tensor(int(flag))
        if self.size > 1:
            dist.all_reduce(count, group=self.patient)
        return bool(count)

    def from_main(self, number: int) -> int:
        """Return rank 0's number on all ranks. Waits until all ranks have called this, up to PATIENCE."""
        value = torch.tensor(number if self.is_main else 0)
        if self.size > 1:
            dist.all_reduce(value, group=self.patient)
        return int(value)

    def on_main(self, action: Callable[[], int | None]) -> int:
        """Call `action` on rank 0 and return its number (0 for None) on all ranks; it must not be negative.

        If `action` raises UserError, every rank raises one, and rank 0's says why.
        """
        number, error = 0, None
        if self.is_main:
            try:
                number = action() or 0
            except UserError as problem:
                number, error = -1, problem
        number = self.from_main(number)
        if number < 0:
            raise error or UserError("rank 0", "stopped")
        return number


@contextmanager
def open_world(config: Config):
    """Join the processes that torchrun started, or be the only process; yields the World.

    Raises UserError if the config asks for something that the device cannot do.
    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if launched:
        _check_launched()
    else:
        _check_alone()
    launcher.end_with_torchrun()
    prepare_device()
    let_blocks_grow()
    device = _device(int(os.environ.get("LOCAL_RANK", 0)))
    if config.train.precision == "fp8":
        check_float8(device)
    if device.type == "cpu":
        keep_freed_memory()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if launched:
        _join(backend)
    else:
        dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore())
    try:
        with full_memory_in_words(str(device), IN_LESS_MEMORY):
            mesh, patient = _mesh(config, device), dist.new_group(backend="gloo", timeout=PATIENCE)
            yield World(dist.get_rank(), dist.get_world_size(), device, mesh, patient)
    except BaseException as error:
        # Other processes may wait for this one in a collective operation. Destroying NCCL's groups would wait
        # for them, and the error would never be shown; torchrun ends them once this process has ended.
        if dist.get_world_size() == 1:
            dist.destroy_process_group()
        elif isinstance(error, RuntimeError) and (meant := _meant_of_others(str(error))):
            what = f"cannot go on: another process of the run {meant}"
            raise RunError(f"rank {dist.get_rank()}", what, "It says why, unless it was killed.") from None
        raise
    dist.destroy_process_group()


def _meant_of_others(said: str) -> str | None:
    """What an error message of gloo means, if it is about another process; else None."""
    if "by peer" in said:
        return "has stopped"
    return "does not answer" if "Timed out" in said else None


def _check_launched() -> None:
    """Raise UserError if a cluster has numbered the processes, but given no address where they meet."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        fix = "Start it by torchrun, which sets all of them; or unset these for one process."
        raise UserError("RANK and WORLD_SIZE", f"are set, and {' and '.join(missing)} not", fix)


def _check_alone() -> None:
    """Raise UserError if srun started several processes that would all train the same run in one folder."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1":
        fix = "Have srun start torchrun, one on each node: README.md, Several nodes."
        raise UserError("srun", f"started {tasks} processes that do not know of each other", fix)


def _join(backend: str) -> None:
    """Join the other processes, also if torchrun has started them again because one of them died.

    torch 2.13 leaves the old processes' addresses in torchrun's store, where a new process that is early
    would look for them. So each restart has a prefix of its own in the store. On several nodes the processes
    may not agree on the number of restarts, so there the store is used as it is.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend)
        return
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart {restarts}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            "torchrun --nproc_per_node",
            f"process {local_rank} has no GPU of its own: this machine has {torch.cuda.device_count()}",
            f"Start {torch.cuda.device_count()} processes, or hide the GPUs with CUDA_VISIBLE_DEVICES= ",
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _mesh(config: Config, device: torch.device) -> DeviceMesh:
    size, replicate = dist.get_world_size(), config.parallel.replicate
    if size % replicate:
        raise UserError("parallel.replicate", f"does not divide the {size} processes: {replicate}")
    if replicate == 1:
        return init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    return init_device_mesh(
        device.type, (replicate, size // replicate), mesh_dim_names=("replicate", "shard")
    )


def shard(model: Llama, config: Config, world: World) -> Llama:
    """Apply float8, activation checkpointing, compilation and, where it is not alone, FSDP2, in place.

    Raises UserError for a model that has no float8 products, or no graph that serves all packs.
    """
    if config.train.compile:
        _check_one_graph(ops.picked_attention(world.device, compute_dtype(config)))
        # Otherwise two sizes that happen to be equal in the first pack would have to be equal in all packs.
        torch.fx.experimental._config.use_duck_shape = False
    if config.train.precision == "fp8":
        use_float8(model)
    for number, layer in enumerate(model.model.layers):
        if recomputes(config.train.activation_checkpointing, number):
            _checkpoint_layer(layer)
        if config.train.compile:
            layer.compile(dynamic=True)  # packs differ in length; one graph serves them all
    if is_alone(config, world.size):
        model.compute_dtype = compute_dtype(config)
        return model
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype(config),
        reduce_dtype=torch.float32,
        # Inputs keep their types: the loss weights are float32 on purpose.
        cast_forward_inputs=False,
    )
    for layer in model.model.layers:
        reshard = config.parallel.shard == "full"
        fully_shard(layer, mesh=world.mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=world.mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sums
            if world.size > 1:  # else FSDP would copy all gradients once more, to divide them by 1
                module.set_gradient_divide_factor(1.0)
    return model


def is_alone(config: Config, processes: int) -> bool:
    """Whether a single process trains without FSDP, which would copy every weight twice and every gradient
    three times for nothing. Not with float8, whose products need weights in the type of the activations.
    """
    return processes == 1 and config.train.precision != "fp8"


def _check_one_graph(attention: str) -> None:
    if attention in ASK_FOR_LENGTHS:
        raise UserError(
            "train.compile",
            f"would recompile the layers for each number of documents, with attention by {attention!r}",
            "Leave it out, or use flash3, flash2 or torch in bf16 on a GPU, tiled on a CPU.",
        )


def compute_dtype(config: Config) -> torch.dtype:
    """Dtype of activations, and of weights while they are gathered."""
    return torch.float32 if config.train.precision == "fp32" else torch.bfloat16


def recomputes(mode: str, layer_number: int) -> bool:
    """Whether a layer is recomputed in the backward under this train.activation_checkpointing."""
    return mode == "full" or (mode == "selective" and layer_number % 2 == 0)


def _checkpoint_layer(layer: torch.nn.Module) -> None:
    """Keep only a layer's input and run the layer again in the backward; nothing in it is random."""
    forward = layer.forward

    def recomputed(*inputs):
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)

    layer.forward = recomputed
