"""Where the metrics of a run go: metrics.jsonl, W&B if asked for, and a plot of the loss."""

import dataclasses
import json
import os
import uuid
from importlib import metadata
from pathlib import Path

from fastling import files
from fastling.config import Config, Log
from fastling.errors import UserError, first_line
from fastling.json_files import drop_later_steps, json_line, json_lines

# Names that Hugging Face's and TRL's runs have on W&B, so that panels overlay.
WANDB_NAMES = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "epoch": "train/epoch",
    "step": "train/global_step",
    "tokens_per_s": "train/tokens_per_second",
    "supervised_tokens_per_s": "train/supervised_tokens_per_second",
    "mfu": "train/mfu",
    "memory_gib": "memory/max_allocated (GiB)",
}


class MetricsLog:
    """metrics.jsonl of a run, and W&B if asked for. Drops lines after `first_step`, whose steps are repeated.

    Use as a context manager: otherwise W&B would lose the last steps of a run that fails, and would not learn
    that it failed.
    """

    def __init__(self, run_dir: Path, config: Config, first_step: int):
        self.path = run_dir / "metrics.jsonl"
        drop_later_steps(self.path, first_step)
        self.wandb = _start_wandb(run_dir, config) if config.log.wandb else None
        self.file = open(self.path, "a", encoding="utf-8")

    def write(self, line: dict) -> None:
        """Append the metrics of one step."""
        with files.naming(self.path):
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        self._to_wandb(line)

    def _to_wandb(self, line: dict) -> None:
        if self.wandb:
            self.wandb.log({_wandb_name(key): value for key, value in line.items()})

    def amend(self, step: int, more: dict) -> None:
        """Add to the metrics of a step, as if they had been written together."""
        lines = (line | more if line["step"] == step else line for line in json_lines(self.path))
        files.write_parts(self.path, map(json_line, lines))
        self.file.close()  # the old file, which was replaced
        self.file = open(self.path, "a", encoding="utf-8")
        self._to_wandb({"step": step, **more})

    def sync(self) -> None:
        """Flush to the disk what was written: steps before a saved checkpoint are not repeated."""
        with files.naming(self.path):
            os.fsync(self.file.fileno())

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind, *_) -> None:
        if self.wandb:
            self.wandb.finish(exit_code=0 if kind is None else 1)
        with files.naming(self.path):
            self.file.close()


def _wandb_name(key: str) -> str:
    if key.startswith("eval_"):
        return key.replace("_", "/", 1)
    return WANDB_NAMES.get(key, f"train/{key}")


def check_wandb(config: Config) -> None:
    """Raise UserError if W&B is asked for and not installed. Called before anything else is done."""
    if config.log.wandb:
        try:  # a leftover ./wandb folder makes `import wandb` succeed without the package
            metadata.version("wandb")
        except metadata.PackageNotFoundError:
            raise UserError("log.wandb", "wandb is not installed", "pip install 'fastling[wandb]'") from None


def _start_wandb(run_dir: Path, config: Config):
    import wandb  # optional

    os.environ.setdefault("WANDB_SILENT", "true")
    id_path = run_dir / "wandb-id"
    if not id_path.exists():
        files.write_text(id_path, uuid.uuid4().hex[:8])
    project = config.log.project
    if project == Log.project:
        project = os.environ.get("WANDB_PROJECT") or project
    try:
        run = wandb.init(
            project=project,
            name=run_dir.name,
            id=id_path.read_text(),
            resume="allow",
            dir=run_dir,
            config=dataclasses.asdict(config),
        )
    except wandb.errors.Error as error:
        what = f"W&B does not start: {first_line(error)}"
        raise UserError("log.wandb", what, "Run `wandb login`, or set WANDB_MODE=offline.") from None
    except ValueError as error:  # pydantic's, of a variable such as WANDB_MODE
        what = f"W&B does not start: {' '.join(str(error).split())[:200]}"
        raise UserError("log.wandb", what, "Correct the WANDB_... variable of that name.") from None
    run.define_metric("*", step_metric="train/global_step")
    return run


def plot_loss(run_dir: Path, loss_per: str) -> Path:
    """Draw loss.png from metrics.jsonl: training loss, its running mean and held-out loss; return its path.

    `loss_per` is train.loss: token, turn or sample. The held-out loss is always by token.
    """
    from matplotlib.figure import Figure  # takes half a second, which would delay every start

    train, held_out = [], []
    for line in json_lines(run_dir / "metrics.jsonl"):  # streamed, since a long run has a million lines
        for points, name in ((train, "loss"), (held_out, "eval_loss")):
            if name in line:
                points.append((line["step"], line[name]))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="#9ecae1", linewidth=0.8, label=f"training, per {loss_per}")
        means = _running_mean(losses, max(1, len(losses) // 20))
        axes.plot(steps, means, color="#08519c", label="running mean")
    if held_out:
        name = "held out, per token"
        axes.plot(*zip(*held_out, strict=True), color="#d94801", marker="o", markersize=4, label=name)
    axes.set(xlabel="step", ylabel="loss (nats)")
    if run_dir.name.isascii():  # matplotlib's fonts have no Chinese, and it would warn of every letter
        axes.set_title(run_dir.name, parse_math=False)  # $ begins a formula there
    axes.grid(alpha=0.3)
    if train or held_out:
        axes.legend()
    path = run_dir / "loss.png"
    aside = path.with_name(f"{path.name}.tmp")
    aside.unlink(missing_ok=True)  # a link there would be followed when writing
    with files.naming(path):
        figure.savefig(aside, format="png", dpi=120)
    aside.replace(path)
    return path


def _running_mean(values: tuple[float, ...], window: int) -> list[float]:
    total, means = 0.0, []
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means
