"""Finds out by arithmetic whether a trainer of benchmarks.train can fit into a GPU, before it is started."""

from pathlib import Path

from benchmarks.trainers import Trainer, changed
from benchmarks.training_case import Case
from fastling.model.llama_config import LlamaConfig
from fastling.training.build import share_of_step
from fastling.training.footprint import GIB, Weights, footprint

PEERS_WEIGHT_BYTES = 16
"""Bytes for each weight of a peer: the weight, its gradient and two moments, in float32."""
PLAIN_LOGIT_BYTES = 8
"""Bytes for each logit of a plain head, which holds all logits and their log-probabilities in float32."""


def lacks_room(
    trainer: Trainer, case: Case, folder: Path, supervised: float, gpu_gib: float | None
) -> str | None:
    """Why the trainer cannot fit into the GPU, in words; None if it may, or if there is no GPU.

    `supervised` is the share of tokens that are supervised.
    """
    if gpu_gib is None:
        return None
    needed = least_bytes(trainer, case, case.llama_config(folder), supervised, gpu_gib) / GIB
    if needed <= gpu_gib:
        return None
    return f"not started: needs at least {needed:.0f} GiB of the GPU's {gpu_gib:.0f}"


def least_bytes(trainer: Trainer, case: Case, shape: LlamaConfig, supervised: float, gpu_gib: float) -> int:
    """The bytes of a trainer that can be counted; for a peer those that it keeps between steps."""
    if trainer.changes is None:
        return PEERS_WEIGHT_BYTES * Weights.of(shape).total
    config = changed(case.config(Path()), trainer.changes)
    micro_batches, packs = share_of_step(config, case.processes)
    tokens = packs * case.sequence_length
    rows = tokens if trainer.head_on_all_rows else round(supervised * tokens)
    found = footprint(
        config,
        shape,
        shards=case.processes,
        tokens=tokens,
        supervised=rows,
        micro_batches=micro_batches,
        gpu_memory=int(gpu_gib * GIB),
    )
    has_plain_head = config.model.kernels == "reference"
    return found.counted + has_plain_head * PLAIN_LOGIT_BYTES * rows * shape.vocab_size
