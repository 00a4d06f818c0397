"""The metrics of a step: loss, gradient, memory, and honest speed (P14)."""

import math
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fastling.data.batches import Step
from fastling.data.packing import Plan
from fastling.errors import RunError
from fastling.model.llama import Llama
from fastling.training.parallel import World
from fastling.training.work import Work, peak_flops


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
    log-likelihoods of each source, and how many processes received a stop signal."""
    finished: "Mark"

    def wait(self) -> tuple[float, float, list[float]]:
        """Wait for the device; return the gradient's norm, the loss, and sum and count of each source."""
        self.finished.wait()
        grad_norm, loss, *by_source, _ = self.numbers.tolist()
        return grad_norm, loss, by_source

    def stops(self) -> bool:
        """Wait for the device; return whether any process received a stop signal; all processes agree."""
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
    """Raise RunError if a number is NaN or infinite: no later step repairs it. Step 0 precedes the first."""
    if not all(map(math.isfinite, numbers.values())):
        shown = ", ".join(f"{name} {number}" for name, number in numbers.items())
        fix = "A lower optimizer.lr may help; it needs a new run_dir, since a run keeps its settings."
        if step == 0:
            fix = "The model produces these before any training: try train.precision fp32, or other weights."
        raise RunError(f"step {step}", f"a loss or gradient norm is not finite: {shown}", fix)
