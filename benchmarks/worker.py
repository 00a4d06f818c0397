"""Runs a trainer, or another program that makes steps, in a process of its own."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Timer

from benchmarks.trainers import DEVICE, TRAINERS
from fastling.errors import RunError

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # On Hopper cuDNN would make a plan of attention for each new length of a peer's rows.
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
    # As fastling has it, so that no peer runs out of memory sooner for want of it.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}
"""Environment variables of a trainer."""
MOST_SILENT_MINUTES = 5.0
"""On a GPU, a process that says nothing for so long is ended: it would keep the others from the GPU."""


@dataclasses.dataclass
class Result:
    """What a trainer reported."""

    settings: dict = dataclasses.field(default_factory=dict)
    versions: dict = dataclasses.field(default_factory=dict)
    steps: list[dict] = dataclasses.field(default_factory=list)
    peak_gib: float = 0.0
    communication: dict[str, float] = dataclasses.field(default_factory=dict)
    """Milliseconds of one more step, where several processes shared it."""
    error: str | None = None


class Worker:
    """A module's process behind a gate of benchmarks.trainers, which does nothing unless told to."""

    def __init__(self, name: str, log: Path, module: Sequence[str], environment: Mapping[str, str]):
        self.name, self.log, self.result = name, log, Result()
        with open(log, "w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=os.environ | environment,
            )

    def _hear(self) -> dict:
        patience = Timer(60 * MOST_SILENT_MINUTES, self.process.terminate)
        if DEVICE.type == "cuda":
            patience.start()
        line = self.process.stdout.readline()
        was_too_long = patience.finished.is_set()
        patience.cancel()
        if not line:
            said = self.log.read_text(encoding="utf-8", errors="replace")
            why = f"was silent for {MOST_SILENT_MINUTES:g} minutes" if was_too_long else "ended early"
            raise RunError(self.name, f"{why}: {last_words(said)}")
        return json.loads(line)

    def _tell(self, words: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # that the process has ended is noticed by `_hear`
            self.process.stdin.write(words + "\n")
            self.process.stdin.flush()

    def start(self) -> None:
        """Wait until the process has loaded what it needs."""
        said = self._hear()
        self.result.settings, self.result.versions = said["settings"], said["versions"]

    def make_steps(self, number: int) -> None:
        """Have the process make this many steps, and wait for them. Raises RunError if it ends before."""
        self._tell(f"steps {number}")
        self.result.steps += [self._hear() for _ in range(number)]

    def end(self) -> Result:
        """Have the process report its peak memory, and return all that it has reported."""
        self._tell("end")
        said = self._hear()
        self.result.peak_gib, self.result.communication = said["peak_gib"], said.get("communication", {})
        return self.result

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()  # torchrun then ends those that it started
        self.process.communicate()


class TrainerWorker(Worker):
    """The process of a trainer, or its several processes under torchrun."""

    def __init__(self, name: str, folder: Path, processes: int):
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
        launcher = torchrun if processes > 1 else []
        log = folder / f"{list(TRAINERS).index(name)}.log"
        super().__init__(name, log, [*launcher, "benchmarks.trainers", name, str(folder)], ENVIRONMENT)


def last_words(log: str) -> str:
    """The line of a log that says what was wrong: the last error, without the advice that may follow it."""
    lines = [re.sub(r"^\[rank\d+\]: ?", "", line).strip() for line in log.strip().splitlines()]
    wrong = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return [*(lines or ["without a word"])[-1:], *wrong][-1]
