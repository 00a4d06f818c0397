"""The command that measures a run again: it is in newer rows, and can be guessed from older ones."""

import shlex
from pathlib import Path

from benchmarks.rows import Run

KERNELS = "make gpu-kernels"
TRAINING = "python -m benchmarks.train --out benchmarks/results/train.jsonl"
OTHERS = {
    "interactive": "python -m benchmarks.interactive --config CONFIG --text FOLDER --out FOLDER",
    "kernels, errors": "python -m benchmarks.kernels --errors",
    "kernels, static": "python -m benchmarks.kernels --static",
}


def command_of(run: Run) -> str:
    """The command that measures a run again; "" if it is not known."""
    first = run.rows[0]
    if isinstance(first.get("command"), str):
        return first["command"]
    if run.bench == "train":
        return _of_training(run)
    words = ["python", "-m", f"benchmarks.{run.bench}"]
    if run.bench == "generation":
        words += ["--cases", *dict.fromkeys(str(row.get("case")) for row in run.rows)]
    elif run.bench == "growth":
        words += ["--size", str(first.get("case"))]
    elif run.bench not in ("ranks", "startup"):
        return OTHERS.get(run.bench, "")
    return shlex.join(words)


def _of_training(run: Run) -> str:
    """The command of a run of benchmarks.train, with those options that are not the defaults."""
    from benchmarks import train  # kernels are measured, and shown, where training's packages may be absent

    asked, defaults = run.rows[0]["run"], vars(train.parse([]))
    defaults |= {name: Path(defaults[name]).name for name in ("data", "tokenizer")}
    defaults["micro_batch_tokens"] = asked.get("batch_tokens")
    words = ["python", "-m", "benchmarks.train"]
    for name, value in asked.items():
        if name in defaults and value != defaults[name]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if run.is_ladder:
        words.append("--ladder")
    if run.rows[1:]:
        words += ["--trainers", "; ".join(row["provider"] for row in run.rows[1:])]
    return shlex.join(words)
