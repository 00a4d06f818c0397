"""How the cost of a step grows: python -m benchmarks.growth [--size demo] [--steps 5] --out F.jsonl

The steps are those of `fastling train`, on random tokens, 40 % of them supervised. One thing grows at a time:

- sequence length: each micro-batch is one document, and a step has as many as fit, at least one;
- documents in a pack of 8192 tokens: the same tokens, split into more and more documents;
- vocabulary: packs of four documents of 2048 tokens.

Every point runs in its own process, and so has its own peak memory. The points of a line take turns, one step
each, so that a busy machine slows all of them. Beside the time is the exact causal work of the step in FLOPs:
where `time / work` stays at 1, time grows as the work does. Use --alone if memory holds only one model.
"""

import argparse
import dataclasses
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Measurement, add_rows, command_line, describe_machine, make_table_console, now
from benchmarks.trainers import DEVICE, Finished, Gate, draw_on_device
from benchmarks.training_case import SIZES, make_shape
from benchmarks.worker import Result, Worker
from fastling import ops
from fastling.command_line import Parser
from fastling.config import Config, Optimizer
from fastling.data.batches import IGNORED, Batch, Step
from fastling.errors import RunError, UserError, run_program
from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig
from fastling.terminal import make_console
from fastling.training.build import build_model
from fastling.training.optimizer import make_optimizer
from fastling.training.parallel import World, compute_dtype, open_world
from fastling.training.update import Updater
from fastling.training.work import Work

SUPERVISED = 0.4
"""Share of the tokens that are supervised."""
PACK = 8192
"""Tokens of a pack, unless it is the sequence length that grows."""
STEP_TOKENS = {"cuda": 32768, "cpu": 8192}
WARM_UP = 1
"""Steps whose time does not count."""
SECONDS = 15.0
"""After this many timed seconds a point makes no further steps."""
LENGTHS = [512, 1024, 2048, 4096, 8192, 16384, 32768]
DOCUMENTS = [1, 2, 4, 8, 16, 32, 64, 128]
VOCABULARIES = [32000, 64000, 96000, 128256, 152064]


@dataclasses.dataclass(frozen=True)
class Point:
    """One model and one step, whose cost is measured."""

    size: str
    line: str
    """What grows: points are compared along a line."""
    value: int
    document_tokens: int
    documents: int
    """Documents in a micro-batch."""
    micro_batches: int
    vocab_size: int

    @property
    def shape(self) -> LlamaConfig:
        return make_shape(self.size, vocab_size=self.vocab_size, max_position_embeddings=self.document_tokens)

    @property
    def lengths(self) -> list[int]:
        """Tokens of every document of a micro-batch."""
        return [self.document_tokens] * self.documents

    def step(self) -> Step:
        return random_step(self.lengths, self.micro_batches, self.vocab_size)


def make_points(size: str, step_tokens: int) -> list[list[Point]]:
    """The points, line by line."""
    vocab_size, packs = make_shape(size).vocab_size, max(1, step_tokens // PACK)
    lengths = [
        Point(size, "sequence length", length, length, 1, max(1, step_tokens // length), vocab_size)
        for length in LENGTHS
    ]
    documents = [
        Point(size, "documents in a pack", number, PACK // number, number, packs, vocab_size)
        for number in DOCUMENTS
    ]
    vocabularies = [Point(size, "vocabulary", rows, PACK // 4, 4, packs, rows) for rows in VOCABULARIES]
    return [lengths, documents, vocabularies]


# Steps without data ---------------------------------------------------------------------------------


def supervised_of(length: int) -> int:
    """Supervised positions of a document; the last position predicts nothing."""
    return min(round(SUPERVISED * length), length - 1)


def random_step(lengths: Sequence[int], micro_batches: int, vocab_size: int, ranks: int = 1) -> Step:
    """One rank's share of a step in which every micro-batch of every rank has documents of these lengths."""
    total = ranks * micro_batches
    supervised = total * sum(map(supervised_of, lengths))
    return Step(
        batches=[random_batch(lengths, vocab_size, supervised) for _ in range(micro_batches)],
        tokens=total * sum(lengths),
        supervised_tokens=supervised,
        packs=total,
        squared_tokens=total * sum(length**2 for length in lengths),
    )


def random_batch(lengths: Sequence[int], vocab_size: int, supervised: int) -> Batch:
    """Documents of random tokens whose ends are supervised, as answers are.

    `supervised` counts the supervised tokens of the whole step.
    """
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    tokens = torch.randint(vocab_size, (sum(lengths),))
    labels = torch.full_like(tokens, IGNORED)
    for length, stop in zip(lengths, cu_seqlens[1:].tolist(), strict=True):
        start = stop - 1 - supervised_of(length)
        labels[start : stop - 1] = tokens[start + 1 : stop]
    loss_index = torch.nonzero(labels != IGNORED).flatten()
    return Batch(
        tokens=tokens,
        labels=labels,
        positions=torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths]),
        cu_seqlens=cu_seqlens.int(),
        max_seqlen=max(lengths),
        lengths=list(lengths),
        loss_index=loss_index,
        weights=torch.full((len(loss_index),), 1 / supervised),
        sources=torch.zeros_like(loss_index),
        pairs=torch.zeros_like(loss_index),
    )


def make_updater(config: Config, shape: LlamaConfig, world: World) -> Updater:
    """An Updater as in `fastling train`, but without a run."""
    dtype = compute_dtype(config)
    ops.configure(config.model.kernels, config.model.attention, device=world.device, dtype=dtype)
    model = build_model(config, shape, world)
    optimizer = make_optimizer(model, config.optimizer)
    return Updater(config, world, model, optimizer, num_sources=1, num_steps=1)


STEADY = Optimizer(schedule="constant", warmup_ratio=0.0)
"""A constant learning rate, so that a step does not depend on the length of a run."""


def make_steps(point: Point) -> None:
    """Make steps of a point whenever they are asked for; the main function of a point's own process."""
    gate = Gate()
    if DEVICE.type == "cuda":
        Llama.reset_parameters = draw_on_device  # on a CPU, billions of weights take minutes
    config = Config(optimizer=STEADY)
    with open_world(config) as world:
        updater, step = make_updater(config, point.shape, world), point.step()
        gate.say(settings={}, versions={})
        number = 0
        try:
            while True:
                gate.begin()
                number += 1
                _, loss, _ = updater.update(step, number).wait()
                gate.end(loss)
        except Finished:
            return


# Measuring ------------------------------------------------------------------------------------------


class Child(Worker):
    """The process of a point."""

    def __init__(self, point: Point, folder: Path):
        name, described = f"{point.line} {point.value}", json.dumps(dataclasses.asdict(point))
        super().__init__(name, folder / f"{name}.log", ["benchmarks.growth", "--point", described], {})

    def try_to(self, act: Callable[..., object], *arguments: int) -> None:
        """Call `act`, unless the process has ended. If it ends now, perhaps out of memory, keep the error."""
        if self.result.error is None:
            try:
                act(*arguments)
            except RunError as error:
                self.result.error = error.what


def measure_together(points: Sequence[Point], steps: int, folder: Path) -> list[Result]:
    """Measure the points of a line, interleaved in a new random order for every step."""
    children = [Child(point, folder) for point in points]
    try:
        for child in children:
            child.try_to(child.start)
            child.try_to(child.make_steps, WARM_UP)
        order = random.Random(0)
        for _ in range(steps):
            for child in order.sample(children, len(children)):
                if sum(seconds_of(child.result)) < SECONDS:
                    child.try_to(child.make_steps, 1)
        for child in children:
            child.try_to(child.end)
    finally:
        for child in children:
            child.stop()
    return [child.result for child in children]


def measure(lines: Iterable[Sequence[Point]], steps: int, alone: bool, console: Console) -> Iterator[dict]:
    with tempfile.TemporaryDirectory() as scratch:
        for points in lines:
            groups = [[point] for point in points] if alone else [points]
            results = []
            for group in groups:
                results += measure_together(group, steps, Path(scratch))
            console.print(f"{points[0].line}: done")
            yield from map(make_row, points, results)


def seconds_of(result: Result) -> list[float]:
    """Of the timed steps."""
    return [step["seconds"] for step in result.steps[WARM_UP:]]


def make_row(point: Point, result: Result) -> dict:
    """The row of a point."""
    row = {"bench": "growth", "case": point.size, "provider": "fastling", "date": now()}
    row |= dataclasses.asdict(describe_machine(DEVICE)) | dataclasses.asdict(point)
    if result.error:
        return row | {"status": result.error}
    timed = Measurement([1e3 * seconds for seconds in seconds_of(result)])
    median = timed.milliseconds / 1e3
    lengths = point.lengths * point.micro_batches
    tokens, supervised = sum(lengths), sum(map(supervised_of, lengths))
    needed = Work(point.shape).needed(tokens, supervised, sum(length**2 for length in lengths))
    return row | {
        "status": "measured",
        "steps": len(timed.samples),
        "tokens": tokens,
        "supervised_tokens": supervised,
        "milliseconds": timed.milliseconds,
        "spread": timed.spread,
        "tokens_per_s": tokens / median,
        "needed_tflop": needed / 1e12,
        "tflop_per_s": needed / median / 1e12,
        "memory_gib": result.peak_gib,
    }


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if options.point:
        make_steps(Point(**json.loads(options.point)))
        return 0
    lines = make_points(options.size, STEP_TOKENS[DEVICE.type])
    rows = list(measure(lines, options.steps, options.alone, make_console()))
    print_rows(rows, make_table_console())
    add_rows(rows, options.out, command_line("growth", arguments))
    return int(any(row["status"] != "measured" for row in rows))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("python -m benchmarks.growth", __doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="demo", help="size of the model (default: %(default)s)")
    most = f"timed of each point, after {WARM_UP}, in at most {SECONDS:.0f} s or one (default: %(default)s)"
    add("--steps", type=int, default=5, help=most)
    add("--alone", action="store_true", help="one point after another, each alone on the machine")
    add("--out", type=Path, help="file of JSON lines to append to")
    add("--point", help=argparse.SUPPRESS)  # passed to a point's own process
    options = parser.parse_args(arguments)
    if options.steps < 1:
        raise UserError("--steps", f"must be >= 1: {options.steps}")
    return options


def print_rows(rows: Sequence[dict], console: Console) -> None:
    """Print a table for each line; its last column is 1 if time grew as work did from the first point."""
    for line in dict.fromkeys(row["line"] for row in rows):
        title = f"{rows[0]['case']} on {rows[0]['device']}, {SUPERVISED:.0%} of tokens supervised"
        columns = (line, "tokens/s", "tokens", "ms a step", "TFLOP", "TFLOP/s", "GiB", "time / work")
        table = Table(*columns, title=title)
        first = None
        for row in (row for row in rows if row["line"] == line):
            if row["status"] != "measured":
                table.add_row(f"{row['value']:,}", row["status"])
                continue
            first = first or row
            table.add_row(
                f"{row['value']:,}",
                f"{row['tokens_per_s']:,.0f}",
                f"{row['tokens']:,}",
                f"{row['milliseconds']:,.0f} ± {row['spread'] / 2:,.0f}",
                f"{row['needed_tflop']:.3f}",
                f"{row['tflop_per_s']:.3f}",
                f"{row['memory_gib']:.2f}",
                f"{first['tflop_per_s'] / row['tflop_per_s']:.2f}",
            )
        console.print(table)


if __name__ == "__main__":
    sys.exit(run_program(main))
