"""Distances from float64, and what is made of them."""

import pytest
import torch

from fastling.kernels import accuracy
from fastling.kernels.cases import OPS, RAGGED

ODD = RAGGED[1]


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_slices_of_rows_add_up(monkeypatch, op):
    """The formula on a few rows at a time gives the errors that it gives on all."""
    inputs = op.inputs(ODD, torch.float32, torch.device("cpu"))

    def plain():
        return op.reference(**inputs)

    gradients = accuracy.random_gradients(accuracy.outputs_of(plain))
    results = {"plain": accuracy.run(plain, inputs, gradients)}
    results["off"] = {name: x * 1.25 for name, x in results["plain"].items()}
    whole = accuracy.errors(op.exact, inputs, gradients, results)
    monkeypatch.setattr(accuracy, "SLICE_VALUES", 3 * 101)
    sliced = accuracy.errors(op.exact, inputs, gradients, results)
    assert list(whole["plain"]) == list(results["plain"])
    for name, error in whole["off"].items():
        assert error == pytest.approx(0.25, rel=1e-4) and sliced["off"][name] == pytest.approx(error)
        assert whole["plain"][name] < 1e-6 and sliced["plain"][name] < 1e-6


def test_verdicts():
    plain = {"output": 2e-3, "d x": 2e-3, "loss": 1e-7}
    assert accuracy.verdict(plain, plain) == ("ok", "")
    assert accuracy.verdict({"output": 3.1e-3}, plain) == (
        "inexact",
        "output off by 3.1e-03, allowed 3.0e-03",
    )
    assert accuracy.verdict({"loss": 1.1e-5}, plain)[0] == "inexact"
    assert accuracy.verdict({"loss": 9e-6, "output": 2.9e-3}, plain)[0] == "ok"
    assert accuracy.verdict({"d x": 0.06}, plain)[0] == "wrong"
    assert accuracy.verdict({"d x": float("inf")}, plain)[0] == "wrong"


def test_incoming_gradients_are_never_overwritten():
    """Libraries write over them; the next provider must get what the first got."""
    x = torch.ones(3, requires_grad=True)
    gradient = torch.full((3,), 2.0)

    class Overwrites(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, dy):
            return dy.mul_(2)

    parts = accuracy.run(lambda: Overwrites.apply(x), {"x": x}, [gradient])
    assert parts["d x"].tolist() == [4.0] * 3 and gradient.tolist() == [2.0] * 3
