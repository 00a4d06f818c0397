"""Times calls side by side: every job once a round, in a new random order, until samples or time run out.

On a GPU a sample is what passes between two events on the device. Before the first, untimed:

- a buffer larger than the L2 cache is written, so that the job finds none of its inputs there, and has
  to write back as many bytes of others as it may leave of its own: as in the middle of a training step;
- the device is kept busy for longer than the host needs to launch the job, so that no kernel waits for
  Python. What the host needs is measured apart, with the device idle: `host_microseconds`. A sample of
  which the host launched the end when the device had already begun is counted: `late_samples`.
"""

import json
import math
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from fastling.kernels import runtime

WARM_UPS = 2
HOST_SAMPLES = 9
HOST_SHARE = 4  # launches are measured for so small a part of the time of samples
LONGEST_HEAD_START = 2.0  # milliseconds; what takes the host longer waits for the device itself
WAKING = 50.0  # milliseconds of work after which an idle device runs at its full clock
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Job:
    """What `prepare` returns goes to `call`; only `call` is timed."""

    name: Hashable
    prepare: Callable[[], object]
    call: Callable[[object], object]


class Sample(NamedTuple):
    """One call."""

    milliseconds: float
    is_late: bool = False
    """Whether the device may have waited for the host."""


@dataclass
class Measurement:
    """Of one job: samples in milliseconds, launches in microseconds, and the most memory it held."""

    samples: list[float] = field(default_factory=list)
    late_samples: int = 0
    host: list[float] = field(default_factory=list)
    peak_extra_mib: float | None = None

    @property
    def milliseconds(self) -> float:
        """Median of the samples."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """From the first quartile to the third, in milliseconds."""
        if len(self.samples) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.samples, n=4, method="inclusive")
        return third - first

    @property
    def host_microseconds(self) -> float:
        """Median time of the host to launch the job."""
        return statistics.median(self.host)


class CpuTimer:
    """The clock of the host, for rehearsals."""

    def wake(self) -> None: ...

    def sample(self, job: Job, host_microseconds: float) -> Sample:
        return Sample(self.host_sample(job) / 1e3)

    def host_sample(self, job: Job) -> float:
        prepared = job.prepare()
        start = time.perf_counter()
        job.call(prepared)
        return (time.perf_counter() - start) * 1e6

    def peak_extra_mib(self, job: Job) -> float | None:
        job.call(job.prepare())
        return None


class CudaTimer:
    """Times by events on the current device, as described at the top of this file."""

    def __init__(self):
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.buffer = torch.empty(4 * properties.L2_cache_size, dtype=torch.uint8, device="cuda")
        # Its highest clock, in kHz: at a lower one a head start is longer than asked for, never shorter.
        self.cycles_per_millisecond = properties.clock_rate

    def _keep_busy(self, milliseconds: float) -> None:
        torch.cuda._sleep(int(milliseconds * self.cycles_per_millisecond))

    def wake(self) -> None:
        """Keep the device busy until it runs at its full clock; it may have slept while the host compiled."""
        self._keep_busy(WAKING)

    def sample(self, job: Job, host_microseconds: float) -> Sample:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        prepared = job.prepare()
        self.buffer.fill_(1)
        self._keep_busy(min(LONGEST_HEAD_START, 2 * host_microseconds / 1e3 + 0.05))
        start.record()
        job.call(prepared)
        end.record()
        is_late = start.query()
        end.synchronize()
        return Sample(start.elapsed_time(end), is_late)

    def host_sample(self, job: Job) -> float:
        """Microseconds that the host needs to launch the job while the device is idle."""
        prepared = job.prepare()
        torch.cuda.synchronize()
        start = time.perf_counter()
        job.call(prepared)
        passed = time.perf_counter() - start
        torch.cuda.synchronize()
        return passed * 1e6

    def peak_extra_mib(self, job: Job) -> float | None:
        """Peak memory of the call in MiB, without what was there before it."""
        prepared = job.prepare()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = job.call(prepared)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        del result
        return (peak - before) / 2**20


def measure(
    jobs: Iterable[Job], timer: CpuTimer | CudaTimer, *, samples: int, seconds: float
) -> dict[Hashable, Measurement]:
    """Name of a job -> its measurement: at most `samples` samples, and at least one, within `seconds`.

    Each job has an equal share of the time; a slow job that has used up its share makes no more samples.
    """
    jobs = list(jobs)
    measured = {job.name: Measurement() for job in jobs}
    share = seconds / len(jobs)
    for job in jobs:
        for _ in range(WARM_UPS):
            job.call(job.prepare())
        measured[job.name].peak_extra_mib = timer.peak_extra_mib(job)
        host, host_ends = measured[job.name].host, time.monotonic() + share / HOST_SHARE
        while not host or (len(host) < HOST_SAMPLES and time.monotonic() < host_ends):
            host.append(timer.host_sample(job))
    spent = dict.fromkeys(measured, 0.0)
    order = random.Random(0)
    timer.wake()
    for done in range(samples):
        if done:
            jobs = [job for job in jobs if spent[job.name] < share]
        order.shuffle(jobs)
        for job in jobs:
            start = time.monotonic()
            measurement = measured[job.name]
            sample = timer.sample(job, measurement.host_microseconds)
            measurement.samples.append(sample.milliseconds)
            measurement.late_samples += sample.is_late
            spent[job.name] += time.monotonic() - start
    return measured


# The machine ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Where and with what rows were measured, and the two rates that floors are made of."""

    device: str
    processor: str
    driver: str
    torch: str
    triton: str
    commit: str
    dirty: bool | None
    gpu_gib: float | None = None
    """All memory of the GPU."""
    copy_gb_s: float | None = None
    matrix_tflops: float | None = None


def describe_machine(device: torch.device) -> Machine:
    """The machine with its versions, without the rates, which take a measurement."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "absent"
    status = _said("git", "status", "--porcelain")
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return Machine(
        device=gpu.name if gpu else device.type,
        processor=_processor(),
        driver=_driver() if gpu else "none",
        torch=torch.__version__,
        triton=triton_version,
        commit=_said("git", "rev-parse", "HEAD") or os.environ.get("FASTLING_COMMIT", "unknown"),
        dirty=None if status is None else bool(status),
        gpu_gib=gpu.total_memory / 2**30 if gpu else None,
    )


def _processor() -> str:
    """Its name, its cores, and the widest products of bf16 numbers it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    flags = told.get("flags", "").split()
    products = next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags), None)
    name = told.get("model name") or platform.processor() or "unknown"
    return ", ".join(filter(None, [name, f"{os.cpu_count()} cores", products]))


def _driver() -> str:
    said = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return said.splitlines()[0] if said else "unknown"


def _said(*command: str) -> str | None:
    """What a program prints; None where it is absent or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def machine_with_rates(
    timer: CpuTimer | CudaTimer, device: torch.device, *, copy_bytes: int, matrix_size: int, samples: int
) -> Machine:
    """The machine with its rates: GB/s of a copy, counting bytes read and written, and TFLOP/s of a square
    product of random values in bf16, or in float32 on a CPU that has no instructions for bf16."""
    source = torch.randn(copy_bytes // 2, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    dtype = torch.float32 if runtime.lacks_products(device, torch.bfloat16) else torch.bfloat16
    left, right = torch.randn(2, matrix_size, matrix_size, device=device, dtype=dtype)
    product = torch.empty_like(left)
    jobs = [
        Job("copy", lambda: None, lambda _: target.copy_(source)),
        Job("product", lambda: None, lambda _: torch.mm(left, right, out=product)),
    ]
    measured = measure(jobs, timer, samples=samples, seconds=10)
    # Of a CPU the fastest sample, since other programs slow it down; a GPU's clock may jump up for one.
    typical = min if device.type == "cpu" else statistics.median
    milliseconds = {name: typical(each.samples) for name, each in measured.items()}
    return replace(
        describe_machine(device),
        copy_gb_s=2 * copy_bytes / milliseconds["copy"] / 1e6,
        matrix_tflops=2 * matrix_size**3 / milliseconds["product"] / 1e9,
    )


# Rows -----------------------------------------------------------------------------------------------


def now() -> str:
    """The time in UTC, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")


KEYS = (
    "bench", "case", "provider", "device", "torch", "triton", "commit", "date", "milliseconds", "spread",
)  # fmt: skip
"""Keys that every row in every file of results has."""


def with_every_key(row: dict) -> dict:
    """The row with all of KEYS, whose value is None where the row does not have one."""
    return dict.fromkeys(KEYS) | row


def command_line(benchmark: str, arguments: Sequence[str]) -> str:
    """The command that was given, without the folders of its files, which are those of one machine."""
    named = [each if ":" in each or each.startswith("-") else Path(each).name for each in arguments]
    return shlex.join(["python", "-m", f"benchmarks.{benchmark}", *named])


def add_rows(rows: Iterable[dict], out: Path | None, command: str | None = None) -> None:
    """Append rows to a file of JSON lines, unless `out` is None, and flush them to the disk.

    `command` is put into every row, for rows that have none of their own.
    """
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        same = {"command": command} if command else {}
        with open(out, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(_finite(with_every_key(row | same))) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())


def _finite(value: object) -> object:
    """JSON has no NaN and no infinity: they become their names."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def make_table_console(width_of_a_file: int = 160) -> Console:
    """A console on stdout that shows text as it is; in a file or a pipe wide enough for a table."""
    width = None if sys.stdout.isatty() else width_of_a_file
    return Console(width=width, highlight=False, markup=False, emoji=False)
