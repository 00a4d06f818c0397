"""`fastling plan`: works out what a config will take, before a GPU is rented: memory, steps, tokens, time.

    fastling plan --config configs/bayling-7b.yaml --gpus 8 --gpu-memory-gib 80

The data is prepared as for training, so steps and work are exact counts. Memory is calculated
(training/footprint.py); time is the work divided by a rate that the user states.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastling.command_line import Parser, option_of
from fastling.config import Config, build_parser, parse
from fastling.errors import UserError, run_program
from fastling.model.llama_config import LlamaConfig
from fastling.prepare import Prepared, prepare_data
from fastling.terminal import make_console, print_result
from fastling.training import checkpoint
from fastling.training.build import model_config, share_of_step
from fastling.training.footprint import GIB, Footprint, Weights, footprint
from fastling.training.work import Work

RECOMPUTING = ("none", "selective", "full")  # the faster first


class Planner:
    """Works out what a config takes on `gpus` GPUs. Raises UserError if it could not be trained so."""

    def __init__(self, config: Config, gpus: int, gpu_memory_gib: float):
        self.config, self.gpus, self.gpu_memory = config, gpus, int(gpu_memory_gib * GIB)
        if gpus % config.parallel.replicate:
            raise UserError("parallel.replicate", f"does not divide {gpus} GPUs: {config.parallel.replicate}")
        self.prepared = prepare_data(config)
        self.shape = model_config(config, self.prepared.encoder)
        _, packs = share_of_step(config, gpus)
        self.micro_batch_tokens = packs * config.data.sequence_length
        self.work = work_of(self.prepared, self.shape)
        supervised = self.prepared.training.document_supervised
        self.most_supervised = self.prepared.plan.most_in_packs(supervised, config.global_packs)

    def memory(self, **changes: object) -> Footprint:
        """The memory of each GPU; `changes` are other settings of `train`, or another number of `gpus`."""
        gpus = changes.pop("gpus", self.gpus)
        config = replace(self.config, train=replace(self.config.train, **changes))
        tokens = changes.get("micro_batch_tokens", self.micro_batch_tokens)
        packs = tokens // config.data.sequence_length
        return footprint(
            config,
            self.shape,
            shards=gpus // config.parallel.replicate,
            tokens=tokens,
            supervised=int(self.most_supervised[packs - 1]),
            micro_batches=-(-(config.global_packs // gpus) // packs),
            gpu_memory=self.gpu_memory,
        )

    def saving(self) -> dict[str, float]:
        """GiB of the disk for checkpoints, and of a process's host memory while it writes one."""
        copies = checkpoint.copies_at_once(self.config.checkpoint, self.prepared.total_steps)
        gib = checkpoint.BYTES_OF_A_WEIGHT * Weights.of(self.shape).total / GIB
        shards = self.gpus // self.config.parallel.replicate
        return {"disk_gib": copies * gib, "checkpoint_host_gib": checkpoint.HOST_COPIES * gib / shards}

    def fits(self, memory: Footprint) -> bool:
        return memory.total <= self.gpu_memory

    def packs_of_a_micro_batch(self) -> list[int]:
        """Sizes to try, in packs: all packs of a process in a step, half of them, and so on down to one."""
        packs = [self.config.global_packs // self.gpus]
        while packs[-1] > 1:
            packs.append(-(-packs[-1] // 2))
        return packs

    def choices(self) -> Iterator[tuple[str, int, Footprint]]:
        """Yield (activation checkpointing, tokens of a micro-batch, memory), the fastest first."""
        for mode in RECOMPUTING:
            for packs in self.packs_of_a_micro_batch():
                tokens = packs * self.config.data.sequence_length
                yield mode, tokens, self.memory(activation_checkpointing=mode, micro_batch_tokens=tokens)

    def fix(self) -> str:
        """A sentence that says what to change if the config does not fit."""
        for mode, tokens, memory in self.choices():
            if self.fits(memory):
                return f"--train.micro_batch_tokens {tokens} --train.activation_checkpointing {mode} fits."
        length = self.config.data.sequence_length
        least = {"activation_checkpointing": "full", "micro_batch_tokens": length}
        for gpus in range(2 * self.gpus, self.config.global_packs + 1, self.gpus):
            if self.config.global_packs % gpus == 0 and self.fits(self.memory(gpus=gpus, **least)):
                options = f"--train.micro_batch_tokens {length} --train.activation_checkpointing full"
                return f"--gpus {gpus} {options} fits."
        return (
            "No number of such GPUs that share a step's packs would do; data.sequence_length may be lowered."
        )


def work_of(prepared: Prepared, shape: LlamaConfig) -> dict[str, int | float]:
    """Totals over all steps. `flops` are those that forward and backward need, without recomputation."""
    documents = prepared.plan.documents
    lengths = prepared.training.document_tokens[documents].astype("int64")
    tokens, squared_tokens = int(lengths.sum()), int((lengths**2).sum())
    supervised = int(prepared.training.document_supervised[documents].sum())
    return {
        "steps": prepared.total_steps,
        "packs": len(prepared.plan),
        "conversations": len(documents),
        "tokens": tokens,
        "supervised_tokens": supervised,
        "flops": Work(shape).needed(tokens, supervised, squared_tokens),
    }


def make_parser() -> Parser:
    description = (
        "Estimate what a config will take before you rent GPUs. Prints memory of each GPU, steps, tokens, "
        "and time at a given share of their peak rate. Needs no GPU. Exit status 1 if it does not fit."
    )
    parser = build_parser("fastling plan", description)
    add = parser.add_argument
    add("--gpus", type=int, default=8, metavar="N", help="number of GPUs (default: %(default)s)")
    add(
        "--gpu-memory-gib",
        type=float,
        default=80,
        metavar="M",
        help="of each GPU (default: %(default)s)",
    )
    add(
        "--gpu-tflops",
        type=float,
        default=989,
        metavar="X",
        help="dense bf16 rate of each GPU (default: an H100's, %(default)s)",
    )
    add(
        "--mfu",
        type=float,
        default=0.4,
        metavar="X",
        help="share of that rate that training is assumed to reach (default: %(default)s)",
    )
    add("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def check_options(options: Namespace) -> None:
    """Raise UserError for the first option with an impossible value."""
    if options.gpus < 1:
        raise UserError("--gpus", f"must be at least 1: {options.gpus}")
    for name, most in (("gpu_memory_gib", 1e6), ("gpu_tflops", 1e6), ("mfu", 1)):
        value = getattr(options, name)
        if not 1e-6 <= value <= most:
            raise UserError(option_of(name), f"must be from 1e-06 to {most:g}: {value:g}")


def print_plan(planner: Planner, done: dict, console: Console) -> None:
    hours = done["hours"]
    time = f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    console.print(
        f"{done['steps']:,} steps, {done['packs']:,} packs: {done['tokens']:,} tokens of "
        f"{done['conversations']:,} conversations, {done['supervised_tokens']:,} trained on\n"
        f"{time} on {done['gpus']} GPU(s) at {done['mfu']:.0%} of {done['gpu_tflops']:g} TFLOP/s: "
        f"{done['flops']:.3g} FLOP, {done['gpu_hours']:,.1f} GPU hours, "
        f"{done['tokens_per_s']:,.0f} tokens/s\n"
    )
    table = Table("GiB", f"of each GPU, in micro-batches of {planner.micro_batch_tokens:,} tokens", box=None)
    for name, gib in done["memory_gib"].items():
        table.add_row(f"{gib:.1f}", name)
    table.add_row(f"{done['total_gib']:.1f}", f"of {done['gpu_memory_gib']:g}", style="bold")
    console.print(table)
    grid = Table("micro-batch", *RECOMPUTING, title="GiB by train.activation_checkpointing", box=None)
    rows: dict[int, list[Text]] = {}
    for _, tokens, memory in planner.choices():
        cell = Text(f"{memory.total / GIB:.1f}", "green" if planner.fits(memory) else "red")
        rows.setdefault(tokens, []).append(cell)
    for tokens, cells in sorted(rows.items()):
        grid.add_row(f"{tokens:,} tokens", *cells)
    console.print()
    console.print(grid)
    console.print(
        f"\n{done['disk_gib']:,.1f} GiB of the disk for checkpoints; while one is written, "
        f"{done['checkpoint_host_gib']:,.1f} GiB of the host's memory for each process\n"
    )
    console.print("Memory is calculated; no GPU has confirmed it yet.", style="dim")


def main(arguments: Sequence[str]) -> int:
    config, options = parse(make_parser(), arguments)
    check_options(options)
    planner = Planner(config, options.gpus, options.gpu_memory_gib)
    memory = planner.memory()
    seconds = planner.work["flops"] / (options.gpus * options.gpu_tflops * 1e12 * options.mfu)
    done = {
        "fits": planner.fits(memory),
        **planner.work,
        **{name: getattr(options, name) for name in ("gpus", "gpu_memory_gib", "gpu_tflops", "mfu")},
        "hours": seconds / 3600,
        "gpu_hours": options.gpus * seconds / 3600,
        "tokens_per_s": planner.work["tokens"] / seconds,
        "micro_batch_tokens": planner.micro_batch_tokens,
        "total_gib": memory.total / GIB,
        **planner.saving(),
        "memory_gib": {name: part / GIB for name, part in memory.parts.items()},
    }
    console = make_console()
    print_plan(planner, done, console)
    if not done["fits"]:
        console.print(f"does not fit: {planner.fix()}", style="bold red")
    if options.json:
        print_result(done)
    return 0 if done["fits"] else 1


if __name__ == "__main__":
    sys.exit(run_program(main))
