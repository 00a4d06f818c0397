"""Progress of a training run: a bar on a terminal, an occasional line elsewhere."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fastling.terminal import SECONDS_BETWEEN_LINES


def loss_units(loss_per: str) -> tuple[str, str]:
    """What to write after training's loss and after the held-out loss, which is always by token."""
    return ("", "") if loss_per == "token" else (f" per {loss_per}", " per token")


class TrainingProgress:
    """Shows each step's loss and speed. Use as a context manager.

    `loss_per` is train.loss: token, turn or sample.
    """

    def __init__(self, console: Console, total_steps: int, first_step: int, loss_per: str):
        self.console, self.total_steps = console, total_steps
        self.units = loss_units(loss_per)
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total_steps, completed=first_step, facts="")
        self.shown_at = 0.0

    def __enter__(self) -> "TrainingProgress":
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def update(self, line: dict) -> None:
        """Show the metrics of one step."""
        facts = f"loss {line['loss']:.3f}"
        if "eval_loss" in line:
            of_training, of_held_out = self.units
            facts += f"{of_training}, held-out {line['eval_loss']:.3f}{of_held_out}"
        facts += f", {line['supervised_tokens_per_s']:,.0f} supervised tokens/s"
        if line["mfu"] is not None:
            facts += f", MFU {100 * line['mfu']:.1f} %"
        self.bar.update(self.task, completed=line["step"], facts=facts)
        due = time.monotonic() - self.shown_at > SECONDS_BETWEEN_LINES
        if not self.console.is_terminal and (due or "eval_loss" in line or line["step"] == self.total_steps):
            self.shown_at = time.monotonic()
            self.console.print(f"step {line['step']} of {self.total_steps}: {facts}")
