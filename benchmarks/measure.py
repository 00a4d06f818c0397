"""Measures workloads one after the other, and writes a line of JSON for each result as it comes.

A case is judged before it is timed: every provider computes it from the same inputs, and is compared with
the formula in float64. What is wrong is given no speed; what is only inexact is, beside that verdict.
"""

import gc
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import providers, timing, workloads
from benchmarks.providers import EAGER, PRODUCTS, Provider
from benchmarks.timing import CpuTimer, CudaTimer, Job, Machine, Measurement
from benchmarks.workloads import Workload
from fastling.errors import RunError, kind_and_line
from fastling.kernels import accuracy
from fastling.kernels.cases import MODELS, Inputs, Shape


@dataclass(frozen=True)
class Settings:
    """Sizes and times of a benchmark: the real one, or a rehearsal."""

    device: torch.device
    dtype: torch.dtype
    make_timer: Callable[[], CpuTimer | CudaTimer]
    shapes: tuple[Shape, ...]
    wide_shape: Shape  # for offsets beyond `limit` values
    limit: int
    samples: int
    case_seconds: float
    copy_bytes: int
    matrix_size: int
    compiler: str


EARNEST = Settings(
    torch.device("cuda"), torch.bfloat16, CudaTimer, tuple(workloads.SHAPES), MODELS["llama3-8b"],
    limit=2**31, samples=50, case_seconds=8.0, copy_bytes=2**31, matrix_size=8192, compiler="inductor",
)  # fmt: skip
TINY = Shape("tiny", 20, 32, 48, heads=4, kv_heads=2, head_dim=8, vocab=120)
REHEARSAL = Settings(
    # float32, since the interpreter does not round to bfloat16 but cuts off.
    torch.device("cpu"), torch.float32, CpuTimer, (TINY,), TINY,
    limit=2**11, samples=2, case_seconds=0.3, copy_bytes=2**20, matrix_size=64, compiler="aot_eager",
)  # fmt: skip
SECONDS_TO_BEGIN = 8.0  # with less time left, no case is begun


class Subject:
    """A provider with the inputs of one case, of which it has copies where it overwrites them."""

    def __init__(self, provider: Provider, inputs: Inputs):
        self.provider = provider
        self.given = {name: inputs[name] for name in provider.overwrites}
        self.inputs = inputs | {
            name: x.detach().clone().requires_grad_(x.requires_grad) for name, x in self.given.items()
        }
        self.leaves = list(accuracy.leaves_of(self.inputs).values())
        self.call = provider.build(self.inputs)
        self.gradients: list[Tensor] = []

    def results(self, gradients: list[Tensor]) -> accuracy.Parts:
        """Outputs and gradients, by name, given the gradients of the outputs."""
        with accuracy.poisoned() if self.provider.is_ours else nullcontext():
            parts = accuracy.run(self.call, self.inputs, gradients)
        outputs = [parts[name] for name in parts if not name.startswith("d ")]
        # A library may give its loss in another type.
        self.gradients = [x.to(output.dtype) for x, output in zip(gradients, outputs, strict=False)]
        return parts

    def jobs(self, passes: Iterable[str]) -> list[Job]:
        """What is timed for each of the passes."""
        jobs = {
            "forward": (self._restore, lambda _: self.call()),
            "update": (self._restore, lambda _: self.call()),
            "backward": (self._run_forward, lambda prepared: self._differentiate(*prepared)),
            "forward+backward": (self._copy_gradients, lambda prepared: self._differentiate(None, prepared)),
        }
        return [Job((self.provider.name, passed), *jobs[passed]) for passed in passes]

    def _restore(self) -> None:
        with torch.no_grad():
            for name, x in self.given.items():
                self.inputs[name].copy_(x)

    def _copy_gradients(self) -> list[Tensor]:
        """Copies for each call, since some backward passes overwrite the gradients that they are given."""
        self._restore()
        return [gradient.clone() for gradient in self.gradients]

    def _run_forward(self) -> tuple[list[Tensor], list[Tensor]]:
        gradients = self._copy_gradients()
        return accuracy.outputs_of(self.call), gradients

    def _differentiate(self, outputs: list[Tensor] | None, gradients: list[Tensor]) -> list[Tensor]:
        outputs = accuracy.outputs_of(self.call) if outputs is None else outputs
        return accuracy.differentiate(outputs, self.leaves, gradients)


class GpuFailed(RunError):
    """After a call of `provider`, this process cannot use the GPU any more."""

    def __init__(self, where: str, provider: str, error: Exception):
        super().__init__(f"{where}, {provider}", f"the GPU has failed: {kind_and_line(error)}")
        self.provider = provider


class Session:
    """One run of the benchmark: measures case after case, and writes rows to `out`, for so many minutes.

    Providers in `without` are left out.
    """

    def __init__(
        self,
        settings: Settings,
        out: Path | None,
        minutes: float,
        command: list[str],
        without: Collection[str] = (),
    ):
        self.settings = settings
        self.without = without
        self.out = out
        self.ends = time.monotonic() + minutes * 60
        self.command = shlex.join(["python", "-m", "benchmarks.kernels", *command])
        self.rows: list[dict] = []
        self.absent: dict[str, str] = {}
        self.left_out: list[str] = []
        self.timer = settings.make_timer()
        self.machine = self._look_at_machine()

    def _look_at_machine(self) -> Machine:
        settings = self.settings
        machine = timing.machine_with_rates(
            self.timer, settings.device, copy_bytes=settings.copy_bytes, matrix_size=settings.matrix_size,
            samples=settings.samples,
        )  # fmt: skip
        say(", ".join(f"{name} {value}" for name, value in asdict(machine).items()))
        return machine

    def run(self, only: str | None) -> int:
        """Exit status: 0, or 1 if something of ours is wrong or failed.

        Raises RunError if there is no time for any case.
        """
        settings = self.settings
        for workload in workloads.beyond(settings.limit, settings.wide_shape):
            if only in (None, workload.op_name):
                self._case(workload, self._check_far_offsets)
        for workload in workloads.plan(list(settings.shapes)):
            if only in (None, workload.op_name):
                self._case(workload, self._measure)
        for case in self.left_out:
            say(f"left out, time was short: {case}")
        if not self.rows and not self.without:  # a session begun again without a peer has left rows before
            raise RunError("--minutes", "left no time for any case", "Give more, such as 7.")
        failed = [row for row in self.rows if row["provider"].startswith(providers.OURS)]
        failed = [row for row in failed if row["verdict"] != "ok"]
        for row in failed:
            say(f"FAILED {row['op']}, {row['case']}, {row['pass']}, {row['provider']}: {row['why']}")
        return 1 if failed else 0

    def _case(self, workload: Workload, work: Callable[[Workload], None]) -> None:
        if self.ends - time.monotonic() < SECONDS_TO_BEGIN:
            self.left_out.append(f"{workload.op_name}, {workload.case}")
            return
        try:
            work(workload)
        except GpuFailed:
            raise
        except Exception as error:
            self._fail(workload, providers.OURS, error)
        torch._dynamo.reset()  # each shape compiles; after eight Dynamo silently stops
        gc.collect()
        if self.settings.device.type == "cuda":
            torch.cuda.empty_cache()

    def _fail(self, workload: Workload, provider: str, error: Exception) -> None:
        """Write a row about an error. Raises GpuFailed if the device itself has failed."""
        where = f"{workload.op_name}, {workload.case}"
        say(f"failed: {where}, {provider}: {kind_and_line(error)}")
        self._write(workload, provider, "case", verdict="failed", why=kind_and_line(error))
        try:
            self._wait()
        except RuntimeError:
            raise GpuFailed(where, provider, error) from error

    def _wait(self) -> None:
        """Wait for the device, which reports its errors only then."""
        if self.settings.device.type == "cuda":
            torch.cuda.synchronize()

    def _candidates(self, workload: Workload) -> list[Provider]:
        every = providers.of(workload.op_name, self.settings.compiler)
        return [provider for provider in every if provider.name not in self.without]

    # Judging ----------------------------------------------------------------------------------------

    def _subjects(
        self, workload: Workload, inputs: Inputs, candidates: list[Provider]
    ) -> tuple[dict[str, Subject], dict[str, dict[str, float]]]:
        """(provider -> its subject, provider -> errors by part), for providers that can compute the case."""
        (plain,) = (provider for provider in candidates if provider.name == EAGER)
        gradients = accuracy.random_gradients(accuracy.outputs_of(Subject(plain, inputs).call))
        subjects, results = {}, {}
        for provider in candidates:
            try:
                subject = Subject(provider, inputs)
                results[provider.name] = subject.results(gradients)
                self._wait()  # an error is then this one's
                subjects[provider.name] = subject
            except ImportError as error:
                self._note_absence(workload, provider, error)
            except Exception as error:
                self._fail(workload, provider.name, error)
        return subjects, accuracy.errors(workload.op.exact, inputs, gradients, results)

    def _note_absence(self, workload: Workload, provider: Provider, error: ImportError) -> None:
        if provider.name not in self.absent:
            self.absent[provider.name] = kind_and_line(error)
            say(f"absent: {provider.name}: {kind_and_line(error)}")
            self._write(workload, provider.name, "absent", verdict="absent", why=kind_and_line(error))

    def _check_far_offsets(self, workload: Workload) -> None:
        inputs = workload.inputs(self.settings.dtype, self.settings.device)
        every = self._candidates(workload)
        _, errors = self._subjects(workload, inputs, [every[0], *(x for x in every if x.name == EAGER)])
        for name, found in errors.items():
            verdict, why = accuracy.verdict(found, errors[EAGER])
            self._write(workload, name, "far offsets", verdict=verdict, why=why, errors=found)
            say(f"{workload.op_name}, {workload.case}, far offsets: {name} {verdict} {why}")

    # Timing -----------------------------------------------------------------------------------------

    def _measure(self, workload: Workload) -> None:
        inputs = workload.inputs(self.settings.dtype, self.settings.device)
        candidates = self._candidates(workload)
        if workload.op_name == "linear_cross_entropy" and workload.supervised == 100:
            candidates = [provider for provider in candidates if provider.name != providers.ALL_ROWS]
        subjects, errors = self._subjects(workload, inputs, candidates)
        verdicts = {name: accuracy.verdict(found, errors[EAGER]) for name, found in errors.items()}
        timed = [subject for name, subject in subjects.items() if verdicts[name][0] in ("ok", "inexact")]
        jobs = [job for subject in timed for job in subject.jobs(workload.passes)]
        if workload.flops():
            call = providers.products(inputs)
            jobs.append(Job((PRODUCTS, "forward+backward"), lambda: None, lambda _: call()))
        measured = timing.measure(
            jobs, self.timer, samples=self.settings.samples,
            seconds=min(self.settings.case_seconds, max(0.0, self.ends - time.monotonic())),
        )  # fmt: skip
        for passed in workload.passes:
            floor = self._floor(workload, passed, measured)
            if workload.flops():
                self._write_speed(workload, PRODUCTS, passed, measured, floor, "ok", "", {})
            for name in subjects:
                found = {part: error for part, error in errors[name].items() if counts_in(part, passed)}
                self._write_speed(workload, name, passed, measured, floor, *verdicts[name], found)
            self._say_pass(workload, passed, floor)

    def _floor(self, workload: Workload, passed: str, measured: dict[tuple, Measurement]) -> float:
        """The fewest milliseconds that the pass can take, by what was just measured on this machine."""
        if workload.flops():
            return measured[PRODUCTS, passed].milliseconds
        return workload.bytes(passed, self.settings.dtype) / self.machine.copy_gb_s / 1e6

    def _write_speed(self, workload, name, passed, measured, floor, verdict, why, errors) -> None:
        measurement = measured.get((name, passed))
        speed = {}
        if measurement is not None:
            speed = {
                "milliseconds": measurement.milliseconds,
                "spread": measurement.spread,
                "host_microseconds": measurement.host_microseconds,
                "ratio_to_floor": measurement.milliseconds / floor,
                "peak_extra_mib": measurement.peak_extra_mib,
                "samples": len(measurement.samples),
                "late_samples": measurement.late_samples,
            }
        self._write(
            workload, name, passed, verdict=verdict, why=why, errors=errors, floor_milliseconds=floor,
            bytes=workload.bytes(passed, self.settings.dtype), flops=workload.flops(), **speed,
        )  # fmt: skip

    def _write(self, workload: Workload, provider: str, passed: str, **found) -> None:
        """Write one row, which is on the disk before anything else happens."""
        errors = found.get("errors") or {}
        row = {
            "bench": "kernels" if self.settings.device.type == "cuda" else "kernels (rehearsal)",
            "op": workload.op_name, "case": workload.case, "provider": provider, "pass": passed,
            "milliseconds": None, "spread": None, "host_microseconds": None, "samples": 0, "late_samples": 0,
            "bytes": None, "flops": None, "floor_milliseconds": None, "ratio_to_floor": None,
            "max_error": max(errors.values(), default=None), "errors": errors, "peak_extra_mib": None,
            "dtype": str(workload.dtype(self.settings.dtype)).removeprefix("torch."),
            **found, **asdict(self.machine), "date": timing.now(), "command": self.command,
        }  # fmt: skip
        self.rows.append(row)
        timing.add_rows([row], self.out)

    def _say_pass(self, workload: Workload, passed: str, floor: float) -> None:
        say(f"{workload.op_name}, {workload.case}, {passed}: floor {floor:.4g} ms")
        here = (workload.op_name, workload.case, passed)
        for row in self.rows:
            if (row["op"], row["case"], row["pass"]) == here:
                speed = "no speed"
                if row["milliseconds"] is not None:
                    speed = f"{row['milliseconds']:.4g} ms, {row['ratio_to_floor']:.3f} x floor"
                    speed += f", host {row['host_microseconds']:.0f} us, {row['samples']} samples"
                    speed += f", {row['late_samples']} late" if row["late_samples"] else ""
                say(f"    {row['provider']:<26}{speed}  {row['verdict']} {row['why']}")


def counts_in(part: str, passed: str) -> bool:
    """Whether a part, "output" or "d x", is computed in a pass."""
    return passed in ("forward+backward", "update") or part.startswith("d ") == (passed == "backward")


def say(words: str) -> None:
    """Print to stderr."""
    print(words, file=sys.stderr, flush=True)
