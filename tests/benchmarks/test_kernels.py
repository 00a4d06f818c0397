"""The benchmark of the kernels: its rehearsal from end to end, and that it reports no speed it should not."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, run_python

pytest.importorskip("triton")

from benchmarks import kernels, measure, providers, timing, workloads
from benchmarks.providers import EAGER, OURS, PRODUCTS, Provider
from benchmarks.timing import CudaTimer, Job, Measurement, Sample
from benchmarks.workloads import Workload
from fastling.errors import RunError, UserError
from fastling.kernels import runtime
from fastling.kernels.cases import MODELS, OPS
from fastling.kernels.cross_entropy import IGNORE_INDEX
from fastling.kernels.swiglu import swiglu, swiglu_reference

pytestmark = pytest.mark.slow  # servers, processes or compilers: many seconds in all

FIELDS = (
    "bench case provider pass device driver torch triton commit dirty date milliseconds spread host_microseconds "
    "bytes flops floor_milliseconds ratio_to_floor max_error peak_extra_mib copy_gb_s matrix_tflops samples late_samples command"
).split()
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
QUICK = replace(measure.REHEARSAL, samples=1, case_seconds=0.0)


# From end to end ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark") / "kernels.jsonl"
    done = run_python("benchmarks.kernels", "--rehearse", "--out", out, "--minutes", 60)
    return done, [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
@without_gpu
def test_every_provider_of_every_op_is_measured(rehearsed):
    done, rows = rehearsed
    assert done.returncode == 0, done.stderr
    measured = {(row["op"], row["pass"], row["provider"]) for row in rows if row["milliseconds"] is not None}
    absent = {row["provider"] for row in rows if row["pass"] == "absent"}
    for workload in workloads.plan(list(measure.REHEARSAL.shapes)):
        for passed in workload.passes:
            for provider in providers.of(workload.op_name):
                if provider.name not in absent:
                    assert (workload.op_name, passed, provider.name) in measured
    assert ("linear_cross_entropy", "forward+backward", PRODUCTS) in measured
    assert absent <= {"Liger-Kernel", "cut-cross-entropy", "F.linear_cross_entropy"}


@pytest.mark.slow
@without_gpu
def test_a_row_says_where_when_and_with_what_it_was_measured(rehearsed):
    _, rows = rehearsed
    for row in rows:
        assert not set(FIELDS) - row.keys()
        assert row["bench"] == "kernels (rehearsal)" and row["device"] == "cpu"
        assert row["command"].startswith("python -m benchmarks.kernels --rehearse --out ")
        if row["milliseconds"] is not None:
            assert row["ratio_to_floor"] == pytest.approx(row["milliseconds"] / row["floor_milliseconds"])
            assert row["samples"] >= 1 and row["host_microseconds"] > 0 and row["spread"] >= 0
    far = [row for row in rows if row["pass"] == "far offsets" and row["provider"] == OURS]
    assert len(far) == 6 and all(row["verdict"] == "ok" for row in far)


@without_gpu
def test_a_killed_run_leaves_whole_lines(tmp_path):
    out = tmp_path / "kernels.jsonl"
    command = [sys.executable, "-m", "benchmarks.kernels", "--rehearse", "--only", "rms_norm", "--out", out]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not (out.exists() and out.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    text = out.read_text()
    assert text.endswith("\n")
    assert all(json.loads(line)["op"] == "rms_norm" for line in text.splitlines())


@without_gpu
def test_commands_that_need_a_gpu_say_so():
    done = run_python("benchmarks.kernels")
    assert done.returncode == 2
    assert "error: benchmarks.kernels: needs a CUDA device\n  Without one there are --static" in done.stderr


@without_gpu
def test_errors_are_printed_for_every_part_of_an_op():
    done = run_python("benchmarks.kernels", "--errors", "--only", "swiglu")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[1][:3] == ["swiglu", "float32", "output"] and float(lines[1][3]) < 1e-6
    assert [line[1] for line in lines[1:7:2]] == ["float32", "bfloat16", "float16"]
    assert "bfloat16 is cut off, not rounded" in done.stdout


def test_interpreted_kernels_are_not_compiled(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UserError, match="--static: TRITON_INTERPRET is set"):
        kernels.main(["--static"])


@without_gpu
def test_an_unknown_op_is_refused():
    with pytest.raises(UserError, match="--only: no such op: swish\n  The ops are: rms_norm"):
        kernels.main(["--rehearse", "--only", "swish"])


def test_help_says_how_to_test_on_a_gpu(capsys):
    with pytest.raises(SystemExit):
        kernels.main(["--help"])
    assert "`make gpu-test`" in capsys.readouterr().out


# No speed without exactness -------------------------------------------------------------------------


def run_swiglu(monkeypatch, function, tmp_path, name: str = OURS) -> tuple[int, list[dict]]:
    """A run of swiglu in which `name` computes `function`."""
    replaced = Provider(name, lambda inputs: lambda: function(inputs["gate_up_T2F"]))
    if name == OURS:
        monkeypatch.setitem(providers.OURS_BY_OP, "swiglu", [replaced])
    else:
        monkeypatch.setitem(providers.OTHERS, "swiglu", [replaced])
    monkeypatch.setattr(providers, "_compiled", lambda function, compiler: function)
    out = tmp_path / "rows.jsonl"
    status = measure.Session(QUICK, out, 60.0, []).run("swiglu")
    return status, [json.loads(line) for line in out.read_text().splitlines()]


def unwritten(gate_up_T2F):
    y = swiglu(gate_up_T2F)
    return y + gate_up_T2F.new_empty(y.shape)


@pytest.mark.parametrize(
    "function, verdict",
    [
        (lambda x: swiglu(x) * 1.5, "wrong"),
        (lambda x: (swiglu(x), swiglu(x)), "failed"),
        (unwritten, "wrong"),
    ],
    ids=["far off", "two outputs", "memory that was never written"],
)
def test_ours_has_no_speed_where_it_is_wrong(monkeypatch, tmp_path, function, verdict):
    status, rows = run_swiglu(monkeypatch, function, tmp_path)
    assert status == 1
    ours = [row for row in rows if row["provider"] == OURS]
    assert {row["verdict"] for row in ours} == {verdict} and all(row["milliseconds"] is None for row in ours)
    assert all(row["why"] for row in ours)
    plain = [row for row in rows if row["provider"] == EAGER and row["pass"] in workloads.PASSES]
    assert len(plain) == 3 and all(row["milliseconds"] > 0 and row["verdict"] == "ok" for row in plain)


def test_ours_is_timed_where_it_is_inexact_and_fails_all_the_same(monkeypatch, tmp_path):
    """What a kernel would take says something while it is being mended, and machines are dear."""
    status, rows = run_swiglu(monkeypatch, lambda x: swiglu(x) * 1.0001, tmp_path)
    ours = [row for row in rows if row["provider"] == OURS and row["pass"] in workloads.PASSES]
    assert status == 1 and {row["verdict"] for row in ours} == {"inexact"}
    assert all(row["why"] and row["milliseconds"] > 0 for row in ours)


def test_a_wrong_peer_has_no_speed_and_an_inexact_one_is_marked(monkeypatch, tmp_path):
    status, rows = run_swiglu(monkeypatch, lambda x: swiglu_reference(x) * 1.5, tmp_path, "peer")
    peer = [row for row in rows if row["provider"] == "peer"]
    assert status == 0 and {(row["verdict"], row["milliseconds"]) for row in peer} == {("wrong", None)}
    (tmp_path / "rows.jsonl").unlink()
    status, rows = run_swiglu(monkeypatch, lambda x: swiglu_reference(x) * 1.0001, tmp_path, "peer")
    peer = [row for row in rows if row["provider"] == "peer"]
    assert status == 0 and {row["verdict"] for row in peer} == {"inexact"}
    assert all(row["milliseconds"] > 0 for row in peer)


def test_a_peer_that_fails_stops_nobody(monkeypatch, tmp_path):
    def fails(x):
        raise RuntimeError("out of memory\nand more")

    status, rows = run_swiglu(monkeypatch, fails, tmp_path, "peer")
    (peer,) = [row for row in rows if row["provider"] == "peer"]
    assert status == 0 and (peer["verdict"], peer["why"]) == ("failed", "RuntimeError: out of memory")
    assert any(row["milliseconds"] for row in rows if row["provider"] == OURS)


def test_ours_failing_fails_the_run(monkeypatch, tmp_path):
    def fails(x):
        raise ValueError("swiglu: no")

    status, rows = run_swiglu(monkeypatch, fails, tmp_path)
    assert status == 1 and {row["why"] for row in rows if row["provider"] == OURS} == {
        "ValueError: swiglu: no"
    }


def test_too_few_minutes_for_any_case_fail_the_run_and_name_every_case(tmp_path, capsys):
    session = measure.Session(QUICK, tmp_path / "rows.jsonl", 0.0, [])
    with pytest.raises(RunError, match="--minutes: left no time for any case"):
        session.run(None)
    assert session.rows == []
    planned = len(workloads.plan([measure.TINY])) + len(workloads.beyond(QUICK.limit, measure.TINY))
    assert capsys.readouterr().err.count("left out, time was short: ") == planned
    # Begun again without a peer that broke the GPU late: the rows are those of the process before.
    assert measure.Session(QUICK, None, 0.0, [], ["Liger-Kernel"]).run(None) == 0


def test_a_broken_gpu_ends_the_run(monkeypatch):
    session = measure.Session(QUICK, None, 1.0, [])
    session.settings = replace(QUICK, device=torch.device("cuda"))
    workload = Workload("swiglu", measure.TINY)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    session._fail(workload, "peer", RuntimeError("only this call"))

    def raises():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", raises)
    with pytest.raises(measure.GpuFailed, match="peer: the GPU has failed: RuntimeError: illegal"):
        session._fail(workload, "peer", RuntimeError("illegal"))


def test_the_provider_that_broke_the_gpu_is_identified(monkeypatch, tmp_path):
    """Kernels fail when the host has long gone on, and then everything does."""
    broken = []

    def breaks(x):
        broken.append(True)
        return swiglu_reference(x)

    def wait(self):
        if broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(measure.Session, "_wait", wait)
    with pytest.raises(measure.GpuFailed, match="peer: the GPU has failed: RuntimeError: CUDA error: an ill"):
        run_swiglu(monkeypatch, breaks, tmp_path, "peer")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["provider"] for row in rows if row["verdict"] == "failed"} == {"peer"}


@without_gpu
def test_a_peer_that_breaks_the_gpu_is_left_out_of_a_new_beginning(monkeypatch):
    """Another process, since a broken GPU context cannot be mended, with the minutes that are left."""
    begun = []
    monkeypatch.setattr(os, "execv", lambda program, command: begun.append(command[1:]))

    def breaks(provider):
        def run(self, only):
            raise measure.GpuFailed("rms_norm, some tokens", provider, RuntimeError("illegal"))

        monkeypatch.setattr(measure.Session, "run", run)
        return kernels.main(["--rehearse", "--minutes", "50", "--without", "Liger-Kernel"])

    breaks("cut-cross-entropy")
    (command,) = begun
    assert command[:2] == ["-m", "benchmarks.kernels"]
    options = kernels._parse(command[2:])
    assert options.without == ["Liger-Kernel", "cut-cross-entropy"] and 40 < options.minutes <= 50
    for provider in (OURS, EAGER):  # without which there is nothing to measure
        with pytest.raises(RunError, match=f"{provider}: the GPU has failed"):
            breaks(provider)


@without_gpu
def test_excluded_providers_are_not_run(monkeypatch, tmp_path):
    monkeypatch.setitem(providers.OTHERS, "swiglu", [Provider("Liger-Kernel", lambda inputs: pytest.fail())])
    session = measure.Session(QUICK, tmp_path / "rows.jsonl", 60.0, [], ["Liger-Kernel", "torch.compile"])
    assert session.run("swiglu") == 0
    assert {row["provider"] for row in session.rows} == {OURS, EAGER}
    with pytest.raises(UserError, match="--without: no such peer: Liger\n  The peers are: torch.compile, F."):
        kernels.main(["--rehearse", "--without", "Liger"])


# Workloads ------------------------------------------------------------------------------------------


def test_bytes_and_flops_of_a_large_case():
    shape = MODELS["llama3-8b"]
    norm, head = Workload("rms_norm", shape), Workload("linear_cross_entropy", shape, 45)
    assert norm.bytes("forward", torch.bfloat16) == 2 * 8192 * 4096 * 2 + 4 * 8192
    assert norm.bytes("backward", torch.bfloat16) == 3 * 8192 * 4096 * 2 + 4 * 8192
    assert norm.bytes("forward+backward", torch.bfloat16) == 5 * 8192 * 4096 * 2 + 8 * 8192
    assert head.num_rows == 3686 and head.flops() == 6 * 3686 * 4096 * 128256
    assert Workload("adamw_", shape).bytes("update", torch.bfloat16) == 28 * 8192 * 4096
    assert head.passes == ("forward+backward",) and norm.passes == workloads.PASSES


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("op_name", workloads.LOSSES)
def test_losses_are_means_over_the_supervised_share(op_name, trained):
    shape = replace(measure.TINY, tokens=200, vocab=50)
    workload = Workload(op_name, shape, 45 if op_name == "linear_cross_entropy" else 100, trained)
    inputs = workload.inputs(torch.float32, torch.device("cpu"))
    valid = inputs["labels_S"] != IGNORE_INDEX
    assert valid.sum() == workload.num_rows
    assert (inputs["weights_S"] * valid).sum().item() == pytest.approx(1)
    loss = workload.op.reference(**inputs).item()
    assert loss < 1.5 if trained else loss > 3.5


def test_the_plan_names_each_case_once_and_every_op():
    plan = workloads.plan(workloads.SHAPES)
    assert len({(each.op_name, each.case) for each in plan}) == len(plan)
    assert {each.op_name for each in plan} == set(OPS)
    assert {each.shape.name for each in plan} == set(MODELS)
    assert {each.supervised for each in plan if each.op_name == "linear_cross_entropy"} == {30, 45, 60, 100}


def test_far_offsets_are_beyond_32_bits():
    widths = {"swiglu": 28672, "cross_entropy": 128256, "rms_norm": 4096, "rotary": 4096}
    for workload in workloads.beyond(2**31, MODELS["llama3-8b"]):
        width = widths.get(workload.op_name, 48 * 128)
        assert 2**31 < workload.shape.tokens * width < 1.01 * 2**31


# Timing ---------------------------------------------------------------------------------------------


class FakeTimer:
    """Says how long the jobs take; notes the order in which they ran. Only the slow one takes time."""

    def __init__(self, monkeypatch):
        self.order, self.now = [], 0.0
        monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: self.now))

    def sample(self, job, host_microseconds):
        self.order.append(job.name)
        self.now += 0.03 if job.name == "slow" else 0
        return Sample({"fast": 1.0, "slow": 2.0 + len(self.order)}[job.name], job.name == "slow")

    def wake(self):
        assert not self.order

    def host_sample(self, job):
        return 7.0

    def peak_extra_mib(self, job):
        return 3.0


def test_every_round_has_every_job_in_an_order_of_its_own(monkeypatch):
    timer, calls = FakeTimer(monkeypatch), []
    jobs = [Job(name, lambda: "prepared", calls.append) for name in ("fast", "slow")]
    measured = timing.measure(jobs, timer, samples=20, seconds=60)
    assert len(timer.order) == 40
    rounds = [tuple(timer.order[i : i + 2]) for i in range(0, 40, 2)]
    assert all(sorted(each) == ["fast", "slow"] for each in rounds) and len(set(rounds)) == 2
    assert measured["fast"].milliseconds == 1.0 and measured["fast"].spread == 0.0
    assert len(measured["slow"].samples) == 20 and measured["slow"].spread > 0
    assert (measured["fast"].late_samples, measured["slow"].late_samples) == (0, 20)
    assert measured["fast"].host_microseconds == 7.0 and measured["fast"].peak_extra_mib == 3.0
    assert calls == ["prepared"] * 2 * timing.WARM_UPS


def test_time_ends_the_rounds_but_for_the_first(monkeypatch):
    measured = timing.measure(
        [Job("fast", lambda: None, print)], FakeTimer(monkeypatch), samples=20, seconds=0
    )
    assert len(measured["fast"].samples) == 1


def test_a_slow_job_leaves_the_rounds_to_the_others(monkeypatch):
    jobs = [Job(name, lambda: None, lambda _: None) for name in ("fast", "slow")]
    measured = timing.measure(jobs, FakeTimer(monkeypatch), samples=20, seconds=0.2)
    assert len(measured["slow"].samples) == 4 and len(measured["fast"].samples) == 20


def test_median_and_quartiles():
    assert Measurement([5.0, 1.0, 2.0, 3.0, 4.0]).milliseconds == 3.0
    assert Measurement([5.0, 1.0, 2.0, 3.0, 4.0]).spread == 2.0
    assert Measurement([5.0]).spread == 0.0


class FakeCuda:
    """Stands in for torch.cuda: a device that sleeps at a clock below its highest, and its events.

    The host takes no time, unless `host` is set: where it stands on the device's clock after a call.
    """

    HIGHEST_KHZ = 2_000_000

    def __init__(self, khz: float):
        self.clock, self.khz, self.host, self.said = 0.0, khz, 0.0, []

    def _sleep(self, cycles):
        self.clock += cycles / self.khz
        self.said.append("sleep")

    def Event(self, enable_timing):
        event = SimpleNamespace(time=None)
        event.record = lambda: setattr(event, "time", self.clock) or self.said.append("event")
        event.query = lambda: event.time <= self.host
        event.synchronize = lambda: None
        event.elapsed_time = lambda other: other.time - event.time
        return event


@pytest.fixture(params=[FakeCuda.HIGHEST_KHZ, 345_000], ids=["full clock", "cold clock"])
def fake_cuda(request, monkeypatch):
    fake = FakeCuda(request.param)
    properties = SimpleNamespace(L2_cache_size=1000, clock_rate=fake.HIGHEST_KHZ)
    for name, stand_in in {
        "_sleep": fake._sleep, "Event": fake.Event, "current_device": lambda: 0,
        "get_device_properties": lambda device: properties, "synchronize": lambda: fake.said.append("wait"),
        "memory_allocated": lambda: 2**20, "max_memory_allocated": lambda: 5 * 2**20,
        "reset_peak_memory_stats": lambda: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device, **options: empty(*size, **options))
    return fake


def test_the_gpu_timer_times_the_call_alone(fake_cuda):
    """Cold caches and a head start for the host come before the first event."""
    timer = CudaTimer()
    assert timer.buffer.numel() == 4000

    def call(prepared):
        fake_cuda.clock += 0.25
        fake_cuda.said.append(prepared)

    job = Job("job", lambda: fake_cuda.said.append("prepare") or "call", call)
    fake_cuda.said.clear()
    sample = timer.sample(job, host_microseconds=100.0)
    assert sample == (pytest.approx(0.25), False)
    assert fake_cuda.said == ["prepare", "sleep", "event", "call", "event"] and timer.buffer.eq(1).all()
    fake_cuda.said.clear()
    assert timer.host_sample(job) > 0 and fake_cuda.said == ["prepare", "wait", "call", "wait"]
    assert timer.peak_extra_mib(job) == 4.0


def test_no_head_start_is_too_short_and_a_sample_without_one_is_late(fake_cuda):
    """A clock that was measured cold made them six times too short once it was warm."""
    timer = CudaTimer()
    fake_cuda.khz = fake_cuda.HIGHEST_KHZ
    for host_microseconds, head_start in ((100.0, 0.25), (1e6, timing.LONGEST_HEAD_START)):

        def call(_, host_microseconds=host_microseconds, begun=fake_cuda.clock):
            fake_cuda.host = begun + host_microseconds / 1e3

        begun = fake_cuda.clock
        sample = timer.sample(Job("job", lambda: None, call), host_microseconds)
        assert fake_cuda.clock - begun == pytest.approx(head_start)
        assert sample.is_late == (host_microseconds / 1e3 > head_start)


def test_an_idle_gpu_is_woken(fake_cuda):
    CudaTimer().wake()
    assert fake_cuda.said == ["sleep"] and fake_cuda.clock >= timing.WAKING


def test_a_machine_without_git_is_told_its_commit(monkeypatch):
    monkeypatch.setattr(timing, "_said", lambda *command: None)
    assert timing.describe_machine(torch.device("cpu")).commit == "unknown"
    monkeypatch.setenv("FASTLING_COMMIT", "abc")
    machine = timing.describe_machine(torch.device("cpu"))
    assert f"{os.cpu_count()} cores" in machine.processor
    assert machine.commit == "abc" and machine.dirty is None and timing._driver() == "unknown"


@pytest.mark.parametrize("flags, dtype", [({"avx512_bf16"}, torch.bfloat16), (set(), torch.float32)])
def test_a_cpu_s_matrix_rate_is_that_of_the_products_it_runs(monkeypatch, flags, dtype):
    """Where bf16 products run in float32, shares of a rate that bf16 would have pass 100 %."""
    products = []
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(torch, "mm", lambda left, right, out: products.append(left.dtype))
    sizes = {"copy_bytes": 2**10, "matrix_size": 8}
    machine = timing.machine_with_rates(timing.CpuTimer(), torch.device("cpu"), samples=2, **sizes)
    assert set(products) == {dtype} and machine.matrix_tflops > 0


def test_a_cpu_s_rates_are_those_of_its_fastest_samples(monkeypatch):
    samples = {name: Measurement([3.0, 1.0, 2.0]) for name in ("copy", "product")}
    monkeypatch.setattr(timing, "measure", lambda *_, **__: samples)
    sizes = {"copy_bytes": 2**10, "matrix_size": 8}
    machine = timing.machine_with_rates(timing.CpuTimer(), torch.device("cpu"), samples=3, **sizes)
    assert (machine.copy_gb_s, machine.matrix_tflops) == (2 * 2**10 / 1e6, 2 * 8**3 / 1e9)
