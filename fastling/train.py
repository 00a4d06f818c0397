"""`fastling train`, alone or under torchrun: the loop that joins data, model and training.

    torchrun --nproc_per_node 8 -m fastling.train --config configs/bayling-7b.yaml

Without --config it trains the demo. It resumes by itself when the run folder holds a checkpoint.
"""

import contextlib
import functools
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

from fastling import ops
from fastling.config import Config, Evaluate, build_parser, parse
from fastling.errors import RunError, kind_and_line, leave, run_program, visible
from fastling.export import make_export, print_checks
from fastling.json_files import drop_later_steps, json_lines
from fastling.model.llama import reshard
from fastling.prepare import prepare_data, print_ledger
from fastling.terminal import make_console, print_result
from fastling.training import checkpoint, record
from fastling.training.build import build_model, make_loader, model_config
from fastling.training.evaluation import Answer, HeldOut, keep_answers
from fastling.training.footprint import check_memory
from fastling.training.isolation import prove_isolation
from fastling.training.metrics import Measured, Meter, check_finite
from fastling.training.metrics_log import MetricsLog, check_wandb, plot_loss
from fastling.training.optimizer import make_optimizer
from fastling.training.parallel import World, compute_dtype, open_world
from fastling.training.progress import TrainingProgress, loss_units
from fastling.training.stopping import status_of, stopped, told_to_stop
from fastling.training.update import Updater


def train(config: Config) -> dict:
    """Train, evaluate, checkpoint and export as the config says; return a summary on rank 0, {} elsewhere.

    Raises UserError or RunError for what the user can fix.
    """
    check_wandb(config)
    with open_world(config) as world:
        run = Run(config, world, make_console(quiet=not world.is_main))
        with run.log or contextlib.nullcontext():
            run.loop()
        return run.finish()


class Run:
    """One training run. Its constructor does whatever can fail before the first step."""

    def __init__(self, config: Config, world: World, console: Console):
        self.config, self.world, self.console = config, world, console
        self.run_dir = config.run_folder
        record.check_shared(self.run_dir, world.on_main(self._lock_run_dir))
        self.dtype = compute_dtype(config)
        self.choices = ops.configure(
            config.model.kernels, config.model.attention, device=world.device, dtype=self.dtype
        )
        self.prepared = prepare_data(config)
        shape = model_config(config, self.prepared.encoder)
        check_memory(shape, world.size // config.parallel.replicate, world.device)
        self.identity = record.identity(config, self.prepared, shape)
        record.check_agreed(config, self.prepared, self.identity, self.choices, world)
        found = self._find_checkpoint()
        self.first_step = found.state["step"] if found else 0
        # A run may resume on any number of processes; only a new run has to share its packs evenly.
        data = (self.prepared.training, self.prepared.plan)
        self.loader = make_loader(config, world, *data, evenly=found is None)
        prove_isolation(shape, world.device, self.dtype)
        self.export = make_export(self.run_dir / "export", shape, self.prepared.encoder, config)
        world.on_main(self._check_disk)
        self.model = build_model(config, shape, world, load=found is None)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.updater = Updater(
            config,
            world,
            self.model,
            self.optimizer,
            num_sources=len(self.prepared.training.source_names),
            num_steps=len(self.loader),
        )
        if found:
            checkpoint.load(found.folder, self._tensors(), world.patient)
            checkpoint.set_step(self.optimizer, self.first_step)
        held_out = self.prepared.validation
        self.held_out = HeldOut(config, world, held_out, self.prepared.encoder) if held_out else None
        self.answers: list[Answer] = []
        self.unwritten: set[Path] = set()
        self.log: MetricsLog | None = None
        world.on_main(self._open_records)
        self._describe()

    def _lock_run_dir(self) -> int:
        self.lock = record.lock_run_dir(self.run_dir)
        checkpoint.clear_leftovers(self.run_dir / "checkpoints")
        return self.lock.number

    def _check_disk(self) -> None:
        """Rehearse the export, and check that the disk has room for it and for the checkpoints."""
        self.export.rehearse()
        checkpoint.check_room(
            self.run_dir / "checkpoints",
            self.export.num_weights,
            self.config.checkpoint,
            len(self.loader) - self.first_step,
            other_bytes=self.export.num_bytes,
        )

    def _open_records(self) -> None:
        print_ledger(self.prepared, self.config, self.console)
        if self.first_step and record.evaluated_on_other(self.run_dir, self.prepared):
            said = (
                f"the held-out data has changed: its losses up to step {self.first_step} are not comparable"
            )
            self.console.print(said, style="yellow")
        if self.first_step and (changed := record.changed_since(self.run_dir, self.choices, self.world)):
            said = f"resuming on the same data in the same order, not to the same bits: {changed}"
            self.console.print(said, style="yellow", soft_wrap=True)
        if not self.first_step and any(json_lines(self.run_dir / "metrics.jsonl")):
            said = (
                "there is no checkpoint: the run starts over, and replaces the metrics of its earlier start"
            )
            self.console.print(said, style="yellow")
        evaluate = replace(self.config.evaluate, sample_tokens=None)  # a default that every config fills in
        if evaluate != Evaluate() and not self.prepared.validation:
            said = "nothing is evaluated: neither data.validation nor data.held_out_share is set"
            self.console.print(said, style="yellow")
        record.write_records(self.config, self.prepared, self.export.shape, self.choices, self.world)
        self.log = MetricsLog(self.run_dir, self.config, self.first_step)
        # The samples of step 0 come again, too.
        drop_later_steps(self.run_dir / "samples.jsonl", self.first_step or -1)

    def _find_checkpoint(self) -> checkpoint.Found | None:
        """The newest undamaged checkpoint, None without any; rank 0 verifies it for all ranks."""
        folder = self.run_dir / "checkpoints"
        say = functools.partial(self.console.print, style="bold red", soft_wrap=True)
        step = self.world.on_main(lambda: checkpoint.newest_step(folder, say))
        if not step:
            return None
        found = checkpoint.open_checkpoint(folder, step)
        record.check_identity(found.folder, found.state.get("identity"), self.identity)
        return found

    def _describe(self) -> None:
        weights = sum(parameter.numel() for parameter in self.model.parameters())
        self.console.print(
            f"{weights:,} weights; {self.world.size} process(es) on {self.world.device.type}, each with "
            f"{self.loader.micro_batches} micro-batch(es) a step; {self.config.train.precision}"
        )
        for choice in self.choices:
            self.console.print(f"  {choice}")
        self.console.print("  no document of a pack sees another: proved on this device")
        if self.first_step:
            self.console.print(f"resuming after step {self.first_step} of {len(self.loader)}")

    def loop(self) -> None:
        """Train step by step, and evaluate and save when they are due."""
        config, first = self.config, self.first_step
        self.stop_signal: Callable[[], int] = lambda: 0
        # Losses from before the first step, which are written with the first line of metrics.
        self.losses_before = (
            {f"{name}_before": loss for name, loss in self._evaluate(0).items()} if first == 0 else {}
        )
        self._make_up_evaluation()
        self.meter = Meter(self.model, self.world, self.prepared.plan, self.prepared.training.source_names)
        waiting: Measured | None = None
        self.stops = False
        progress = TrainingProgress(self.console, len(self.loader), first, config.train.loss)
        with told_to_stop() as self.stop_signal, progress as self.progress:
            for number, step in enumerate(self.loader.steps(first), start=first + 1):
                measured = self.updater.update(step, number, stops=bool(self.stop_signal()))
                if waiting:  # the previous step: it is done, or soon will be, and the device has new work
                    self._report(waiting)
                waiting = measured
                evaluates = self._is_due(number, config.evaluate.every_steps)
                saves = self.stops or self._is_due(number, config.checkpoint.every_steps)
                if evaluates or saves:
                    # Raises if the numbers are not finite, before they are saved.
                    self._report(waiting, evaluates=evaluates, saves=saves)
                    waiting = None
                    if saves or self.stops:
                        self._save(number)
                    if self.stops:
                        self._stop(number, self.stop_signal() or signal.SIGTERM)
                    self.meter.restart()

    def _report(self, measured: Measured, *, evaluates: bool = False, saves: bool = False) -> None:
        """Log and show a step's metrics, with an evaluation if asked to; learn whether the run is to stop."""
        self.stops = self.stops or measured.stops()
        line = self.meter.line(measured, self.config.data.sequence_length) | self.losses_before
        line |= self._evaluate(measured.number) if evaluates else {}
        self.progress.update(line)
        # A checkpoint needs the losses from before the first step in the file: a resumed run has no others.
        due = (
            evaluates or measured.number % self.config.log.every_steps == 0 or (saves and self.losses_before)
        )
        if self.log and due:
            self.log.write(line)
            self.losses_before = {}
            if evaluates:
                self._plot()

    def _write_for_people(self, path: Path, write: Callable[[], object]) -> None:
        """Write a file that no run depends on. If that fails, say so once for each file, and continue."""
        try:
            write()
        except Exception as error:  # also of importing matplotlib, which happens here
            if path not in self.unwritten:
                said = f"{path}: cannot be written: {kind_and_line(error)}; the run continues without it"
                self.console.print(said, style="yellow", soft_wrap=True)
            self.unwritten.add(path)

    def _plot(self) -> None:
        write = functools.partial(plot_loss, self.run_dir, self.config.train.loss)
        self._write_for_people(self.run_dir / "loss.png", write)

    def _stop(self, number: int, signal_number: int) -> NoReturn:
        """End the process after a saved step. Rank 0 raises RunError; the others wait until it has ended."""
        if not self.world.is_main:
            with contextlib.suppress(RuntimeError):  # raised when rank 0 closes the connection
                self.world.from_main(0)
            leave(status_of(signal_number))
        raise stopped(self.run_dir, number, len(self.loader), signal_number)

    def _is_due(self, number: int, every_steps: int) -> bool:
        return number % every_steps == 0 or number == len(self.loader)

    def _evaluate(self, number: int) -> dict:
        """Held-out losses after `number` steps, {} without held-out data; also writes sample answers.

        If the run is told to stop meanwhile there are none, and the resumed run makes up for it.
        """
        if self.held_out is None:
            return {}
        losses = self.held_out.losses(self.model, self.stop_signal)
        if losses is None or self.world.any(bool(self.stop_signal())):
            self.stops = True
            reshard(self.model)
            return {}
        check_finite(number, losses)
        self.answers = self.held_out.answers(self.model)
        reshard(self.model)  # a forward without backward leaves the root's weights gathered
        if self.world.is_main:
            path = self.run_dir / "samples.jsonl"
            self._write_for_people(path, lambda: keep_answers(self.answers, path, number))
        return losses

    def _make_up_evaluation(self) -> None:
        """Evaluate after the step to resume from, if the run was told to stop before it had done so."""

        first = self.first_step

        def is_missing() -> int:
            lines = json_lines(self.run_dir / "metrics.jsonl")
            return int(any(line["step"] == first and "eval_loss" not in line for line in lines))

        is_due = first > 0 and self.held_out and self._is_due(first, self.config.evaluate.every_steps)
        if is_due and self.world.on_main(is_missing):
            losses = self._evaluate(first)
            if self.log:
                self.log.amend(first, losses)
                self._plot()

    def _save(self, number: int) -> None:
        if self.log:
            self.log.sync()
        checkpoint.save(
            self.run_dir / "checkpoints",
            number,
            self._tensors(),
            {"identity": self.identity},
            keep_last=self.config.checkpoint.keep_last,
            group=self.world.patient,
        )

    def _tensors(self) -> dict[str, torch.Tensor]:
        return checkpoint.training_tensors(self.model, self.optimizer)

    def finish(self) -> dict:
        """Export the model and print a summary; return it on rank 0, {} elsewhere."""
        world = self.world
        checks = self.export.write(self.model, is_main=world.is_main, wait=lambda: world.from_main(0))
        world.from_main(0)  # the other ranks wait until rank 0 has written and checked the export
        if not world.is_main:
            return {}
        self._plot()
        done = summarise(json_lines(self.run_dir / "metrics.jsonl"), self.config)
        if self.run_dir / "loss.png" in self.unwritten:
            done["loss_plot"] = None
        print_summary(done, self.answers, self.console)
        print_checks(checks, self.console)
        return done


def summarise(lines: Iterable[dict], config: Config) -> dict:
    """The run in a few numbers, from its metrics. Raises RunError if there are none."""
    run_dir, speeds, first, last, held_out = config.run_folder, [], {}, {}, None
    for last in (line for line in lines if {"loss", "supervised_tokens_per_s"} <= line.keys()):
        first = first or last
        speeds.append(last["supervised_tokens_per_s"])
        held_out = last.get("eval_loss", held_out)
    if not first:
        raise RunError(str(run_dir / "metrics.jsonl"), "holds no steps", "The export is written.")
    return {
        "run_dir": str(run_dir),
        "steps": last["step"],
        "loss_per": config.train.loss,
        "loss_first": first["loss"],
        "loss_last": last["loss"],
        "eval_loss_first": first.get("eval_loss_before"),
        "eval_loss_last": held_out,
        "supervised_tokens_per_s": sorted(speeds)[len(speeds) // 2],
        "loss_plot": str(run_dir / "loss.png"),
        "export": str(run_dir / "export"),
    }


def print_summary(done: dict, answers: list[Answer], console: Console) -> None:
    console.print()
    of_training, of_held_out = loss_units(done["loss_per"])
    first, last = done["loss_first"], done["loss_last"]
    console.print(f"trained {done['steps']} steps: loss{of_training} {first:.3f} -> {last:.3f}")
    if done["eval_loss_last"] is not None:
        before = done["eval_loss_first"]
        start = f"{before:.3f} -> " if before is not None else ""
        console.print(f"held-out loss{of_held_out} {start}{done['eval_loss_last']:.3f}")
    console.print(f"{done['supervised_tokens_per_s']:,.0f} supervised tokens/s (median step)")
    for answer in answers:
        console.print(f"\n  question   {visible(answer.question)}")
        console.print(f"  answer     {visible(answer.answer)}")
        console.print(f"  reference  {visible(answer.reference)}", style="dim")
    console.print()
    if done["loss_plot"]:
        console.print(f"loss plot: {done['loss_plot']}", soft_wrap=True)
    console.print(f"export:    {done['export']}", soft_wrap=True)


def main(arguments: Sequence[str]) -> None:
    description = "Train a model; resumes by itself. Start it under torchrun for more than one process."
    parser = build_parser("fastling train", description)
    parser.add_argument("--json", action="store_true", help="print a summary as one JSON object on stdout")
    config, options = parse(parser, arguments)
    done = train(config)
    if options.json and done:
        print_result(done)


if __name__ == "__main__":
    leave(run_program(main))
