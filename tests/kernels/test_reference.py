"""Each op's plain version, and the chunked loss, against their formulas in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastling.kernels import linear_cross_entropy as loss_kernels
from fastling.kernels.linear_cross_entropy import (
    chunked_linear_cross_entropy,
    linear_cross_entropy_reference,
)
from fastling.kernels.rms_norm import rms_norm_reference
from fastling.kernels.rotary import rotary_reference
from fastling.kernels.swiglu import swiglu_reference


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_rms_norm_is_its_formula_and_rounds_where_hugging_face_does():
    x, weight = torch.randn(7, 33) * 5, torch.randn(33)
    truth = weight.double() * x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(rms_norm_reference(x, weight, 1e-6).double(), truth, atol=1e-6, rtol=1e-6)

    half, half_weight = x.bfloat16(), weight.bfloat16()
    normalised = half.float() * torch.rsqrt(half.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    out = rms_norm_reference(half, half_weight, 1e-6)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, half_weight * normalised.bfloat16())


def test_rotary_turns_each_pair_of_lanes_as_a_complex_number():
    num_tokens, num_heads, head_dim = 6, 3, 8
    x = torch.randn(num_tokens, num_heads, head_dim)
    angles = torch.randn(50, head_dim // 2)
    positions = torch.tensor([0, 1, 2, 0, 49, 7], dtype=torch.int32)
    out = rotary_reference(x, angles.cos(), angles.sin(), positions)
    first, second = x.double().chunk(2, dim=-1)
    turn = torch.polar(torch.ones(()).double(), angles.double()[positions.long()])[:, None]
    truth = torch.view_as_real(torch.complex(first, second) * turn)
    torch.testing.assert_close(out.double(), torch.cat(truth.unbind(-1), -1), atol=1e-6, rtol=1e-6)
    assert rotary_reference(x.bfloat16(), angles.cos(), angles.sin(), positions).dtype == torch.bfloat16


def test_swiglu_is_its_formula():
    gate, up = torch.randn(5, 12), torch.randn(5, 12)
    truth = gate.double() * torch.sigmoid(gate.double()) * up.double()
    out = swiglu_reference(torch.cat((gate, up), dim=-1))
    torch.testing.assert_close(out.double(), truth, atol=1e-6, rtol=1e-6)


# ---- the head and its loss


def loss_inputs(num_rows: int, dtype: torch.dtype = torch.float32, scale: float = 1.0):
    hidden = (torch.randn(num_rows, 16) * scale).to(dtype).requires_grad_()
    weight = torch.randn(41, 16).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(41, (num_rows,)), torch.rand(num_rows)


def truth_in_float64(hidden, weight, labels, weights):
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    nll = F.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    loss = (nll * weights.double()).sum()
    return loss, nll, *torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("rows_in_chunk", [1, 3, 7, 20, 1000])
@pytest.mark.parametrize("num_rows", [1, 20])
def test_chunked_loss_equals_float64_for_any_chunk(num_rows, rows_in_chunk):
    inputs = loss_inputs(num_rows)
    loss, nll = chunked_linear_cross_entropy(*inputs, chunk_bytes=rows_in_chunk * 41 * 4)
    gradients = torch.autograd.grad(loss, inputs[:2])
    assert loss.dtype == nll.dtype == torch.float32 and not nll.requires_grad
    for ours, truth in zip((loss, nll, *gradients), truth_in_float64(*inputs), strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=2e-5, rtol=1e-5)


def test_reference_loss_equals_float64():
    inputs = loss_inputs(20)
    loss, nll = linear_cross_entropy_reference(*inputs)
    gradients = torch.autograd.grad(loss, inputs[:2])
    for ours, truth in zip((loss, nll, *gradients), truth_in_float64(*inputs), strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=2e-5, rtol=1e-5)


def test_in_bfloat16_chunking_adds_no_error_to_the_plain_version():
    inputs = loss_inputs(200, torch.bfloat16)
    truth = truth_in_float64(*inputs)
    errors = {}
    for name, function in (
        ("plain", linear_cross_entropy_reference),
        ("chunked", lambda *x: chunked_linear_cross_entropy(*x, chunk_bytes=30 * 41 * 4)),
    ):
        loss, nll = function(*inputs)
        results = (loss, nll, *torch.autograd.grad(loss, inputs[:2]))
        errors[name] = [(a - b).norm().item() for a, b in zip(results, truth, strict=True)]
    for chunked, plain in zip(errors["chunked"], errors["plain"], strict=True):
        assert chunked <= 2 * plain + 1e-6


@pytest.mark.parametrize("gap", [2.0, 5.0, 10.0, 14.0])
def test_the_gradient_keeps_its_digits_where_the_label_is_almost_certain(gap):
    """p_y = 0.9 to 0.999999: subtracting 1 from it would leave float32 with few digits."""
    hidden = torch.eye(3).requires_grad_()
    weight = torch.zeros(5, 3)
    weight[1] = gap
    inputs = (hidden, weight.requires_grad_(), torch.ones(3, dtype=torch.int64), torch.ones(3))
    loss, nll = chunked_linear_cross_entropy(*inputs)
    results = (loss, nll, *torch.autograd.grad(loss, inputs[:2]))
    for ours, truth in zip(results, truth_in_float64(*inputs), strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=0.0, rtol=1e-5)


def test_logits_of_any_size_stay_finite():
    inputs = loss_inputs(20, scale=1e4)
    loss, nll = chunked_linear_cross_entropy(*inputs)
    gradients = torch.autograd.grad(loss, inputs[:2])
    for ours, truth in zip((nll, *gradients), truth_in_float64(*inputs)[1:], strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=0.1, rtol=1e-4)


def test_no_rows_give_zero_and_zero_gradients():
    inputs = loss_inputs(0)
    loss, nll = chunked_linear_cross_entropy(*inputs)
    grad_hidden, grad_weight = torch.autograd.grad(loss, inputs[:2])
    assert loss.item() == 0.0 and nll.shape == (0,) and grad_hidden.shape == (0, 16)
    assert torch.equal(grad_weight, torch.zeros_like(grad_weight))


def test_backward_scales_by_the_incoming_gradient_and_runs_once():
    inputs = loss_inputs(9)
    once = torch.autograd.grad(chunked_linear_cross_entropy(*inputs)[0], inputs[:2])
    loss, _ = chunked_linear_cross_entropy(*inputs)
    tripled = torch.autograd.grad(loss * 3, inputs[:2], retain_graph=True)
    for one, three in zip(once, tripled, strict=True):
        torch.testing.assert_close(three, one * 3)
    with pytest.raises(RuntimeError, match="backward has used up its gradients; call forward again"):
        torch.autograd.grad(loss, inputs[:2])


def test_work_that_nobody_asked_for_is_skipped(monkeypatch):
    def unwanted(*_):
        raise AssertionError("the weight's gradient was formed")

    monkeypatch.setattr(loss_kernels, "_add_product_float32", unwanted)
    hidden, weight, labels, weights = loss_inputs(9)
    loss, _ = chunked_linear_cross_entropy(hidden, weight.detach(), labels, weights, chunk_bytes=3 * 41 * 4)
    loss.backward()
    assert hidden.grad is not None
    with torch.no_grad():
        loss, _ = chunked_linear_cross_entropy(hidden, weight, labels, weights)
    assert not loss.requires_grad
    with pytest.raises(AssertionError, match="was formed"):
        chunked_linear_cross_entropy(hidden, weight, labels, weights, chunk_bytes=3 * 41 * 4)
