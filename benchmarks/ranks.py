"""Bytes and speed by number of processes: python -m benchmarks.ranks [--ranks 1 2 4 8] --out F.jsonl

Each number of gloo processes trains a small model a few steps, laid out as `fastling train` does it: sharded
in full, with gathered weights kept for the backward, and as two copies. Every process counts the bytes of its
collectives, where PyTorch hands them to the backend; beside them stands what the shapes of the weights make
them by theory:

- a layer's weights are gathered in bf16 for the forward, and again for the backward unless they were kept;
  the embedding, the last norm and the head once; all that for each micro-batch;
- their gradients are reduced and scattered in float32 for each micro-batch; with copies, each process's part
  is summed over the copies once a step;
- beside them, three numbers of the loss, one of who is to stop, and the norm of every parameter's gradient
  are summed;
- rows are filled up until the processes can share them evenly, and the model's are such that they must be.

Of an all-gather a process receives all but its own part, of a reduce-scatter it sends all but its own. A ring
carries each byte of an all-reduce over n processes 2 (n - 1) / n times. Both must be equal to the byte. The
processes share this machine's cores: tokens/s say what a collective costs here, and not how training scales.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.growth import STEADY, make_updater, random_step
from benchmarks.timing import (
    ROOT,
    Measurement,
    add_rows,
    command_line,
    describe_machine,
    make_table_console,
    now,
)
from fastling.command_line import Parser
from fastling.config import Config, Parallel
from fastling.errors import RunError, UserError, leave, run_program
from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig
from fastling.terminal import make_console
from fastling.training.parallel import open_world

MODEL = LlamaConfig(  # rows that two processes cannot share evenly, nor four or eight
    vocab_size=2001,
    hidden_size=100,
    intermediate_size=301,
    num_hidden_layers=3,
    num_attention_heads=5,
    num_key_value_heads=1,
    max_position_embeddings=256,
)
LENGTHS = [256, 100, 156]
"""Tokens of the documents of a micro-batch."""
MICRO_BATCHES = 2
"""Micro-batches of every process in a step."""
GATHERED, REDUCED = 2, 4
"""Bytes of a weight in bf16 and of a gradient in float32."""
TOLD, NUMBER = 4, 4
"""Numbers that a step sums over all processes (the loss, sum and count of its one source, whether to stop),
and the bytes of each."""
MOVE_NOTHING = ("wait_tensor", "_wrap_tensor_autograd")
"""Operations in the namespaces of collectives that move no bytes."""
WARM_UP = 2
"""Steps whose time does not count."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes of one process in one step."""

    gathered: int = 0
    """Received in all-gathers."""
    scattered: int = 0
    """Sent in reduce-scatters."""
    all_reduced: int = 0
    """Bytes of tensors that are summed over all processes or copies."""

    def __add__(self, other: "Traffic") -> "Traffic":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Traffic(*(one + another for one, another in pairs))

    def __mul__(self, times: int) -> "Traffic":
        return Traffic(*(times * bytes_ for bytes_ in dataclasses.astuple(self)))


# Theory ---------------------------------------------------------------------------------------------


def padded_weights(shapes: Sequence[torch.Size], shards: int) -> int:
    """Weights of some parameters when the rows of each are filled up to a multiple of `shards`."""
    return sum(-(-shape[0] // shards) * shards * shape[1:].numel() for shape in shapes)


def layer_and_rest(config: LlamaConfig) -> tuple[list[torch.Size], list[torch.Size]]:
    """Shapes of the parameters of one layer, and of all that lies in none."""
    named = {name: parameter.shape for name, parameter in Llama.on_meta(config).named_parameters()}
    layer = [shape for name, shape in named.items() if name.startswith("model.layers.0.")]
    return layer, [shape for name, shape in named.items() if not name.startswith("model.layers.")]


def group_traffic(shapes: Sequence[torch.Size], gathers: int, shards: int) -> Traffic:
    """Traffic in one micro-batch of parameters that are gathered and reduced together."""
    part = padded_weights(shapes, shards) // shards
    return Traffic(gathered=gathers * GATHERED * (shards - 1) * part, scattered=REDUCED * (shards - 1) * part)


def theory(config: LlamaConfig, parallel: Parallel, ranks: int, micro_batches: int) -> Traffic:
    """Traffic of one process in one step: weights, gradients, the gradient's norm and the losses."""
    copies = parallel.replicate
    shards = ranks // copies
    layer, rest = layer_and_rest(config)
    gathers = 2 if parallel.shard == "full" else 1
    layers = group_traffic(layer, gathers, shards) * config.num_hidden_layers
    summed = 0
    if copies > 1:
        weights = config.num_hidden_layers * padded_weights(layer, shards) + padded_weights(rest, shards)
        summed = REDUCED * weights // shards
    numbers = TOLD if ranks > 1 else 0
    if ranks > copies:  # each rank has a part of the norm of every parameter's gradient
        numbers += config.num_hidden_layers * len(layer) + len(rest)
    in_all = layers + group_traffic(rest, 1, shards)
    return in_all * micro_batches + Traffic(all_reduced=summed + NUMBER * numbers)


# Counting -------------------------------------------------------------------------------------------


class CountedTraffic(TorchDispatchMode):
    """Counts the bytes of all collectives that PyTorch runs in the block. Raises RunError for new ones."""

    def __init__(self):
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if DTensor in types:  # it turns into plain operations first, which come by here again
            return NotImplemented
        namespace, _, name = function._schema.name.partition("::")
        if namespace in ("c10d", "_c10d_functional") and name not in MOVE_NOTHING:
            self._count(name, args)
        return function(*args, **(kwargs or {}))

    def _count(self, name: str, args: Sequence) -> None:
        if name == "_allgather_base_":
            self.traffic += Traffic(gathered=args[0].nbytes - args[1].nbytes)
        elif name == "_reduce_scatter_base_":
            self.traffic += Traffic(scattered=args[1].nbytes - args[0].nbytes)
        elif name in ("allreduce_", "all_reduce"):
            for tensor in args[0] if name == "allreduce_" else args[:1]:
                self.traffic += Traffic(all_reduced=tensor.nbytes)
        else:
            raise RunError(name, "is a collective that is not counted")


# One process of several -----------------------------------------------------------------------------


def train_and_count(parallel: Parallel, steps: int) -> dict | None:
    """On rank 0: the traffic of every rank in one step, and the seconds of other steps. None elsewhere."""
    config = Config(optimizer=STEADY, parallel=parallel)
    with open_world(config) as world:
        torch.manual_seed(world.rank)
        step = random_step(LENGTHS, MICRO_BATCHES, MODEL.vocab_size, ranks=world.size)
        updater = make_updater(config, MODEL, world)
        seconds = []
        for number in range(1, WARM_UP + steps + 1):
            dist.barrier()
            start = time.perf_counter()
            updater.update(step, number)
            dist.barrier()
            seconds.append(time.perf_counter() - start)
        with CountedTraffic() as counted:
            updater.update(step, len(seconds) + 1)
        mine = torch.tensor(dataclasses.astuple(counted.traffic))
        counts = [torch.empty_like(mine) for _ in range(world.size)]
        dist.all_gather(counts, mine)
        report = {"counts": torch.stack(counts).tolist(), "seconds": seconds[WARM_UP:], "tokens": step.tokens}
        return report if world.is_main else None


# All of them ----------------------------------------------------------------------------------------


def layouts(ranks: int) -> list[Parallel]:
    """The layouts that `ranks` processes can have."""
    found = [Parallel()]
    if ranks > 1:
        found.append(Parallel(shard="gradients"))
    if ranks % 2 == 0:
        found.append(Parallel(replicate=2))
    return found


def launch(ranks: int, parallel: Parallel, steps: int) -> dict:
    """Run so many processes; return what rank 0 measured. Raises RunError if a process fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command += ["-m", "benchmarks.ranks", "--steps", str(steps), "--layout"]
    command.append(json.dumps(dataclasses.asdict(parallel)))
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # else they would be NCCL's, and want a GPU each
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "rror" in line] or ["without a word"]
        raise RunError(f"{ranks} processes", f"ended with status {done.returncode}: {said[0]}")
    return json.loads(done.stdout.splitlines()[-1])


def make_row(ranks: int, parallel: Parallel, report: dict) -> dict:
    """The row of one layout, with counted bytes and those by theory."""
    expected = theory(MODEL, parallel, ranks, MICRO_BATCHES)
    counted = [Traffic(*counts) for counts in report["counts"]]
    timed = Measurement([1e3 * seconds for seconds in report["seconds"]])
    row = {"bench": "ranks", "case": "gloo", "provider": "fastling", "date": now()}
    row |= dataclasses.asdict(describe_machine(torch.device("cpu")))
    return row | {
        "ranks": ranks,
        "shard": parallel.shard,
        "replicate": parallel.replicate,
        "model": dataclasses.asdict(MODEL),
        "micro_batches": MICRO_BATCHES,
        "counted_bytes": dataclasses.asdict(counted[0]),
        "theory_bytes": dataclasses.asdict(expected),
        "equal": all(each == expected for each in counted),
        "tokens": report["tokens"],
        "milliseconds": timed.milliseconds,
        "spread": timed.spread,
        "tokens_per_s": 1e3 * report["tokens"] / timed.milliseconds,
    }


def measure(all_ranks: Sequence[int], steps: int, console: Console) -> Iterator[dict]:
    for ranks in all_ranks:
        for parallel in layouts(ranks):
            yield make_row(ranks, parallel, launch(ranks, parallel, steps))
        console.print(f"{ranks} process(es): done")


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if options.layout:
        report = train_and_count(Parallel(**json.loads(options.layout)), options.steps)
        if report:
            print(json.dumps(report))
        return 0
    rows = list(measure(options.ranks, options.steps, make_console()))
    print_rows(rows, make_table_console())
    add_rows(rows, options.out, command_line("ranks", arguments))
    return int(not all(row["equal"] for row in rows))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("python -m benchmarks.ranks", __doc__.splitlines()[0])
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of processes (default: 1 2 4 8)")
    add("--steps", type=int, default=5, help=f"timed steps, after {WARM_UP} more (default: %(default)s)")
    add("--out", type=Path, help="file of JSON lines to append to")
    add("--layout", help=argparse.SUPPRESS)  # passed to one process of several
    options = parser.parse_args(arguments)
    for name, value in (("--ranks", min(options.ranks)), ("--steps", options.steps)):
        if value < 1:
            raise UserError(name, f"must be >= 1: {value}")
    return options


def print_rows(rows: Sequence[dict], console: Console) -> None:
    columns = ("processes", "shard", "copies", "gathered", "scattered", "all-reduced", "theory", "tokens/s")
    table = Table(
        *columns, title="bytes of one process in one step; the processes share this machine's cores"
    )
    for row in rows:
        table.add_row(
            str(row["ranks"]),
            row["shard"],
            str(row["replicate"]),
            *(f"{bytes_:,}" for bytes_ in row["counted_bytes"].values()),
            "equal" if row["equal"] else str(row["theory_bytes"]),
            f"{row['tokens_per_s']:,.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    status = run_program(main)
    if dist.is_available() and "--layout" in sys.argv:
        leave(status)
    sys.exit(status)
