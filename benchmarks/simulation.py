"""Training on 8 to 1024 GPUs, simulated: python -m benchmarks.simulation --size 8b --results F.jsonl

Nothing here is measured but the step of one GPU: it is read from a row of benchmarks.train (--results), or
given (--milliseconds-a-step, --tokens-a-step). Every GPU makes the same micro-batches as that one. What the
network adds is counted bytes over stated bandwidths; benchmarks.ranks has found that as many are sent.
The assumptions are printed with the table and written into every row.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.ranks import GATHERED, REDUCED, layer_and_rest, padded_weights
from benchmarks.timing import add_rows, command_line, describe_machine, make_table_console, now
from benchmarks.training_case import SIZES, make_shape
from fastling.command_line import Parser, given_options, option_of, refuse_options
from fastling.errors import UserError, run_program
from fastling.evaluation.records import read_records
from fastling.model.llama_config import LlamaConfig
from fastling.training.work import Work

GPUS = [8, 16, 32, 64, 128, 256, 512, 1024]
NODE = 8
"""GPUs of a node."""
FORWARD = 1 / 3
"""Share of the forward in a layer's work: for each matrix product of it, the backward has two."""
ASSUMPTIONS = (
    "Simulated: only the step of one GPU was measured, and nothing on more than one.",
    "Every GPU makes the micro-batches of the measured step, each as fast as it did: none waits for another.",
    "The measured step is the optimizer's time, and work divided among layers and head by the FLOP of their "
    "matrices; a third of each is forward. The optimizer's time shrinks with a GPU's share of the weights.",
    "A gather of the next layer runs beside a layer's forward; in the backward, the next gather and the last "
    "reduction run beside it, one after the other, and do not slow it down: they cost what they take longer. "
    "The first gathers and the last reductions have nothing to run beside and are added.",
    "A collective takes bytes over the bandwidth of the slower of: a GPU's link inside its node; all network "
    "links of a node together, through which every byte from outside comes in once. Each of its steps, one "
    "for every other GPU of a node and for every other node, adds the latency.",
    "Weights travel in 2 bytes, gradients in 4, for every micro-batch; copies sum theirs once a step: as "
    "benchmarks.ranks counts them.",
    "A GPU alone moves 16 to 20 bytes of its memory for each weight and micro-batch, to round weights and to "
    "add gradients; one of several, 14, from what is gathered and to what is reduced: taken as equal.",
    "Linear is the same without communication: all work and the optimizer on a GPU's share.",
)


@dataclasses.dataclass(frozen=True)
class Links:
    """Bandwidths of one GPU in GB/s, in each direction, and the latency of each step of a collective."""

    node_gb_s: float = 450.0
    """NVLink."""
    network_gb_s: float = 50.0
    """400 Gb/s."""
    latency_microseconds: float = 5.0


@dataclasses.dataclass(frozen=True)
class Measured:
    """The measured step of one GPU."""

    milliseconds: float
    tokens: float
    optimizer_milliseconds: float = 0.0
    """How many of the milliseconds are the optimizer's."""
    micro_batches: int = 1
    supervised: float = 0.4
    """Share of the tokens that are supervised, which the head works on."""
    origin: str = "command line"
    device: str = "not told"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the model is laid out on the GPUs; neighbouring GPUs hold the shards of one copy."""

    gpus: int
    copies: int = 1
    keeps_weights: bool = False
    """parallel.shard: gradients: gathered weights are kept for the backward."""

    @property
    def shards(self) -> int:
        """GPUs of one copy."""
        return self.gpus // self.copies

    @property
    def nodes(self) -> int:
        """Nodes of all GPUs."""
        return max(1, self.gpus // NODE)


@dataclasses.dataclass(frozen=True)
class Group:
    """The GPUs that take part in one collective."""

    gpus: int
    nodes: int
    beside: int = 1
    """Number of such groups that use a node's network links at the same time."""

    def seconds(self, payload: float, links: Links, passes: int = 1) -> float:
        """Seconds of a gather or a scatter of `payload` bytes; an all-reduce has two `passes`."""
        in_node = self.gpus // self.nodes
        inside = (self.gpus - 1) / self.gpus * payload / links.node_gb_s if in_node > 1 else 0.0
        outside = (self.nodes - 1) / self.nodes * payload * self.beside / (NODE * links.network_gb_s)
        steps = (in_node - 1) + (self.nodes - 1)
        return passes * (max(inside, outside) / 1e9 + steps * links.latency_microseconds / 1e6)


def shard_group(layout: Layout) -> Group:
    """The GPUs that hold the shards of one copy."""
    return Group(layout.shards, max(1, layout.shards // NODE))


def copy_group(layout: Layout) -> Group:
    """The GPUs that hold the same shard; other GPUs of a node sum other shards at the same time."""
    nodes = layout.copies if layout.shards >= NODE else layout.nodes
    return Group(layout.copies, nodes, beside=min(layout.shards, NODE))


# A step ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """Seconds of one layer, or of all that is in no layer, in one micro-batch."""

    forward: float
    backward: float
    gather: float
    reduce: float
    gather_again: float
    """The gather for the backward; 0 if gathered weights are kept."""
    sum_copies: float = 0.0
    """The sum over copies of the model, once a step, after the last reduction."""

    def of_last_micro_batch(self) -> "Part":
        """The same in the last micro-batch of a step, where copies are summed as well."""
        return dataclasses.replace(self, reduce=self.reduce + self.sum_copies)


def step_parts(config: LlamaConfig, measured: Measured, layout: Layout, links: Links) -> tuple[Part, Part]:
    """The parts of a step: (one layer, all that is in no layer)."""
    work = Work(config)
    busy = (measured.milliseconds - measured.optimizer_milliseconds) / 1e3 / measured.micro_batches
    head_work = work.head_weights * measured.supervised
    layer_work = work.layer_weights - work.last_weights * (1 - measured.supervised)
    head = busy * head_work / (layer_work + head_work)
    seconds = ((busy - head) / config.num_hidden_layers, head)
    found = []
    for shapes, compute in zip(layer_and_rest(config), seconds, strict=True):
        weights = padded_weights(shapes, layout.shards)
        gather = shard_group(layout).seconds(GATHERED * weights, links)
        reduce = shard_group(layout).seconds(REDUCED * weights, links)
        sum_copies = 0.0
        if layout.copies > 1:
            sum_copies = copy_group(layout).seconds(REDUCED * weights / layout.shards, links, passes=2)
        again = 0.0 if layout.keeps_weights else gather
        found.append(Part(compute * FORWARD, compute * (1 - FORWARD), gather, reduce, again, sum_copies))
    return found[0], found[1]


def micro_batch_seconds(layer: Part, rest: Part, layers: int) -> float:
    """Seconds of a micro-batch: the forward and then the backward of all layers and the head.

    The rest is gathered once, first of all. Its gradient, to which the embedding's is added at the very end,
    is reduced last.
    """
    forward = rest.gather + layer.gather + (layers - 1) * max(layer.forward, layer.gather) + layer.forward
    backward = max(rest.backward, layer.gather_again)  # the head's, while the last layer is gathered
    for number in range(layers):
        beside = layer.gather_again if number < layers - 1 else 0.0
        beside += layer.reduce if number > 0 else 0.0
        backward += max(layer.backward, beside)
    return forward + rest.forward + backward + layer.reduce + rest.reduce


@dataclasses.dataclass(frozen=True)
class Simulated:
    """A simulated step."""

    seconds: float
    linear_seconds: float
    hidden_tokens: float
    """Tokens of a micro-batch from which on the layers hide all communication that can run beside them."""


def simulate(config: LlamaConfig, measured: Measured, layout: Layout, links: Links) -> Simulated:
    """The step of a layout, from the measured step of one GPU."""
    layer, rest = step_parts(config, measured, layout, links)
    optimizer = measured.optimizer_milliseconds / 1e3 / layout.shards
    busy = (measured.milliseconds - measured.optimizer_milliseconds) / 1e3
    last_layer, last_rest = layer.of_last_micro_batch(), rest.of_last_micro_batch()
    layers = config.num_hidden_layers
    seconds = (measured.micro_batches - 1) * micro_batch_seconds(layer, rest, layers)
    seconds += micro_batch_seconds(last_layer, last_rest, layers)
    longer = max(layer.gather / layer.forward, (layer.gather_again + last_layer.reduce) / layer.backward)
    hidden = longer * measured.tokens / measured.micro_batches
    return Simulated(seconds + optimizer, busy + optimizer, hidden)


# The measured step ----------------------------------------------------------------------------------


def read_measured(path: Path, size: str, provider: str) -> Measured:
    """The step of the last row of this size and provider. Raises UserError if there is none of a GPU."""
    wanted = {"bench": "train", "case": size, "provider": provider, "status": "measured"}
    found = [(row, where) for where, row in read_records(path) if wanted.items() <= row.items()]
    if not found:
        raise UserError(
            str(path),
            f"holds no measured row of {provider}, {size}",
            "python -m benchmarks.train writes them.",
        )
    payload, where = found[-1]
    if payload.get("device") == "cpu":
        raise UserError(where, "was measured on a CPU, which says nothing about GPUs", "Measure on a GPU.")
    try:
        measured = Measured(
            milliseconds=float(payload["milliseconds"]),
            tokens=float(payload["tokens_per_s"] * payload["milliseconds"] / 1e3),
            optimizer_milliseconds=float(payload["parts"].get("optimizer", 0.0)),
            micro_batches=int(payload["settings"].get("micro_batches", 1)),
            supervised=float(payload["supervised_tokens_per_s"] / payload["tokens_per_s"]),
            origin=f"{path.name}: {provider}, {payload.get('date')}, commit {payload.get('commit')}",
            device=str(payload["device"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(where, f"is no row that benchmarks.train wrote: {error!r}") from None
    return check_measured(measured, where)


def check_measured(measured: Measured, where: str) -> Measured:
    """Return the step. Raises UserError for numbers that cannot be right."""
    for name in ("milliseconds", "tokens", "micro_batches"):
        if not 0 < getattr(measured, name) < float("inf"):
            raise UserError(where, f"{name} must be > 0: {getattr(measured, name)}")
    if not 0 <= measured.optimizer_milliseconds < measured.milliseconds:
        what = f"the optimizer's milliseconds must be a part of the step's: {measured.optimizer_milliseconds}"
        raise UserError(where, what)
    if not 0 <= measured.supervised <= 1:
        raise UserError(where, f"supervised must be a share (0 to 1): {measured.supervised}")
    return measured


def measured_of(options: argparse.Namespace) -> Measured:
    """The step that the options give. Raises UserError if they give none, or two."""
    if options.results:
        refuse_options(options, STEP_OPTIONS, "has no effect beside --results", "Remove one of the two.")
        return read_measured(options.results, options.size, options.provider)
    given = given_options(options, STEP_OPTIONS)
    if not {"milliseconds_a_step", "tokens_a_step"} <= given.keys():
        raise UserError(
            "command line",
            "says nothing about the step of one GPU, and there is no default: it has to be measured",
            "Give --results with a file of benchmarks.train, or --milliseconds-a-step and --tokens-a-step.",
        )
    named = {STEP_OPTIONS[option]: value for option, value in given.items()}
    return check_measured(Measured(**named), "command line")


STEP_OPTIONS = {
    "milliseconds_a_step": "milliseconds",
    "tokens_a_step": "tokens",
    "optimizer_milliseconds": "optimizer_milliseconds",
    "micro_batches": "micro_batches",
    "supervised": "supervised",
}


# From the command line to the table -----------------------------------------------------------------


def make_layouts(replicate: str, shard: str) -> Iterator[Layout]:
    """A layout for every number of GPUs that the copies can share; with "nodes" each node has a copy."""
    for gpus in GPUS:
        copies = gpus // NODE if replicate == "nodes" else int(replicate)
        if gpus % copies == 0:
            yield Layout(gpus, copies, keeps_weights=shard == "gradients")


def make_rows(size: str, measured: Measured, layouts: Sequence[Layout], links: Links) -> Iterator[dict]:
    machine = describe_machine(torch.device("cpu"))
    for layout in layouts:
        found = simulate(make_shape(size), measured, layout, links)
        tokens = measured.tokens * layout.gpus
        yield {
            "bench": "simulation",
            "case": size,
            "provider": "fastling",
            "simulated": True,
            "date": now(),
            "commit": machine.commit,
            "dirty": machine.dirty,
            "gpus": layout.gpus,
            "nodes": layout.nodes,
            "replicate": layout.copies,
            "shard": "gradients" if layout.keeps_weights else "full",
            "simulated_milliseconds": 1e3 * found.seconds,
            "linear_milliseconds": 1e3 * found.linear_seconds,
            "simulated_tokens_per_s": tokens / found.seconds,
            "share_of_linear": found.linear_seconds / found.seconds,
            "hidden_micro_batch_tokens": found.hidden_tokens,
            "measured": dataclasses.asdict(measured),
            "links": dataclasses.asdict(links),
            "assumptions": ASSUMPTIONS,
        }


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    measured = measured_of(options)
    links = Links(options.node_bandwidth, options.network_bandwidth, options.latency_microseconds)
    rows = list(
        make_rows(options.size, measured, list(make_layouts(options.replicate, options.shard)), links)
    )
    print_rows(rows, make_table_console())
    add_rows(rows, options.out, command_line("simulation", arguments))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("python -m benchmarks.simulation", __doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="8b", help="size of the model (default: %(default)s)")
    add("--results", type=Path, help="rows of benchmarks.train, of a step on one GPU")
    add("--provider", default="fastling", help="trainer whose row is used (default: %(default)s)")
    add("--milliseconds-a-step", type=float, help="time of a step on one GPU, in place of --results")
    add("--tokens-a-step", type=float, help="tokens of that step")
    add("--micro-batches", type=int, help="micro-batches of that step (default: 1)")
    add("--optimizer-milliseconds", type=float, help="the optimizer's part of the time (default: 0)")
    add("--supervised", type=float, help="share of supervised tokens (default: 0.4)")
    links = Links()
    add("--node-bandwidth", type=float, default=links.node_gb_s, help="GB/s per GPU, each way (%(default)s)")
    add("--network-bandwidth", type=float, default=links.network_gb_s, help="GB/s per GPU (%(default)s)")
    add("--latency-microseconds", type=float, default=links.latency_microseconds, help="default: %(default)s")
    add("--replicate", default="1", help="copies of the sharded model (1), or nodes: one per node")
    add("--shard", choices=("full", "gradients"), default="full", help="parallel.shard (%(default)s)")
    add("--out", type=Path, help="file of JSON lines to append to")
    options = parser.parse_args(arguments)
    if options.replicate not in ("nodes", *(str(2**power) for power in range(11))):
        raise UserError("--replicate", f"is neither a power of 2 up to 1024 nor nodes: {options.replicate}")
    for name in ("node_bandwidth", "network_bandwidth"):
        if not getattr(options, name) > 0:
            raise UserError(option_of(name), f"must be > 0: {getattr(options, name)}")
    if not 0 <= options.latency_microseconds < float("inf"):
        raise UserError("--latency-microseconds", f"must be >= 0: {options.latency_microseconds}")
    return options


def print_rows(rows: Sequence[dict], console: Console) -> None:
    first = rows[0]
    measured, links = first["measured"], first["links"]
    columns = ("GPUs", "copies", "tokens/s", "ms a step", "of linear", "hidden from")
    title = f"{first['case']}, SIMULATED from one GPU ({measured['device']}), shard {first['shard']}"
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(
            f"{row['gpus']:,}",
            str(row["replicate"]),
            f"{row['simulated_tokens_per_s']:,.0f}",
            f"{row['simulated_milliseconds']:,.0f}",
            f"{row['share_of_linear']:.1%}",
            f"{row['hidden_micro_batch_tokens']:,.0f} tokens",
        )
    console.print(table)
    console.print("hidden from: tokens of a micro-batch on each GPU from which the layers hide what they can")
    console.print(f"measured: {json.dumps(measured)}\nlinks: {json.dumps(links)}")
    for sentence in ASSUMPTIONS:
        console.print(f"- {sentence}")


if __name__ == "__main__":
    sys.exit(run_program(main))
