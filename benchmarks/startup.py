"""From command to first step: python -m benchmarks.startup [--config F | --load 8b --ranks 8] --out F.jsonl

Without --load, a run is started as `fastling train` starts it, with a run folder and a store of its own, and
once more with the store that the first has made; each in a process of its own, which ends after its first
optimizer step. Seconds are counted from before the process is there.

With --load, rank 0 of so many, which holds no less than any other, lays out a model of that size and fills it
from a Hugging Face folder of bf16 shards, alone on a CPU: no collective is called before the first step. The
shards are zeros that lie on no disk (sparse files), so what is timed is everything but the disk.
"""

import argparse
import dataclasses
import functools
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.timing import Measurement, add_rows, command_line, describe_machine, make_table_console, now
from benchmarks.training_case import SIZES, make_shape
from fastling import train
from fastling.command_line import Parser, check_positive
from fastling.config import Config
from fastling.errors import RunError, UserError, leave, run_program
from fastling.export import Export
from fastling.files import write_text
from fastling.model.huggingface import config_json, hf_shapes, load_weights, read_config
from fastling.model.llama import Llama, local_rows
from fastling.model.llama_config import LlamaConfig
from fastling.model.safetensors_folder import SafetensorsFolder
from fastling.terminal import make_console
from fastling.training.build import build_model
from fastling.training.parallel import World
from fastling.training.update import Updater

IMPORTS, REST = "interpreter and imports", "rest"
# What a run calls before its first step is done, in order, by the attribute under which it finds it.
PARTS = {
    "configuration": [(train, "build_parser"), (train, "parse")],
    "data preparation": [(train, "prepare_data")],
    "proof of isolation": [(train, "prove_isolation")],
    "rehearsal of the export": [(train, "make_export"), (Export, "rehearse")],
    "laying out and loading the model": [(train, "build_model")],
    "held-out losses and answers before the first step": [(train, "HeldOut"), (train.Run, "_evaluate")],
    "first step": [(Updater, "update")],
}
SHARD_BYTES = 5 * 10**9  # Hugging Face's own limit
ZEROS = "zeros in sparse files, which lie on no disk"


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--child"]:
        return child(*arguments[1:])
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.load else "cpu")
    same = {"bench": "startup", "date": now(), **dataclasses.asdict(describe_machine(device))}
    with tempfile.TemporaryDirectory() as scratch:
        measure = measure_load if options.load else measure_runs
        rows = [same | row for row in measure(options, Path(scratch), make_console())]
    (print_load if options.load else print_runs)(rows, make_table_console())
    add_rows(rows, options.out, command_line("startup", arguments))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("python -m benchmarks.startup", __doc__.splitlines()[0])
    add = parser.add_argument
    add("--config", help="config of the run to start (default: the demo's)")
    add("--load", choices=SIZES, help="load a model of this size in place of a run")
    add("--ranks", type=int, help="with --load: processes that share the model (default: 1)")
    add("--rounds", type=int, default=3, help="runs, whose medians are reported (default: %(default)s)")
    add("--out", type=Path, help="file of JSON lines to append to")
    options = parser.parse_args(arguments)
    if options.load and options.config:
        raise UserError(
            "--config", f"has no effect beside --load: {options.config}", "Remove one of the two."
        )
    if options.ranks is not None and not options.load:
        raise UserError("--ranks", f"has no effect without --load: {options.ranks}", "Add --load SIZE.")
    options.ranks = 1 if options.ranks is None else options.ranks
    check_positive(options, ("ranks", "rounds"))
    return options


def hear(kind: str, *arguments: str) -> dict:
    """The result of a child process. Raises UserError or RunError with the message of its failure."""
    command = [sys.executable, "-m", "benchmarks.startup", "--child", kind, str(time.monotonic()), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise refusal(done.returncode, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def refusal(status: int, said: str) -> UserError:
    """A child's failure as our own: what was wrong, and how to fix it where it says so."""
    _, found, words = said.strip().rpartition("error: ")
    if not found:  # a traceback, or not even that
        return RunError("the start", f"ended early: {words.splitlines()[-1] if words else 'without a word'}")
    message, _, fix = words.partition("\n")
    where, _, what = message.partition(": ")
    return (UserError if status == UserError.exit_status else RunError)(where, what, fix.strip())


def child(kind: str, started: str, *arguments: str) -> None:
    """Make one measurement and print it as a line of JSON; the main function of a child process."""
    if kind == "run":
        told = start_run(float(started), arguments)
    else:
        told = load_share(Path(arguments[0]), *map(int, arguments[1:]))
    print(json.dumps(told))


# The start of a run ---------------------------------------------------------------------------------


class FirstStepDone(Exception):
    """The first step is done, after which a measured run ends."""


class Clock:
    """Seconds by part, since a time of the clock that processes share. Parts do not overlap."""

    def __init__(self, started: float):
        self.started = self.ended = started
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the seconds of the block as part `name`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.ended = time.monotonic()
            self.seconds[name] = self.seconds.get(name, 0.0) + self.ended - began

    def wrap(self, name: str, owner: object, attribute: str) -> None:
        """From now on count the owner's calls of this attribute as part `name`."""
        call = getattr(owner, attribute)

        @functools.wraps(call)
        def as_a_part(*arguments, **named):
            with self.part(name):
                return call(*arguments, **named)

        setattr(owner, attribute, as_a_part)

    def parts(self) -> dict[str, float]:
        """Seconds by part, with the rest; their sum is the time from start to end of the last part."""
        return self.seconds | {REST: self.ended - self.started - sum(self.seconds.values())}


def start_run(started: float, arguments: Sequence[str]) -> dict[str, float]:
    """Run `fastling train` to the end of its first step, in a process of its own; return seconds by part."""
    clock = Clock(started)
    clock.seconds[IMPORTS] = time.monotonic() - started
    update = Updater.update

    def last(updater: Updater, *arguments, **options) -> None:
        update(updater, *arguments, **options)
        if updater.world.device.type == "cuda":
            torch.cuda.synchronize()
        raise FirstStepDone

    Updater.update = last
    for name, places in PARTS.items():
        for owner, attribute in places:
            clock.wrap(name, owner, attribute)
    try:
        train.main(arguments)
    except FirstStepDone:
        return clock.parts()
    raise RunError("the start", "the run ended without a step")


def measure_runs(options: argparse.Namespace, folder: Path, console: Console) -> Iterator[dict]:
    """A row for runs that make their store, and one for runs that find it."""
    told = {"store made": [], "store found": []}
    given = ["--config", options.config] if options.config else []
    for number in range(options.rounds):
        for name, runs in told.items():
            own = ["--run_dir", str(folder / f"{name} {number}"), "--data.store", str(folder / str(number))]
            runs.append(hear("run", *given, *own))
            console.print(f"round {number + 1}, {name}: {sum(runs[-1].values()):.1f} s")
    for name, runs in told.items():
        row = {"case": name, "provider": "fastling", "config": Path(options.config or "demo.yaml").name}
        yield row | {"rounds": options.rounds} | timed(runs)


def timed(runs: Sequence[Mapping[str, float]]) -> dict:
    """Medians of the whole and of each part, in milliseconds; spread from first to third quartile."""
    whole = Measurement([1e3 * sum(run.values()) for run in runs])
    parts = {name: 1e3 * statistics.median(run[name] for run in runs) for name in runs[0]}
    return {"milliseconds": whole.milliseconds, "spread": whole.spread, "parts": parts}


# The load of a model --------------------------------------------------------------------------------


def write_zeros(config: LlamaConfig, folder: Path) -> int:
    """Write a model of bf16 zeros in Hugging Face's format, as sparse files. Returns its tensors' bytes."""
    shards, sizes = [{}], [0]
    for name, shape in hf_shapes(Llama.on_meta(config)).items():
        num_bytes = 2 * math.prod(shape)
        if sizes[-1] and sizes[-1] + num_bytes > SHARD_BYTES:
            shards, sizes = [*shards, {}], [*sizes, 0]
        shards[-1][name] = shape
        sizes[-1] += num_bytes
    folder.mkdir()
    ids = {"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": None}
    write_text(folder / "config.json", json.dumps(config_json(config, **ids, dtype=torch.bfloat16)))
    weight_map = {}
    for number, shapes in enumerate(shards, start=1):
        suffix = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        write_shard(folder / f"model{suffix}.safetensors", shapes)
        weight_map |= dict.fromkeys(shapes, f"model{suffix}.safetensors")
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        write_text(folder / "model.safetensors.index.json", json.dumps(index))
    return sum(sizes)


def write_shard(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of zeros: a header, and after it a hole, which takes no space on the disk."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def resident_bytes() -> dict[str, int]:
    """This process's memory by the kernel's names: VmHWM (the most there was), RssAnon, RssFile, ..."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = (line.replace(":", "").split() for line in lines if line.endswith(" kB"))
    return {name: 1024 * int(kibibytes) for name, kibibytes, _ in fields}


@contextmanager
def counted_reads() -> Iterator[dict[str, int]]:
    """Yield counts of the bytes that are read from safetensors, and of those mapped into memory by that."""
    read, close, before = SafetensorsFolder.read, SafetensorsFolder.close, resident_bytes()["RssFile"]
    reads = {"asked_bytes": 0, "mapped_bytes": 0}

    def counted(folder: SafetensorsFolder, *rows: str | int) -> torch.Tensor:
        found = read(folder, *rows)
        reads["asked_bytes"] += found.nbytes
        return found

    def closed(folder: SafetensorsFolder) -> None:  # until now, what was read stays mapped
        reads["mapped_bytes"] = resident_bytes()["RssFile"] - before
        close(folder)

    SafetensorsFolder.read, SafetensorsFolder.close = counted, closed
    try:
        yield reads
    finally:
        SafetensorsFolder.read, SafetensorsFolder.close = read, close


def load_share(folder: Path, rank: int, ranks: int) -> dict:
    """Lay out and load one rank's share of a folder's model; return seconds, bytes read, and memory."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("shard",))
        world = World(rank, ranks, torch.device("cpu"), mesh)
        before = resident_bytes()["VmRSS"]
        began = time.monotonic()
        model = build_model(Config(), read_config(folder), world, load=False)
        laid_out, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        with counted_reads() as reads:
            load_weights(model, folder)
        loaded, used_more = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        return {
            "seconds": {"laying out": laid_out - began, "loading": loaded - laid_out},
            "own_seconds": used_more.ru_utime - used.ru_utime,
            "kernel_seconds": used_more.ru_stime - used.ru_stime,
            "weights": sum(parameter.numel() for parameter in model.parameters()),
            "share_bytes": sum(local_rows(parameter)[0].nbytes for parameter in model.parameters()),
            **reads,
            "before_bytes": before,
            "peak_bytes": resident_bytes()["VmHWM"],
        }
    finally:
        dist.destroy_process_group()


def measure_load(options: argparse.Namespace, scratch: Path, console: Console) -> Iterator[dict]:
    """Yield one row of medians. Processor time of loading is separate, since most of it hands out memory."""
    folder = scratch / "model"
    whole = write_zeros(make_shape(options.load), folder)
    told = []
    for number in range(options.rounds):
        told.append(hear("load", str(folder), "0", str(options.ranks)))
        console.print(f"round {number + 1}: {sum(told[-1]['seconds'].values()):.1f} s")
    row = {"case": f"load {options.load}", "provider": "fastling", "files": ZEROS}
    row |= {"rank": 0, "ranks": options.ranks, "rounds": options.rounds}
    row |= timed([each.pop("seconds") for each in told])
    row |= {name: statistics.median(each[name] for each in told) for name in told[0]}
    yield row | {"whole_bytes": whole, "asked_share": row["asked_bytes"] / whole}


# Tables ---------------------------------------------------------------------------------------------


def print_runs(rows: Sequence[dict], console: Console) -> None:
    """Print a table with a line for each part and a column for each case, with shares of the whole."""
    title = f"{rows[0]['config']} on {rows[0]['device']}: from command to first step"
    table = Table("seconds", *(row["case"] for row in rows), title=title)
    for name in rows[0]["parts"]:
        shares = [(row["parts"][name], row["milliseconds"]) for row in rows]
        table.add_row(name, *(f"{part / 1e3:.3f} ({part / whole:4.0%})" for part, whole in shares))
    table.add_section()
    table.add_row("whole", *(f"{row['milliseconds'] / 1e3:.2f} ± {row['spread'] / 2e3:.2f}" for row in rows))
    console.print(table)


def print_load(rows: Sequence[dict], console: Console) -> None:
    for row in rows:
        title = f"{row['case']}, rank {row['rank']} of {row['ranks']}, on {row['device']}:\n{ZEROS}"
        table = Table("what", "how much", title=title)
        lines = {name: f"{milliseconds / 1e3:.2f} s" for name, milliseconds in row["parts"].items()}
        used = f"{row['own_seconds']:.2f} s, and {row['kernel_seconds']:.2f} s of the kernel's"
        lines["processor time of loading"] = used
        gib = {name: value / 2**30 for name, value in row.items() if name.endswith("_bytes")}
        asked = f"{gib['asked_bytes']:.3f} GiB of {gib['whole_bytes']:.3f}, 1/{1 / row['asked_share']:.2f}"
        lines["asked of the files"] = asked
        lines["of them in memory before they are closed"] = f"{gib['mapped_bytes']:.3f} GiB"
        lines["its share of float32 weights"] = f"{gib['share_bytes']:.3f} GiB"
        peak = f"{gib['peak_bytes']:.3f} GiB, {gib['before_bytes']:.3f} of them before"
        lines["peak memory, with what is mapped"] = peak
        for line in lines.items():
            table.add_row(*line)
        console.print(table)


if __name__ == "__main__":
    # At once: process groups of children that are taken apart late may abort.
    leave(run_program(main))
