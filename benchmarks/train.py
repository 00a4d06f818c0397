"""Training beside its peers: python -m benchmarks.train [--size 41m] [--data F --tokenizer F] --out F.jsonl

Every trainer starts from the same weights and takes the same packs in the same order, each in a process of
its own. On a CPU they take turns, a few steps at a time, so that a busy machine is busy for all. A trainer
whose loss after the last step is not the first one's does other work: it is named, and its time is not
reported.

With --ladder fastling is put beside itself, from plain packing to everything it has. The rungs of a ladder
run one after another, and so does all on a GPU, since a large model leaves no room for a second: each one's
row is written when it is done, and what cannot fit is not started.
"""

import argparse
import dataclasses
import math
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.room import lacks_room
from benchmarks.timing import (
    CpuTimer,
    CudaTimer,
    Machine,
    Measurement,
    add_rows,
    machine_with_rates,
    make_table_console,
    now,
)
from benchmarks.trainers import LADDER, PEERS, TRAINERS, Trainer
from benchmarks.training_case import SIZES, Case, check_case, make_case
from benchmarks.worker import Result, TrainerWorker
from fastling.command_line import Parser
from fastling.errors import RunError, UserError, run_program
from fastling.prepare import Prepared
from fastling.terminal import make_console
from fastling.training.work import Work

WARM_UP = 2
"""Steps whose time does not count."""
TURN = 3
"""Steps that a trainer makes before the next one's turn."""
TOLERANCE = 0.02
"""Of a loss at the last step, as a share of ours: bf16 rounds differently in another order."""


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    console = make_console()
    case = Case(
        size=options.size,
        data=options.data,
        tokenizer=options.tokenizer,
        template=options.template,
        sequence_length=options.sequence_length,
        batch_tokens=options.batch_tokens,
        micro_batch_tokens=options.micro_batch_tokens or options.batch_tokens,
        steps=options.steps,
        precision=options.precision,
        peers=not options.ladder,
        processes=options.processes,
    )
    check_case(case)
    names = choose(options.trainers, LADDER if options.ladder else PEERS, case.processes)
    machine, rows = measure_machine(), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepared = make_case(case, folder)
        counts = count(prepared, case)
        if options.ladder or machine.device != "cpu":
            share = counts.supervised / counts.tokens

            def refuse(name: str) -> str | None:
                return lacks_room(TRAINERS[name], case, folder, share, machine.gpu_gib)

            results = one_by_one(names, folder, case, console, refuse)
        else:
            results = take_turns(names, folder, case, console).items()
        for row in make_rows(case, counts, results, Work(case.llama_config(folder)), machine):
            add_rows([row], options.out)
            rows.append(row)
    print_rows(rows, make_table_console())
    return int(any(row["status"] != "measured" for row in rows))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("python -m benchmarks.train", __doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="41m", help="size of the model (default: %(default)s)")
    add("--data", default="fastling:demo/train.jsonl", help="conversations (default: the demo's)")
    add("--tokenizer", default="fastling:demo/tokenizer.model", help="tokenizer (default: the demo's)")
    add("--template", default="bayling", help="template (default: %(default)s)")
    add("--sequence-length", type=int, default=2048, help="tokens in a pack (default: %(default)s)")
    add("--batch-tokens", type=int, default=8192, help="tokens of a step (default: %(default)s)")
    add("--micro-batch-tokens", type=int, help="tokens at once, for fastling (default: a step's)")
    add("--steps", type=int, default=20, help="steps of every trainer (default: %(default)s)")
    add("--precision", choices=("bf16", "fp32"), default="bf16", help="default: %(default)s")
    add("--processes", type=int, default=1, help="sharing a step (default: %(default)s)")
    add("--trainers", help=f"some of: {'; '.join(PEERS)} (default: what can run here)")
    add("--ladder", action="store_true", help="fastling alone, one feature more at each rung")
    add("--out", type=Path, help="file of JSON lines to append to")
    options = parser.parse_args(arguments)
    if options.steps <= WARM_UP:
        raise UserError("--steps", f"must be > {WARM_UP}, which warm up: {options.steps}")
    if options.processes < 1:
        raise UserError("--processes", f"must be 1 or more: {options.processes}")
    return options


def choose(wanted: str | None, known: Mapping[str, Trainer], processes: int = 1) -> list[str]:
    """Trainers by name; those that can run here where none is named. The first of all is always one."""
    if wanted is None:
        return [name for name in known if missing(name, processes) is None]
    names = [name.strip() for name in wanted.split(";")]
    for name in names:
        if name not in known:
            raise UserError("--trainers", f"no such trainer: {name}", "Names are separated by semicolons.")
        if reason := missing(name, processes):
            raise UserError("--trainers", f"{name} cannot run here: {reason}")
    first = next(iter(known))
    return [first, *(name for name in names if name != first)]


def missing(name: str, processes: int) -> str | None:
    trainer = TRAINERS[name]
    if trainer.is_alone and processes > 1:
        return "it runs in one process only"
    if trainer.needs_gpu and not torch.cuda.is_available():
        return "it needs a GPU"
    return next(
        (f"{package} is not installed" for package in trainer.packages if find_spec(package) is None), None
    )


# Runs -----------------------------------------------------------------------------------------------


def take_turns(names: Sequence[str], folder: Path, case: Case, console: Console) -> dict[str, Result]:
    """All trainers, a few steps at a time. Raises RunError for one that ends before it should."""
    workers = {name: TrainerWorker(name, folder, case.processes) for name in names}
    try:
        for name, worker in workers.items():
            console.print(f"starting {name}")
            worker.start()
        for first in range(0, case.steps, TURN):
            for worker in workers.values():
                worker.make_steps(min(TURN, case.steps - first))
            console.print(f"{min(first + TURN, case.steps)} of {case.steps} steps")
        return {name: worker.end() for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.stop()


def one_by_one(
    names: Sequence[str],
    folder: Path,
    case: Case,
    console: Console,
    refuse: Callable[[str], str | None] = lambda name: None,
) -> Iterator[tuple[str, Result]]:
    """Each alone, as it ends; one that ends early, or that `refuse` has a reason against, holds up nobody."""
    for name in names:
        reason = refuse(name)
        result = Result(error=reason) if reason else run_alone(name, folder, case)
        console.print(f"{name}: {result.error or 'done'}", style="red" if result.error else "")
        yield name, result


def run_alone(name: str, folder: Path, case: Case) -> Result:
    worker = TrainerWorker(name, folder, case.processes)
    try:
        worker.start()
        worker.make_steps(case.steps)
        return worker.end()
    except RunError as error:
        return Result(error=error.what)
    finally:
        worker.stop()


# Numbers --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Counts:
    """Tokens of one step, on average."""

    tokens: float
    supervised: float
    squared: float
    """Sum of squared lengths of conversations."""


def count(prepared: Prepared, case: Case) -> Counts:
    documents = prepared.plan.documents
    lengths = prepared.training.document_tokens[documents].astype(float)
    supervised = prepared.training.document_supervised[documents]
    sums = (lengths.sum(), supervised.sum(), (lengths**2).sum())
    return Counts(*(float(total) / case.steps for total in sums))


def measure_machine() -> Machine:
    """Where this runs, with its own rates; a process that ends leaves the trainers the whole GPU."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure_machine).result()


def _measure_machine() -> Machine:
    is_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if is_gpu else "cpu")
    sizes = (
        {"copy_bytes": 2**30, "matrix_size": 8192} if is_gpu else {"copy_bytes": 2**27, "matrix_size": 2048}
    )
    return machine_with_rates(CudaTimer() if is_gpu else CpuTimer(), device, samples=15, **sizes)


def make_rows(
    case: Case, counts: Counts, results: Iterable[tuple[str, Result]], work: Work, machine: Machine
) -> Iterator[dict]:
    """One row a trainer, JSON as it is kept, as soon as it has its result."""
    needed = work.needed(counts.tokens, counts.supervised, counts.squared)
    usual = work.usual_count(counts.tokens, case.sequence_length)
    # GPUs have a rate each, processes on a CPU share one.
    rate = machine.matrix_tflops * 1e12 * (1 if machine.device == "cpu" else case.processes)
    names = {"data": Path(case.data).name, "tokenizer": Path(case.tokenizer).name}
    described = dataclasses.asdict(case) | {"learning_rate": case.learning_rate} | names
    expected = None  # the first one's loss
    for name, result in results:
        row = {"bench": "train", "case": case.size, "provider": name, "date": now()}
        row |= dataclasses.asdict(machine)
        row |= {"run": described, "settings": result.settings, "versions": result.versions}
        if result.error:
            yield row | {"status": result.error}
            continue
        row |= {"loss_at_step_1": result.steps[0]["loss"], "loss": result.steps[-1]["loss"]}
        if not math.isfinite(row["loss"]):  # which JSON has no word for
            yield row | {"status": f"its loss became {row['loss']}", "loss": None}
            continue
        expected = row["loss"] if expected is None else expected
        if abs(row["loss"] - expected) > TOLERANCE * expected:
            words = f"other work: its loss is {row['loss']:.4f}, the first one's {expected:.4f}"
            yield row | {"status": words}
            continue
        steps = Measurement([1e3 * step["seconds"] for step in result.steps[WARM_UP:]])
        median = steps.milliseconds / 1e3
        row |= {"status": "measured", "milliseconds": steps.milliseconds, "spread": steps.spread}
        row |= {"tokens_per_s": counts.tokens / median, "memory_gib": result.peak_gib}
        row |= {"supervised_tokens_per_s": counts.supervised / median}
        row |= {"padded_tokens_per_s": case.batch_tokens / median}
        row |= {"tflop_per_s": needed / median / 1e12, "parts": parts_of(result) | result.communication}
        row |= {"mfu": needed / median / rate, "mfu_usual_count": usual / median / rate}
        yield row


def parts_of(result: Result) -> dict[str, float]:
    """Median milliseconds of each part of a step, for a trainer that tells them."""
    told = [step["parts"] for step in result.steps[WARM_UP:]]
    return {name: 1e3 * statistics.median(parts[name] for parts in told) for name in told[0]}


def print_rows(rows: Sequence[dict], console: Console) -> None:
    columns = (
        "supervised tokens/s",
        "tokens/s",
        "ms a step",
        "GiB",
        "time / first",
        "MFU (usual count)",
        "loss",
    )
    table = Table("trainer", *columns, title=f"{rows[0]['case']} on {rows[0]['device']}, the same packs")
    first = next((row for row in rows if row["status"] == "measured"), None)
    for row in rows:
        if row["status"] != "measured":
            table.add_row(row["provider"], row["status"])
            continue
        table.add_row(
            row["provider"],
            f"{row['supervised_tokens_per_s']:,.0f}",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['milliseconds']:,.0f} ± {row['spread'] / 2:,.0f}",
            f"{row['memory_gib']:.2f}",
            f"{row['milliseconds'] / first['milliseconds']:.2f}",
            f"{row['mfu']:.1%} ({row['mfu_usual_count']:.1%})",
            f"{row['loss']:.4f}",
        )
    console.print(table)
    console.print(f"MFU is of {rows[0]['matrix_tflops']:.2f} TFLOP/s, this machine's own matrix product")
    for row in rows:
        console.print(f"{row['provider']}: {row['settings']} {row['versions']}", style="dim")
        for name, milliseconds in row.get("parts", {}).items():
            console.print(f"  {name}: {milliseconds:,.0f} ms, {milliseconds / row['milliseconds']:.1%}")


if __name__ == "__main__":
    sys.exit(run_program(main))
