"""Measures how far results are from the formula in float64, and judges the distance.

The error of an output or gradient is ||result - exact|| / ||exact|| over all its values. The formula is
computed for a slice of rows at a time, so that float64 fits beside a case of any size: in every op rows are
independent, and losses and the gradients of weights are sums over rows.

A result is "ok" if the loss is off by at most 1e-5 and every other error is at most 1.5 times the plain
op's in the same type; else it is "inexact"; and "wrong" if it is far off, or if a part of it is missing.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import EllipsisType

import torch
from torch import Tensor

from fastling.kernels.cases import Inputs, Op, Shape

MOST_LOSS_ERROR = 1e-5
MOST_TIMES_PLAIN = 1.5
FLOAT32_NOISE = 5e-7  # a few roundings: below this, ratios of errors are chance
FAR_OFF = 0.05
SLICE_VALUES = 2**27  # of a slice, counted by its widest tensor: 1 GiB in float64
WHOLE = {"weight", "weight_VH", "cos", "sin", "scale"}  # arguments that have no rows of tokens

Parts = dict[str, Tensor]  # "output", "loss", "d x" ... of one call


def outputs_of(call: Callable[[], object]) -> list[Tensor]:
    outputs = call()
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


def leaves_of(inputs: Inputs) -> dict[str, Tensor]:
    """Name -> input that requires a gradient."""
    return {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.requires_grad}


def random_gradients(outputs: Iterable[Tensor]) -> list[Tensor]:
    """A gradient for each differentiable output: normally distributed; 1 for a loss."""
    return [
        torch.randn(x.shape, device=x.device).to(x.dtype) if x.dim() else torch.ones_like(x)
        for x in outputs
        if x.requires_grad
    ]


def differentiate(outputs: list[Tensor], leaves: Iterable[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    outputs = [output for output in outputs if output.requires_grad]
    return list(torch.autograd.grad(outputs, list(leaves), gradients))


def run(call: Callable[[], object], inputs: Inputs, gradients: list[Tensor]) -> Parts:
    """Copies of every output and gradient of a call, given the gradients of its outputs."""
    outputs, leaves = outputs_of(call), leaves_of(inputs)
    # Copied at once: an op that works in place may return its input as its output.
    parts = {_output_name(i, outputs): output.detach().clone() for i, output in enumerate(outputs)}
    if leaves:
        # Copies again: some libraries write over the gradients that they are given.
        cast = [x.to(output.dtype, copy=True) for x, output in zip(gradients, outputs, strict=True)]
        found = differentiate(outputs, leaves.values(), cast)
        parts |= {f"d {name}": gradient for name, gradient in zip(leaves, found, strict=True)}
    return parts


def _output_name(i: int, outputs: list[Tensor]) -> str:
    if outputs[i].dim() == 0:
        return "loss"
    return "output" if len(outputs) == 1 else f"output {i}"


@contextmanager
def poisoned() -> Iterator[None]:
    """In the block new tensors are full of NaN, so that what a kernel leaves unwritten shows."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch fills new tensors only in this mode
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


# Against float64 ------------------------------------------------------------------------------------


def errors(
    exact: Callable, inputs: Inputs, gradients: list[Tensor], results: dict[str, Parts]
) -> dict[str, dict[str, float]]:
    """Provider -> part -> error; it is infinite if the part is missing, of another shape, or has a NaN."""
    squares, totals = {}, {}
    differences = {provider: defaultdict(float) for provider in results}
    for rows, parts in _exact_slices(exact, inputs, gradients):
        for name, truth in parts.items():
            squares.setdefault(name, 0.0)
            if name == "loss" or name.removeprefix("d ") in WHOLE:
                totals[name] = totals[name] + truth if name in totals else truth
                continue
            squares[name] += truth.square().sum().item()
            for provider, found in results.items():
                differences[provider][name] += _squared_distance(found, name, rows, truth)
    for name, truth in totals.items():
        squares[name] = truth.square().sum().item()
        for provider, found in results.items():
            differences[provider][name] = _squared_distance(found, name, ..., truth)
    return {
        provider: {name: math.sqrt(found[name] / max(square, 1e-300)) for name, square in squares.items()}
        for provider, found in differences.items()
    }


def _squared_distance(found: Parts, name: str, rows: slice | EllipsisType, truth: Tensor) -> float:
    result = found[name][rows] if name in found else None
    if result is None or result.shape != truth.shape:
        return math.inf
    squared = (result.double() - truth).square().sum().item()
    return math.inf if math.isnan(squared) else squared


def _exact_slices(exact: Callable, inputs: Inputs, gradients: list[Tensor]) -> Iterator[tuple[slice, Parts]]:
    whole = {name: _float64(x) for name, x in inputs.items() if name in WHOLE or not isinstance(x, Tensor)}
    by_row = {name: x for name, x in inputs.items() if name not in whole}
    num_rows = len(next(iter(by_row.values())))
    widths = [x[0].numel() for x in by_row.values()] + [
        len(x) for name, x in whole.items() if name == "weight_VH"
    ]
    step = max(1, SLICE_VALUES // max(widths))
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        part = {name: whole[name] if name in whole else _float64(x[rows]) for name, x in inputs.items()}
        slices = [gradient[rows].double() if gradient.dim() else gradient.double() for gradient in gradients]
        yield rows, run(partial(exact, **part), part, slices)


def _float64(x: object) -> object:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x.detach().double().requires_grad_(x.requires_grad)


# Verdicts -------------------------------------------------------------------------------------------


def verdict(found: dict[str, float], plain: dict[str, float]) -> tuple[str, str]:
    """("ok", ""); or "inexact" or "wrong", and in words what is off."""
    allowed = {
        name: MOST_LOSS_ERROR if name == "loss" else max(MOST_TIMES_PLAIN * plain[name], FLOAT32_NOISE)
        for name in found
    }
    off = {name: error for name, error in found.items() if error > allowed[name]}
    words = "; ".join(
        f"{name} off by {error:.1e}, allowed {allowed[name]:.1e}" for name, error in off.items()
    )
    if any(error > max(FAR_OFF, 2 * allowed[name]) for name, error in off.items()):
        return "wrong", words
    return ("inexact" if off else "ok"), words


def table(ops: Iterable[Op], shape: Shape, dtypes: Iterable[torch.dtype], device: torch.device) -> list[dict]:
    """A row for each part of each op in each type: the kernel's error, the plain op's, and their ratio."""
    rows = []
    for dtype in dtypes:
        for op in ops:
            torch.manual_seed(0)
            inputs = op.inputs(shape, dtype, device)
            plain = partial(op.reference, **inputs)
            gradients = random_gradients(outputs_of(plain))
            with poisoned():
                kernel = run(partial(op.kernel, **inputs), inputs, gradients)
            results = {"kernel": kernel, "plain": run(plain, inputs, gradients)}
            found = errors(op.exact, inputs, gradients, results)
            for part, error in found["kernel"].items():
                beside = found["plain"][part]
                rows.append(
                    {
                        "op": op.name,
                        "dtype": str(dtype).removeprefix("torch."),
                        "part": part,
                        "kernel_error": error,
                        "plain_error": beside,
                        "ratio": error / beside if beside else None,
                    }
                )
    return rows
