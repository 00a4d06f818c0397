"""The metrics of a run: metrics.jsonl, W&B if asked for, a plot of the loss, and honest speed (P14)."""

import dataclasses
import json
import math
import os
import resource
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from fastling import files
from fastling.config import Config
from fastling.data.batches import Step
from fastling.data.packing import Plan
from fastling.errors import RunError, UserError, first_line
from fastling.model.llama import Llama
from fastling.training.parallel import World
from fastling.training.work import Work, peak_flops

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


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process in GiB: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes / 2**20


@dataclass(frozen=True)
class Measured:
    """A step whose `numbers` may still be on their way from the device; `wait` waits for them."""

    number: int
    step: Step
    lr: float
    numbers: torch.Tensor
    """(3 + 2 * sources,) float32 on the CPU: the gradient's norm, the loss, sum and count of the negative
    log-likelihoods of each source, and how many processes were told to end."""
    finished: "Mark"

    def wait(self) -> tuple[float, float, list[float]]:
        """Wait for the device; return the gradient's norm, the loss, and sum and count of each source."""
        self.finished.wait()
        grad_norm, loss, *by_source, _ = self.numbers.tolist()
        return grad_norm, loss, by_source

    def stops(self) -> bool:
        """Wait for the device; return whether any process was told to end, the same on all processes."""
        self.finished.wait()
        return self.numbers[-1].item() > 0


class Mark:
    """A point in the device's work, to measure the time between two of them."""

    def __init__(self, device: torch.device):
        self.event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self.event:
            self.event.record()
        self.host_seconds = time.perf_counter()

    def wait(self) -> None:
        """Wait until the device has reached this point."""
        if self.event:
            self.event.synchronize()

    def seconds_since(self, earlier: "Mark") -> float:
        """Seconds between an earlier point and this one, for which it waits."""
        self.wait()
        if self.event:
            return earlier.event.elapsed_time(self.event) / 1000
        return self.host_seconds - earlier.host_seconds


class Meter:
    """Turns measured steps into lines of metrics, and keeps the clock between them."""

    def __init__(self, model: Llama, world: World, plan: Plan, names: list[str]):
        self.device, self.ranks, self.plan, self.names = world.device, world.size, plan, names
        self.work, self.peak_flops = Work(model.config), peak_flops(world.device)
        self.restart()

    def restart(self) -> None:
        """Start the clock again, after something that was not training."""
        self.last = Mark(self.device)

    def line(self, measured: Measured, sequence_length: int) -> dict:
        """Metrics of a step; waits for the device to finish it.

        Raises RunError when loss or gradient is not finite.
        """
        grad_norm, loss, by_source = measured.wait()
        seconds = max(measured.finished.seconds_since(self.last), 1e-9)
        self.last = measured.finished
        check_finite(measured.number, {"loss": loss, "gradient norm": grad_norm})
        step = measured.step
        line = {
            "step": measured.number,
            "epoch": self.plan.epoch(measured.number * step.packs),
            "loss": loss,
            "lr": measured.lr,
            "grad_norm": grad_norm,
            "tokens": step.tokens,
            "supervised_tokens": step.supervised_tokens,
            "tokens_per_s": step.tokens / seconds,
            "supervised_tokens_per_s": step.supervised_tokens / seconds,
            "padded_tokens_per_s": step.packs * sequence_length / seconds,
            "mfu": None,
            "mfu_usual_count": None,
            "memory_gib": memory_gib(self.device),
        }
        if self.peak_flops:
            rate = self.ranks * seconds * self.peak_flops
            needed = self.work.needed(step.tokens, step.supervised_tokens, step.squared_tokens)
            line["mfu"] = needed / rate
            line["mfu_usual_count"] = self.work.usual_count(step.tokens, sequence_length) / rate
        for name, total, count in zip(self.names, by_source[::2], by_source[1::2], strict=True):
            if count:
                line[f"loss_{name}"] = total / count
        return line


def check_finite(step: int, numbers: Mapping[str, float]) -> None:
    """Raise RunError if a number is NaN or infinite: no later step mends that. Step 0 is before the first."""
    if not all(map(math.isfinite, numbers.values())):
        shown = ", ".join(f"{name} {number}" for name, number in numbers.items())
        fix = "A lower optimizer.lr may help, in another run_dir: a run keeps the one it began with."
        if step == 0:
            fix = "The model itself gives no better ones: train.precision fp32 may help, or other weights."
        raise RunError(f"step {step}", f"not all is finite: {shown}", fix)


class MetricsLog:
    """metrics.jsonl of a run, and W&B if asked for. Lines after `first_step` are dropped: they come again.

    Use as a context manager: otherwise W&B would lose the last steps of a run that fails, and not learn that
    it has failed.
    """

    def __init__(self, run_dir: Path, config: Config, first_step: int):
        self.path = run_dir / "metrics.jsonl"
        files.drop_later_steps(self.path, first_step)
        self.wandb = _start_wandb(run_dir, config) if config.log.wandb else None
        self.file = open(self.path, "a", encoding="utf-8")

    def write(self, line: dict) -> None:
        """Append the metrics of one step."""
        with files.naming(self.path):
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        if self.wandb:
            self.wandb.log({_wandb_name(key): value for key, value in line.items()})

    def sync(self) -> None:
        """Have what was written reach the disk, as a checkpoint does after which no step comes again."""
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
    try:
        run = wandb.init(
            project=config.log.project,
            name=run_dir.name,
            id=id_path.read_text(),
            resume="allow",
            dir=run_dir,
            config=dataclasses.asdict(config),
        )
    except wandb.errors.Error as error:
        what = f"W&B does not start: {first_line(error)}"
        raise UserError("log.wandb", what, "Run `wandb login`, or set WANDB_MODE=offline.") from None
    run.define_metric("*", step_metric="train/global_step")
    return run


def plot_loss(run_dir: Path, loss_per: str) -> Path:
    """Draw loss.png from metrics.jsonl: training loss, its running mean and held-out loss; return its path.

    `loss_per` is train.loss: token, turn or sample. The held-out loss is always by token.
    """
    from matplotlib.figure import Figure  # half a second, which no run waits for at its start

    lines = files.read_json_lines(run_dir / "metrics.jsonl")
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
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
