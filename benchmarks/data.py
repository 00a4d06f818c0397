"""Data before training: python -m benchmarks.data [--data F --tokenizer F] [--rows N] --out F.jsonl

- prepare: `fastling prepare` as a user runs it, on one process and on all cores, into an empty store: tokens
  a second, and the peak memory of its largest process, for all rows and for a tenth of them;
- peer: TRL's tokenization and packing of the same rows, on all cores, taking turns with prepare;
- packing: a plan for a million conversations whose lengths are drawn from the data's: seconds, and how full;
- loader: batches a second, made alone.

The rows are the data's, again and again, with a number before the first message, until there are enough.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path

import numpy
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Measurement, add_rows, command_line, describe_machine, make_table_console, now
from benchmarks.training_case import Case, make_weights
from fastling.command_line import Parser, check_positive
from fastling.config import Config, resolve
from fastling.data.batches import Loader
from fastling.data.conversation import Conversation, Refused, parse_row
from fastling.data.packing import make_plan
from fastling.data.rows import read_rows
from fastling.data.store import Store
from fastling.errors import RunError, UserError, run_program
from fastling.files import write_text
from fastling.json_files import json_line
from fastling.prepare import prepare_data
from fastling.workers import own_cores

CONVERSATIONS_TO_PACK = 1_000_000
STEPS_TO_LOAD = 200


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    machine = dataclasses.asdict(describe_machine(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as scratch:
        rows = [{"bench": "data", "date": now(), **machine, **row} for row in measure(options, Path(scratch))]
    console = make_table_console()
    print_rows(rows, console)
    if all(row["provider"] != "trl" for row in rows):
        console.print("trl is left out: it is not installed, or the template is not bayling")
    add_rows(rows, options.out, command_line("data", arguments))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("python -m benchmarks.data", __doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", default="fastling:demo/train.jsonl", help="conversations (default: the demo's)")
    add("--tokenizer", default="fastling:demo/tokenizer.model", help="tokenizer (default: the demo's)")
    add("--template", default="bayling", help="default: %(default)s, the only one compared with TRL")
    add("--rows", type=int, default=20_000, help="rows to prepare (default: %(default)s)")
    add("--rounds", type=int, default=3, help="runs of each, by turns (default: %(default)s)")
    add("--sequence-length", type=int, default=2048, help="tokens in a pack (default: %(default)s)")
    add("--out", type=Path, help="file of JSON lines to append to")
    options = parser.parse_args(arguments)
    check_positive(options, ("rows", "rounds", "sequence_length"))
    if options.rows < 10:
        raise UserError("--rows", f"a tenth of them is measured, too, which is none: {options.rows}")
    return options


def measure(options: argparse.Namespace, folder: Path) -> Iterator[dict]:
    case = Case(
        "demo", str(folder / "rows.jsonl"), options.tokenizer, options.template, options.sequence_length
    )
    few = dataclasses.replace(case, data=str(folder / "few.jsonl"))
    rows = resolve(options.data, "--data")
    write_rows(rows, Path(case.data), options.rows)
    write_rows(rows, Path(few.data), options.rows // 10)
    cores = own_cores()
    peers = options.template == "bayling" and find_spec("trl") is not None
    if peers:
        make_weights(case, folder)
    runs: dict[str, list[dict]] = {}
    for number in range(options.rounds):
        runs.setdefault("one process", []).append(prepare(case, folder / f"one-{number}", workers=1))
        runs.setdefault("all cores", []).append(prepare(case, folder / f"all-{number}", workers=cores))
        runs.setdefault("a tenth of the rows", []).append(prepare(few, folder / f"few-{number}", workers=1))
        if peers:
            runs.setdefault("trl", []).append(trl(case, folder, cores))
    for name, found in runs.items():
        yield prepare_row(name, found, options.rows)
    config = small_config(case, folder / "one-0", workers=1)
    prepared = prepare_data(config)
    yield packing_row(prepared.training.document_tokens, options.sequence_length)
    yield loader_row(prepared.training, prepared.plan, config)


# Rows -----------------------------------------------------------------------------------------------


def write_rows(data: Path, out: Path, number: int) -> None:
    """Write `number` conversations of OpenAI's messages, which all differ, by repeating those of a file."""
    conversations = list(read_conversations(data))
    if not conversations:
        raise UserError(str(data), "holds no conversation")
    numbered = (messages(each, around) for around in count() for each in conversations)
    write_text(out, "".join(json_line({"messages": each}) for each in islice(numbered, number)))


def read_conversations(data: Path) -> Iterator[Conversation]:
    """The conversations of a file, without rows that are refused."""
    for row in read_rows(data):
        try:
            yield parse_row(row.payload)
        except Refused:
            continue


def messages(conversation: Conversation, around: int) -> list[dict]:
    """A conversation as messages; `around`, if it is not 0, is a number to put before the first."""
    turns = [{"role": turn.role, "content": turn.content.strip()} for turn in conversation.turns]
    if around:
        turns[0]["content"] = f"{around}. {turns[0]['content']}"
    return turns


# Prepare and its peer -------------------------------------------------------------------------------


def small_config(case: Case, folder: Path, workers: int) -> Config:
    """The config of a case for `fastling prepare`, with one epoch."""
    config = case.config(folder)
    data = dataclasses.replace(config.data, workers=workers)
    train = dataclasses.replace(config.train, steps=None, epochs=1)
    return dataclasses.replace(config, data=data, train=train)


def prepare(case: Case, folder: Path, workers: int) -> dict:
    """Seconds, tokens and peak memory of one run of `fastling prepare`."""
    folder.mkdir()
    path = folder / "config.yaml"
    write_text(path, small_config(case, folder, workers).as_yaml())
    measured = timed([sys.executable, "-m", "fastling.prepare", "--config", str(path), "--json"])
    [ledger] = json.loads(measured.pop("stdout"))["sources"].values()
    return measured | {"tokens": ledger["trained"] + ledger["masked"], "supervised_tokens": ledger["trained"]}


def trl(case: Case, folder: Path, processes: int) -> dict:
    """Seconds, tokens and peak memory of TRL's tokenization and packing."""
    cache = tempfile.mkdtemp(dir=folder)  # a new one, or it would find the results of the last round
    command = [sys.executable, "-m", "benchmarks.trl_data", str(folder), case.data, str(processes)]
    command.append(str(case.sequence_length))
    measured = timed(command, HF_DATASETS_CACHE=cache, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    counted = json.loads(measured.pop("stdout").splitlines()[-1])
    return measured | counted | {"seconds": measured["seconds"] - counted["counting_seconds"]}


# Waits for a command as a small process of its own: what a process forks counts that process' size as
# the command's, and a benchmark with PyTorch in it is larger than most of what it starts.
MEASURED = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
status = subprocess.run(sys.argv[1:]).returncode
seconds = time.perf_counter() - began
peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
print(json.dumps([status, seconds, peak_mib]), file=sys.stderr)
"""


def timed(command: Sequence[str], **environment: str) -> dict:
    """Run a command; return what it prints, its seconds, and the peak memory of its largest process in MiB.

    `environment` are further environment variables. Raises RunError if the command fails.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    *said, last = done.stderr.strip().splitlines()
    status, seconds, peak_mib = json.loads(last)
    if status:
        # What was wrong, if it says so; below it may stand what to do.
        words = next((line for line in reversed(said) if line.startswith("error: ")), (said or [""])[-1])
        raise RunError(command[2], f"ended with status {status}: {words}")
    return {"stdout": done.stdout, "seconds": seconds, "peak_mib": peak_mib}


def prepare_row(name: str, runs: Sequence[dict], rows: int) -> dict:
    measured = Measurement([1e3 * run["seconds"] for run in runs])
    tokens = runs[0]["tokens"]
    return {
        "case": "prepare",
        "provider": name,
        "rows": rows // 10 if name.startswith("a tenth") else rows,
        "tokens": tokens,
        "supervised_tokens": runs[0]["supervised_tokens"],
        "milliseconds": measured.milliseconds,
        "spread": measured.spread,
        "tokens_per_s": 1e3 * tokens / measured.milliseconds,
        "peak_mib": max(run["peak_mib"] for run in runs),
    }


# Packing and loading --------------------------------------------------------------------------------


def packing_row(lengths: numpy.ndarray, capacity: int) -> dict:
    drawn = numpy.random.default_rng(0).choice(lengths, CONVERSATIONS_TO_PACK)
    sources = numpy.zeros(len(drawn), dtype=numpy.int64)
    began = time.perf_counter()
    plan = make_plan(drawn, sources, [1.0], capacity=capacity, seed=0, epochs=1)
    seconds = time.perf_counter() - began
    return {
        "case": "packing",
        "provider": "fastling",
        "rows": len(drawn),
        "milliseconds": 1e3 * seconds,
        "fill": float(drawn.sum() / (len(plan) * capacity)),
    }


def loader_row(store: Store, plan, config: Config) -> dict:
    options = {"ranks": 1, "rank": 0, "micro_batches": 1, "loss": "token"}
    loader = Loader(store, plan, global_packs=config.global_packs, **options)
    steps = min(STEPS_TO_LOAD, len(loader))
    began = time.perf_counter()
    tokens = sum(loader.step(number).tokens for number in range(steps))
    seconds = time.perf_counter() - began
    return {
        "case": "loader",
        "provider": "fastling",
        "rows": steps,
        "milliseconds": 1e3 * seconds,
        "batches_per_s": steps / seconds,
        "tokens_per_s": tokens / seconds,
    }


def print_rows(rows: Sequence[dict], console: Console) -> None:
    table = Table("what", "who", "rows", "seconds", "tokens/s", "peak MiB", "besides")
    for row in rows:
        besides = {"fill": "{:.2%} full", "batches_per_s": "{:,.0f} batches/s"}
        table.add_row(
            row["case"],
            row["provider"],
            f"{row['rows']:,}",
            f"{row['milliseconds'] / 1e3:.2f}",
            f"{row['tokens_per_s']:,.0f}" if "tokens_per_s" in row else "",
            f"{row['peak_mib']:,}" if "peak_mib" in row else "",
            ", ".join(text.format(row[key]) for key, text in besides.items() if key in row),
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(run_program(main))
