"""Does interactive data pay? python -m benchmarks.interactive --config C --text DIR --out DIR

Two runs of one config that differ only in their data: interactive dialogues, and the same sentence pairs,
in the same direction and asked for in the same language, as single turns. Both take as many steps of as many
tokens; both are judged on held-out dialogues of every type and on held-out single turns.
"""

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.table import Table

from benchmarks.timing import describe_machine, make_table_console, now, with_every_key
from fastling.command_line import Parser
from fastling.config import Config, Source
from fastling.errors import RunError, UserError, run_program
from fastling.evaluation.records import read_records
from fastling.files import write_text
from fastling.interactive.languages import tidy
from fastling.interactive.pairs import read_lines
from fastling.interactive.phrasings import load_phrasings
from fastling.json_files import json_line, read_json_lines
from fastling.other_names import OTHER_NAMES
from fastling.settings import Settings
from fastling.workers import own_cores

ARMS = ("interactive", "single")
SINGLE = "single"
"""Name of held-out single turns, beside the types of dialogues."""


def main(arguments: Sequence[str]) -> None:
    parser = Parser("python -m benchmarks.interactive", __doc__)
    parser.add_argument(
        "--config", type=Path, required=True, help="config that trains on interactive dialogues"
    )
    parser.add_argument("--text", type=Path, required=True, help="folder of the lines they were built from")
    parser.add_argument("--out", type=Path, required=True, help="folder for data, runs and table.jsonl")
    options = parser.parse_args(arguments)
    settings = Settings(Config, OTHER_NAMES)
    settings.read_file(options.config)
    configs = make_arms(settings.build(), options.text, options.out)
    train_side_by_side(configs, options.out)
    rows = list(table_rows(options.out, [source.name for source in configs["single"].data.validation]))
    machine = dataclasses.asdict(
        describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    )
    common = {"bench": "interactive", "date": now(), **machine}
    kept = [common | {"case": row.get("held_out")} | row for row in rows]
    text = "".join(json.dumps(with_every_key(row)) + "\n" for row in kept)
    write_text(options.out / "table.jsonl", text)
    make_table_console().print(as_table(rows))


# Data -----------------------------------------------------------------------------------------------


def make_arms(config: Config, text: Path, out: Path) -> dict[str, Config]:
    """Write the data and the config of each arm; return arm -> config."""
    out.mkdir(parents=True, exist_ok=True)
    single = [
        dataclasses.replace(source, path=str(write_single_turns(source, text, out)))
        for source in config.data.sources
    ]
    held_out = [part for source in config.data.validation for part in split_held_out(source, text, out)]
    configs = {}
    for arm, sources in zip(ARMS, (config.data.sources, single), strict=True):
        data = dataclasses.replace(config.data, sources=sources, validation=held_out)
        configs[arm] = dataclasses.replace(config, data=data, run_dir=str(out / arm))
        write_text(out / f"{arm}.yaml", configs[arm].as_yaml())
    return configs


def split_held_out(source: Source, text: Path, out: Path) -> Iterator[Source]:
    """Yield a held-out source for each type of dialogue, and one with their pairs as single turns."""
    by_type: dict[str, list[str]] = {}
    for row in read_dialogues(source):
        by_type.setdefault(row["type"], []).append(json_line(row))
    for name, rows in sorted(by_type.items()):
        path = out / f"{source.name}.{name}.jsonl"
        write_text(path, "".join(rows))
        yield Source(name=f"{source.name}.{name}", path=str(path), pair=source.pair)
    path = write_single_turns(source, text, out)
    yield Source(name=f"{source.name}.{SINGLE}", path=str(path), pair=source.pair)


def write_single_turns(source: Source, text: Path, out: Path) -> Path:
    """Every line of every dialogue as a conversation of one question and one answer."""
    path = out / f"{source.name}.{SINGLE}.jsonl"
    write_text(path, "".join(map(json_line, single_turns(read_dialogues(source), text))))
    return path


def single_turns(dialogues: Sequence[dict], text: Path) -> Iterator[dict]:
    """The rows of single turns; the wording is drawn from the dialogues' own phrasings, by line."""
    lines: dict[str, list[str]] = {}
    for row in dialogues:
        corpus, _, _ = row["id"].rpartition("-")
        sides = {}
        for language, name in zip(corpus.split("-"), (row["source_file"], row["target_file"]), strict=True):
            if name not in lines:
                lines[name] = list(read_lines(text / name))
            sides[language] = lines[name]
        origin, target = row["pair"].split("-")
        phrasings = load_phrasings(row["user_lang"])
        for number in row["lines"]:
            if number > min(map(len, sides.values())):
                raise UserError("--text", f"has no line {number} for {row['id']}: {text}", "Other files?")
            question, answer = (tidy(sides[side][number - 1], side) for side in (origin, target))
            choose = random.Random(f"{corpus} {number}")
            asked = phrasings.say(choose, "translate", target=target, text=question)
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            yield {"id": f"{corpus}-{number}", "messages": messages, "pair": row["pair"]}


def read_dialogues(source: Source) -> list[dict]:
    """Rows as `fastling dialogues` writes them. Raises UserError for other rows."""
    needed = {"id", "type", "pair", "user_lang", "source_file", "target_file", "lines"}
    records = read_records(Path(source.path))
    for record in records:
        if missing := needed - record.fields.keys():
            fix = "Give a file that `fastling dialogues` wrote."
            raise UserError(record.location, f"lacks {min(missing)}", fix)
    return [record.fields for record in records]


# Runs -----------------------------------------------------------------------------------------------


def train_side_by_side(configs: dict[str, Config], out: Path) -> None:
    """Train both arms at once, each on half of the cores. Runs that were begun before are resumed."""
    threads = max(1, own_cores() // len(configs))
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    runs = {}
    for arm in configs:
        command = [sys.executable, "-m", "fastling.train", "--config", str(out / f"{arm}.yaml")]
        with open(out / f"{arm}.log", "a", encoding="utf-8") as log:
            runs[arm] = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    for arm, run in runs.items():
        if run.wait():
            raise RunError(arm, f"ended with status {run.returncode}", f"See {out / arm}.log.")


# Table ----------------------------------------------------------------------------------------------


def table_rows(out: Path, names: Sequence[str]) -> Iterator[dict]:
    """Yield a row for each held-out file, with both arms' last loss on it; then their numbers of tokens."""
    last, tokens = {}, {}
    for arm in ARMS:
        metrics = read_json_lines(out / arm / "metrics.jsonl")
        last[arm] = metrics[-1]
        tokens[arm] = {
            name: sum(row.get(name, 0) for row in metrics) for name in ("tokens", "supervised_tokens")
        }
    for name in names:
        yield {"held_out": name, **{arm: last[arm][f"eval_loss_{name}"] for arm in ARMS}}
    for name in ("tokens", "supervised_tokens"):
        yield {"trained_on": name, **{arm: tokens[arm][name] for arm in ARMS}}


def as_table(rows: Sequence[dict]) -> Table:
    table = Table(title="held-out loss; the difference is single's minus interactive's")
    for name in ("held out", *ARMS, "difference"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        numbers = [row[arm] for arm in ARMS]
        if "held_out" in row:
            difference = f"{numbers[1] - numbers[0]:+.3f}"
            table.add_row(row["held_out"], *(f"{number:.3f}" for number in numbers), difference)
        else:
            table.add_row(row["trained_on"].replace("_", " "), *(f"{number:,}" for number in numbers), "")
    return table


if __name__ == "__main__":
    sys.exit(run_program(main))
