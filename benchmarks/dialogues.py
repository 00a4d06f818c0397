"""How fast dialogues are built, in how much memory: python -m benchmarks.dialogues --source F --target F ...

The files are repeated, with a number before each sentence so that no line comes twice, until there are as
many pairs as are asked for; then `fastling dialogues` runs on them as a user would run it.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from benchmarks.data import timed
from fastling.command_line import Parser, check_positive, option_of
from fastling.errors import UserError, run_program
from fastling.interactive.pairs import read_lines


def main(arguments: Sequence[str]) -> None:
    parser = Parser("python -m benchmarks.dialogues", __doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--source-lang", required=True)
    parser.add_argument("--target-lang", required=True)
    parser.add_argument("--pairs", type=int, default=1_000_000, help="sentence pairs (default: %(default)s)")
    parser.add_argument("--count", type=int, default=160_000, help="dialogues wanted (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    options = parser.parse_args(arguments)
    check_positive(options, ("pairs", "count", "workers"))
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder))))


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """One row: pairs, dialogues, seconds, dialogues/s, and the largest process's peak memory."""
    sides = [folder / "source", folder / "target"]
    for path, side in zip((options.source, options.target), sides, strict=True):
        repeat(path, side, options.pairs)
    command = [sys.executable, "-m", "fastling.dialogues", "--json", "--out", str(folder / "out.jsonl")]
    command += ["--source", str(sides[0]), "--target", str(sides[1])]
    for name in ("source_lang", "target_lang", "count", "workers"):
        command += [option_of(name), str(getattr(options, name))]
    measured = timed(command)
    dialogues = json.loads(measured["stdout"])["dialogues"]
    return {
        "bench": "dialogues",
        "pairs": options.pairs,
        "dialogues": dialogues,
        "workers": options.workers,
        "seconds": round(measured["seconds"], 1),
        "dialogues_per_s": round(dialogues / measured["seconds"]),
        "peak_mib": measured["peak_mib"],
    }


def repeat(path: Path, out: Path, count: int) -> None:
    """The lines of a file again and again, numbered, `count` in all."""
    lines = [line.strip() for line in read_lines(path)]
    if not lines:
        raise UserError(str(path), "is empty")
    numbered = (f"{round_ + 2}. {line}" if round_ else line for round_ in range(count) for line in lines)
    with open(out, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in islice(numbered, count))


if __name__ == "__main__":
    sys.exit(run_program(main))
