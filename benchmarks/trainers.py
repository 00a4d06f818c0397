"""The trainers that benchmarks.train puts side by side, each in a process of its own.

    python -m benchmarks.trainers NAME FOLDER

A process makes steps only on request: after a line "steps N" on its standard input it makes N, and reports
each as a line of JSON on its standard output; "end" asks for its peak memory and ends it. Under torchrun,
rank 0 reads and writes, and the others follow it.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.communication import measure_communication
from benchmarks.training_case import Case, read_case, read_packs
from fastling.config import Config
from fastling.data.batches import Batch
from fastling.model.llama import Llama
from fastling.other_names import OTHER_NAMES
from fastling.settings import Settings
from fastling.terminal import make_console
from fastling.train import Run
from fastling.training.metrics import Mark, memory_gib
from fastling.training.parallel import open_world

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Finished(Exception):
    """No further steps are requested."""


class Follower:
    """The gate of all processes but the first. Always open, since a step waits for the first anyway."""

    def __init__(self):
        sys.stdout = sys.stderr  # the other one is the first process's

    def say(self, **fields) -> None: ...

    def begin(self) -> None: ...

    def end(self, loss: float, parts: dict[str, float] | None = None) -> None: ...


class Gate:
    """Where a trainer waits before every step, and tells its loss after it."""

    def __init__(self):
        self.out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no result
        self.credit = 0
        self.closing: dict[str, object] = {}

    def say(self, **fields) -> None:
        """Print an object as a line of JSON on the process's own stdout."""
        print(json.dumps(fields), file=self.out, flush=True)

    def begin(self) -> None:
        """Wait for a request for a step. Raises Finished, after reporting peak memory, when there is none."""
        while not self.credit:
            word, _, number = (sys.stdin.readline() or "end").strip().partition(" ")
            if word == "end":
                self.say(**{"peak_gib": memory_gib(DEVICE)} | self.closing)
                raise Finished
            self.credit = int(number)
        self.started = time.perf_counter()

    def end(self, loss: float, parts: dict[str, float] | None = None) -> None:
        """Tell a step's loss, its seconds, and the seconds of its parts."""
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.started
        self.credit -= 1
        self.say(loss=loss, seconds=seconds, parts=parts or {})


def versions(*names: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}


# fastling -------------------------------------------------------------------------------------------


class Unsaved(Run):
    """A run that saves nothing."""

    def _check_disk(self) -> None:
        """Check nothing: the checkpoints, for which the largest model would need 110 GiB, are not written."""


def ours(
    case: Case,
    folder: Path,
    gate: Gate | Follower,
    *,
    head_on_all_rows: bool = False,
    **changes: dict[str, object],
) -> None:
    """Train as `fastling train` does with config.yaml, with changed values in some sections of the config."""
    settings = Settings(Config, OTHER_NAMES)
    settings.read_file(folder / "config.yaml")
    config = changed(settings.build(), changes)
    if not case.peers:
        Llama.reset_parameters = draw_on_device
    with open_world(config) as world:
        run = Unsaved(config, world, make_console(quiet=True))
        clock = Parts(run)
        told = {op: getattr(config.model, op) for op in ("kernels", "attention")} | changes
        gate.say(settings=told | {"micro_batches": run.loader.micro_batches}, versions={})
        steps = run.loader.steps()
        for number in range(1, len(run.loader) + 1):
            gate.begin()
            clock.start()
            step = next(steps)
            if head_on_all_rows:
                step = dataclasses.replace(step, batches=[on_all_rows(batch) for batch in step.batches])
            clock.mark("data wait")
            measured = run.updater.update(step, number)
            _, loss, _ = measured.wait()
            gate.end(loss, clock.seconds())
        if world.size > 1:
            gate.closing = {"peak_gib": memory_gib(DEVICE)}  # before the profiler takes some
            gate.closing["communication"] = measure_communication(run.updater, run.loader.step(0))
        gate.begin()


def changed(config: Config, changes: Mapping[str, dict[str, object]]) -> Config:
    """The config with other values in some sections."""
    sections = {
        name: dataclasses.replace(getattr(config, name), **values) for name, values in changes.items()
    }
    return dataclasses.replace(config, **sections)


@torch.no_grad()
def draw_on_device(model: Llama) -> None:
    """Takes the place of `reset_parameters`, which draws on the CPU: minutes for billions of weights."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(float(name.endswith("weight")))
        else:
            parameter.normal_(std=model.config.initializer_range)


def on_all_rows(batch: Batch) -> Batch:
    """The batch with the head on every token, and the same loss, since masked tokens have weight 0."""
    rows = len(batch.tokens)
    wide = {name: torch.zeros(rows, dtype=torch.int64) for name in ("sources", "pairs")}
    weights = torch.zeros(rows).index_copy(0, batch.loss_index, batch.weights)
    labels = batch.labels.clamp(min=0)
    return dataclasses.replace(batch, loss_index=torch.arange(rows), labels=labels, weights=weights, **wide)


class Parts:
    """The time of each part of a step, by hooks. All but waiting, forward and optimizer is the backward."""

    def __init__(self, run: Run):
        run.model.register_forward_pre_hook(lambda *_: self.mark("backward and clipping"))
        run.model.register_forward_hook(lambda *_: self.mark("forward"))
        run.optimizer.register_step_pre_hook(lambda *_: self.mark("backward and clipping"))
        run.optimizer.register_step_post_hook(lambda *_: self.mark("optimizer"))

    def start(self) -> None:
        self.marks = [("", Mark(DEVICE))]

    def mark(self, name: str) -> None:
        """Count the time since the last mark as part `name`."""
        self.marks.append((name, Mark(DEVICE)))

    def seconds(self) -> dict[str, float]:
        parts: dict[str, float] = {}
        for (_, earlier), (name, later) in zip(self.marks, self.marks[1:], strict=False):
            parts[name] = parts.get(name, 0.0) + later.seconds_since(earlier)
        return parts


# Peers ----------------------------------------------------------------------------------------------


TRL_PACKS_AT_ONCE = 8
"""Its default of `per_device_train_batch_size`."""


def trl(case: Case, folder: Path, gate: Gate | Follower, **options) -> None:
    """TRL's SFTTrainer on the same packs, in the same order: packing "bfd", so padding-free."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Told(TrainerCallback):
        def on_step_begin(self, *_, **__):
            gate.begin()

        def on_log(self, *_, logs: dict, **__):
            if "loss" in logs:
                gate.end(logs["loss"])

    named = {
        "packing": True,
        "max_length": case.sequence_length,
        "bf16": case.precision == "bf16",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": case.packs // case.processes,
        "gradient_checkpointing": False,
    } | options
    arguments = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=case.steps,
        learning_rate=case.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=DEVICE.type == "cpu",
        **named,
    )
    attention = trl_attention()
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation=attention
    )
    trainer = SFTTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list(read_packs(folder)),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[Told()],
    )
    gate.say(settings=named | {"attention": attention}, versions=versions("trl", "transformers"))
    trainer.train()
    gate.begin()


def trl_attention() -> str:
    """FlashAttention if it is installed, on a GPU; else PyTorch's own attention.

    Both keep documents apart. FlashAttention is given their borders. For PyTorch's, transformers makes a mask
    from the positions, which restart in each document, and masked values are computed as well.
    """
    return "flash_attention_2" if DEVICE.type == "cuda" and find_spec("flash_attn") else "sdpa"


def trl_defaults(case: Case, folder: Path, gate: Gate | Follower) -> None:
    """With TRL's defaults but for packing: eight packs at once, or a divisor of a step's; recomputation."""
    packs = case.packs // case.processes
    at_once = math.gcd(TRL_PACKS_AT_ONCE, packs)
    batch = {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": packs // at_once}
    trl(case, folder, gate, gradient_checkpointing=True, **batch)


def trl_at_once(case: Case, folder: Path, gate: Gate | Follower) -> None:
    """The same with all packs of a step in one micro-batch."""
    packs = case.packs // case.processes
    trl(case, folder, gate, per_device_train_batch_size=packs, gradient_accumulation_steps=1)


def trl_liger(case: Case, folder: Path, gate: Gate | Follower) -> None:
    """The same with Liger's kernels."""
    trl(case, folder, gate, use_liger_kernel=True)


ROWS_AT_ONCE = 4


def plain(case: Case, folder: Path, gate: Gate | Follower) -> None:
    """A loop as in tutorials: transformers' model, autocast, and one conversation in each row, padded."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).to(DEVICE)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=case.learning_rate, betas=(0.9, 0.95), weight_decay=0
    )
    gate.say(settings={"rows_at_once": ROWS_AT_ONCE}, versions=versions("transformers"))
    packs = read_packs(folder)
    for step in range(case.steps):
        gate.begin()
        rows = [row for pack in packs[step * case.packs :][: case.packs] for row in conversations(pack)]
        supervised = sum(label != -100 for _, labels in rows for label in labels[1:])
        total = 0.0
        for first in range(0, len(rows), ROWS_AT_ONCE):
            inputs = {
                name: value.to(DEVICE) for name, value in pad(rows[first : first + ROWS_AT_ONCE]).items()
            }
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=case.precision == "bf16"):
                loss = model(**inputs, num_items_in_batch=supervised).loss
            loss.backward()
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        gate.end(total)
    gate.begin()


def conversations(pack: dict) -> Iterator[tuple[list[int], list[int]]]:
    """(input ids, labels) of each conversation of a pack."""
    start = 0
    for length in pack["seq_lengths"]:
        yield pack["input_ids"][start : start + length], pack["labels"][start : start + length]
        start += length


def pad(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    filled = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    columns = {name: [] for name in filled}
    for ids, labels in rows:
        for name, values in (("input_ids", ids), ("labels", labels), ("attention_mask", [1] * len(ids))):
            columns[name].append(values + [filled[name]] * (longest - len(values)))
    return {name: torch.tensor(values) for name, values in columns.items()}


@dataclasses.dataclass(frozen=True)
class Trainer:
    run: Callable[[Case, Path, Gate], None]
    packages: tuple[str, ...] = ()
    """Packages that it needs."""
    needs_gpu: bool = False
    is_alone: bool = False
    """Whether it runs in one process only."""
    changes: dict[str, dict] | None = None
    """For fastling, the values that it changes in the config; None for a peer."""
    head_on_all_rows: bool = False


PEERS = {
    "fastling": Trainer(ours, changes={}),
    "trl": Trainer(trl, ("trl",)),
    "trl, its defaults": Trainer(trl_defaults, ("trl",)),
    "trl, packs at once": Trainer(trl_at_once, ("trl",)),
    "trl + liger": Trainer(trl_liger, ("trl", "liger_kernel"), needs_gpu=True),
    "plain loop, padded": Trainer(plain, ("transformers",), is_alone=True),
}


def _rung(
    needs_gpu: bool = False, packages: tuple[str, ...] = (), head_on_all_rows: bool = False, **changes
) -> Trainer:
    run = partial(ours, head_on_all_rows=head_on_all_rows, **changes)
    return Trainer(run, packages, needs_gpu, changes=changes, head_on_all_rows=head_on_all_rows)


_PLAIN = {"kernels": "reference", "attention": "sdpa"}
# Each rung has what the one before it has, and one thing more; after compilation one thing is changed. All
# add in one order but the last, which does as peers do: the compiler may then time several forms of a kernel.
LADDER = {
    "packed": _rung(model=_PLAIN, head_on_all_rows=True),
    "+ head on supervised rows": _rung(model=_PLAIN),
    "+ FlashAttention": _rung(True, model=_PLAIN | {"attention": "auto"}),
    "+ kernels": _rung(True, model={"kernels": "triton", "attention": "auto"}),
    "+ compile": _rung(True, train={"compile": True}),
    "+ compile, float8": _rung(True, ("torchao",), train={"compile": True, "precision": "fp8"}),
    "+ compile, selective": _rung(True, train={"compile": True, "activation_checkpointing": "selective"}),
    "+ compile, full": _rung(True, train={"compile": True, "activation_checkpointing": "full"}),
    "+ compile, any order": _rung(True, train={"compile": True, "deterministic": False}),
}
TRAINERS = PEERS | LADDER


def main(name: str, folder: Path) -> None:
    gate = Gate() if os.environ.get("RANK", "0") == "0" else Follower()
    try:
        TRAINERS[name].run(read_case(folder), folder, gate)
    except Finished:
        return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
