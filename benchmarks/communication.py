"""Measures with PyTorch's profiler how much of a step is communication between processes."""

from collections.abc import Iterable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fastling.data.batches import Step
from fastling.training.update import Updater

Interval = tuple[float, float]


def measure_communication(updater: Updater, step: Step) -> dict[str, float]:
    """Make one more step; return the milliseconds in which this process communicates.

    On a GPU there are also those in which it does nothing else; on a CPU a process waits for each collective,
    so that the two are the same. All processes must call this together.
    """
    is_gpu = updater.world.device.type == "cuda"
    activities = [ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        updater.update(step, 1)
        if is_gpu:
            torch.cuda.synchronize()
    device = DeviceType.CUDA if is_gpu else DeviceType.CPU
    events = [event for event in profiler.events() if event.device_type == device]
    return shares(
        [(event.name, (event.time_range.start, event.time_range.end)) for event in events], is_gpu=is_gpu
    )


def shares(events: Iterable[tuple[str, Interval]], *, is_gpu: bool) -> dict[str, float]:
    """Milliseconds of NCCL's kernels, or of gloo's collectives, among named intervals in microseconds."""
    mark = "nccl" if is_gpu else "gloo:"
    collective, other = [], []
    for name, interval in events:
        (collective if mark in name.lower() else other).append(interval)
    busy = length_of_union(collective)
    if not is_gpu:
        return {"of these, communication": busy / 1e3}
    alone = length_of_union(collective + other) - length_of_union(other)
    return {"of these, communication": busy / 1e3, "of these, communication alone": alone / 1e3}


def length_of_union(intervals: Iterable[Interval]) -> float:
    """Total length of intervals, counting only once where they overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
