"""A product in half precision of a float32 weight, whose gradient is added up in place."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from fastling.kernels.linear import linear, linear_reference

pytestmark = pytest.mark.usefixtures("any_cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
T, INPUTS, OUTPUTS = 37, 19, 23
HALVES = [torch.bfloat16, torch.float16]


def inputs(dtype=torch.bfloat16, rows: int = T) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x_TI = torch.randn(rows, INPUTS).to(DEVICE, dtype).requires_grad_()
    weight_OI = torch.randn(OUTPUTS, INPUTS, device=DEVICE).requires_grad_()
    return x_TI, weight_OI, torch.randn(OUTPUTS, device=DEVICE).requires_grad_()


def gradients(function, x, weight, bias, dy) -> dict[str, torch.Tensor]:
    for each in (x, weight, bias):
        each.grad = None
    y = function(x, weight, bias)
    y.backward(dy.to(y.dtype))
    return {"y": y.detach(), "d x": x.grad, "d weight": weight.grad, "d bias": bias.grad}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, T])
def test_its_gradients_are_as_exact_as_autograds(rows, dtype):
    given = inputs(dtype, rows)
    dy = torch.randn(rows, OUTPUTS, device=DEVICE)
    dy_as_given = dy.to(dtype).double()
    exact_inputs = [each.detach().double().requires_grad_() for each in given]
    truth = gradients(linear_reference, *exact_inputs, dy_as_given)
    plain, found = (gradients(function, *given, dy) for function in (linear_reference, linear))
    for name, exact in truth.items():
        one, other = ((each[name].double() - exact).norm() for each in (found, plain))
        assert found[name].dtype == plain[name].dtype and one <= 1.01 * other, name


def test_gradients_of_several_calls_accumulate_in_place_in_float32():
    """Added in bfloat16, the small one would be lost."""
    _, weight, _ = inputs()
    large, small = (
        torch.full((1, INPUTS), size, dtype=torch.bfloat16, device=DEVICE) for size in (256.0, 0.5)
    )
    linear(large, weight).sum().backward()
    place = weight.grad.data_ptr()
    linear(small, weight).sum().backward()
    assert weight.grad.data_ptr() == place
    assert weight.grad.eq(256.5).all()


def test_recomputation_accumulates_the_gradient_once():
    x, weight, bias = inputs()
    dy = torch.randn(T, OUTPUTS, device=DEVICE)
    whole = gradients(linear, x, weight, bias, dy)
    again = gradients(lambda *each: checkpoint(linear, *each, use_reentrant=False), x, weight, bias, dy)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_inputs_without_requires_grad_get_no_gradient():
    x, weight, _ = inputs()
    y = linear(x.detach(), weight)
    y.sum().backward()
    assert x.grad is None and weight.grad is not None
    weight.grad = None
    linear(x, weight.detach()).sum().backward()
    assert x.grad is not None and weight.grad is None
    with torch.no_grad():
        assert not linear(x, weight).requires_grad


def test_with_one_dtype_gradients_are_autograds():
    x, weight, _ = inputs(torch.float32)
    found = torch.autograd.grad(linear(x, weight).sum(), [x, weight])
    expected = torch.autograd.grad(F.linear(x, weight).sum(), [x, weight])
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_in_half_precision_it_is_as_exact_and_saves_nothing_wider(dtype):
    """As of weights that FSDP has gathered."""
    given = [each.detach().to(dtype).requires_grad_() for each in inputs()]
    dy = torch.randn(T, OUTPUTS, device=DEVICE).to(dtype)
    exact_inputs = [each.detach().double().requires_grad_() for each in given]
    truth = gradients(linear_reference, *exact_inputs, dy.double())
    kept = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.add(x.dtype) or x, lambda x: x):
        found = gradients(linear, *given, dy)
    plain = gradients(linear_reference, *given, dy)
    assert kept == {dtype}
    for name, exact in truth.items():
        one, other = ((each[name].double() - exact).norm() for each in (found, plain))
        assert found[name].dtype == dtype and one <= 1.01 * other, name


def test_a_second_backward_raises():
    x, weight, _ = inputs()
    y = linear(x, weight).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


@pytest.mark.slow
def test_the_compiled_result_is_the_same():
    torch._dynamo.reset()
    given = inputs()
    dy = torch.randn(T, OUTPUTS, device=DEVICE)
    compiled = gradients(torch.compile(linear, fullgraph=True, backend="aot_eager"), *given, dy)
    for name, expected in gradients(linear, *given, dy).items():
        torch.testing.assert_close(compiled[name], expected)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.ones(2, 3, 4).bfloat16(), torch.ones(5, 4), "x_TI must have 2 dimensions: (2, 3, 4)"),
        (
            torch.ones(2, 4).double(),
            torch.ones(5, 4),
            "x_TI must be torch.bfloat16 or torch.float16: torch.float64",
        ),
        (
            torch.ones(2, 4).bfloat16(),
            torch.ones(5, 4).half(),
            "weight_OI must be torch.float32: torch.float16",
        ),
    ],
)
def test_other_inputs_are_refused(x, weight, message):
    with pytest.raises(ValueError, match=f"linear: {re.escape(message)}"):
        linear(x, weight.requires_grad_())


def test_a_weight_that_is_no_parameter_is_refused():
    """What hooks on it, or made it, would never hear of its gradient."""
    with pytest.raises(ValueError, match="linear: weight_OI must be a parameter"):
        linear(torch.ones(2, 4).bfloat16(), torch.ones(5, 4).requires_grad_() * 2)
