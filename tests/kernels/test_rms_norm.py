"""RMSNorm: what the table of cases leaves out."""

import pytest
import torch
from conftest import slow_without_gpu
from hypothesis import given, settings
from hypothesis import strategies as st

from fastling.kernels import exact, runtime
from fastling.kernels.rms_norm import (
    LONGEST_ROW,
    add_rms_norm,
    add_rms_norm_reference,
    rms_norm,
    rms_norm_reference,
)

pytestmark = pytest.mark.usefixtures("either_version")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-5


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()


def doubled(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Float64 leaves with the same values."""
    return [x.detach().double().requires_grad_() for x in tensors]


def assert_gradients_agree(outputs, leaves, true_outputs, true_leaves, tolerance=1e-5) -> None:
    """Outputs, and gradients for random gradients of the outputs."""
    directions = [torch.randn_like(x) for x in outputs]
    ours = (*outputs, *torch.autograd.grad(outputs, leaves, directions))
    truth = (*true_outputs, *torch.autograd.grad(true_outputs, true_leaves, [x.double() for x in directions]))
    for one, other in zip(ours, truth, strict=True):
        torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=tolerance)


def assert_is_its_formula(x, weight, tolerance=1e-5, offset=0.0) -> None:
    true_x, true_weight = doubled(x, weight)
    truth = exact.rms_norm(true_x, true_weight + offset, EPS)
    y = rms_norm(x, weight, EPS, weight_offset=offset)
    assert_gradients_agree([y], [x, weight], [truth], [true_x, true_weight], tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_rows", "hidden"), [(900, 33), (70, 2100), (5, LONGEST_ROW), (1, 1), (9, 1), (3, 65)], ids=str
)
def test_any_number_of_rows_of_any_length(num_rows, hidden):
    """Many programs with many rows each, down to one value."""
    assert_is_its_formula(leaf(num_rows, hidden), leaf(hidden), tolerance=1e-4)


@pytest.mark.parametrize("hidden", [7, 300])
def test_one_row_may_come_without_leading_dimensions(hidden):
    """Shorter than a tile, and longer: it is normalised as a whole."""
    x, residual, weight = leaf(hidden), leaf(hidden), leaf(hidden)
    assert_is_its_formula(x, weight)
    trues = doubled(x, residual, weight)
    truth = exact.rms_norm(trues[0] + trues[1], trues[2], EPS)
    outputs = add_rms_norm(x, residual, weight, EPS)
    assert_gradients_agree(outputs, (x, residual, weight), (truth, trues[0] + trues[1]), trues)


@pytest.mark.slow
def test_the_gradient_of_the_weight_is_summed_over_many_programs(monkeypatch):
    """More than the second kernel adds at a time; a GPU has that many."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(runtime, "num_multiprocessors", lambda _: 150)
    assert_is_its_formula(leaf(200, 2100), leaf(2100), tolerance=1e-4)


@slow_without_gpu
@settings(max_examples=25)
@given(
    leading=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    hidden=st.integers(1, 200),
    offset=st.sampled_from([0.0, 1.0]),
)
def test_any_shape_and_offset(leading, hidden, offset):
    """Offset 1 is of models that store weight - 1."""
    assert_is_its_formula(leaf(*leading, hidden), leaf(hidden), 1e-4, offset)


@slow_without_gpu
@settings(max_examples=15)
@given(
    num_rows=st.integers(1, 20),
    hidden=st.integers(1, 200),
    used=st.sampled_from([(0,), (1,), (0, 1), (0, 0, 1)]),
    offset=st.sampled_from([0.0, 1.0]),
)
def test_add_rms_norm_whichever_results_are_used(num_rows, hidden, used, offset):
    leaves = [leaf(num_rows, hidden), leaf(num_rows, hidden), leaf(hidden)]
    true_leaves = doubled(*leaves)
    *true_terms, true_weight = true_leaves
    results = add_rms_norm(*leaves, EPS, weight_offset=offset)
    truth = exact.add_rms_norm(*true_terms, true_weight + offset, EPS)
    if used == (1,):  # then the weight has no part in the result
        leaves, true_leaves = leaves[:2], true_leaves[:2]
    assert_gradients_agree([results[i] for i in used], leaves, [truth[i] for i in used], true_leaves, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_the_sum_is_pytorchs_and_is_what_is_normalised(dtype):
    x, residual, weight = leaf(5, 33, dtype=dtype), leaf(5, 33, dtype=dtype), leaf(33, dtype=dtype)
    y, summed = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(summed, x + residual)
    assert torch.equal(y, rms_norm(x + residual, weight, EPS))


def test_x_and_residual_accumulate_their_gradients_apart():
    """They are one tensor in backward; were they one in memory, a second step would count twice."""
    x, residual, weight = leaf(3, 5), leaf(3, 5), leaf(5)
    steps = [
        torch.autograd.grad(sum(y.sum() for y in add_rms_norm(x, residual, weight, EPS)), x) for _ in range(2)
    ]
    for _ in range(2):
        sum(y.sum() for y in add_rms_norm(x, residual, weight, EPS)).backward()
    torch.testing.assert_close(x.grad, sum(step for (step,) in steps))
    assert torch.equal(x.grad, residual.grad) and x.grad.data_ptr() != residual.grad.data_ptr()


@pytest.mark.parametrize(
    "view",
    [
        lambda base: base[:, 2:5],  # some heads of a fused projection
        lambda base: base[:, 1:, :7],  # rows that do not fill their place
        lambda base: base[:, 3],  # one head: (T, D)
        lambda base: base.transpose(0, 1),  # heads first
        lambda base: base[:1].expand(4, -1, -1),  # the same token again and again
        lambda base: base[:, :, :1],
    ],
    ids=["heads", "short rows", "one head", "transposed", "expanded", "one value"],
)
def test_strided_rows_are_read_in_place(view):
    base = leaf(6, 5, 9)
    x = view(base)
    true_base, weight = doubled(base)[0], leaf(x.shape[-1])
    (true_weight,) = doubled(weight)
    truth = exact.rms_norm(view(true_base), true_weight, EPS)
    y = rms_norm(x, weight, EPS)
    assert_gradients_agree([y], [base, weight], [truth], [true_base, true_weight])


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_frozen_inputs_change_no_other_gradient(frozen):
    inputs = {"x": leaf(5, 33), "weight": leaf(33)}
    gradients = torch.autograd.grad(rms_norm(**inputs, eps=EPS).sum(), list(inputs.values()))
    expected = dict(zip(inputs, gradients, strict=True))
    (trained,) = inputs.keys() - {frozen}
    inputs[frozen] = inputs[frozen].detach()
    (gradient,) = torch.autograd.grad(rms_norm(**inputs, eps=EPS).sum(), inputs[trained])
    assert torch.equal(gradient, expected[trained])


@pytest.mark.parametrize("scale", [1e-7, 6e4])
def test_float16_values_at_the_ends_of_their_range(scale):
    """Squares that float16 cannot hold."""
    x, weight = (torch.rand(4, 33, device=DEVICE) * scale).half(), torch.ones(33, device=DEVICE).half()
    truth = exact.rms_norm(x.double(), weight.double(), 1e-18)
    torch.testing.assert_close(rms_norm(x, weight, 1e-18).double(), truth, atol=0.0, rtol=2e-3)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stays_in_its_row_and_never_hides(bad):
    x = torch.randn(5, 33, device=DEVICE)
    x[2, 7] = bad
    y = rms_norm(x, torch.ones(33, device=DEVICE), EPS)
    assert y[2].isnan().any() and y[[0, 1, 3, 4]].isfinite().all()


def test_the_plain_version_rounds_where_hugging_face_does():
    x, weight = leaf(7, 33, dtype=torch.bfloat16), leaf(33, dtype=torch.bfloat16)
    normalised = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)
    assert torch.equal(rms_norm_reference(x, weight, EPS), weight * normalised.bfloat16())
    offset = rms_norm_reference(x, weight, EPS, weight_offset=1.0)
    assert torch.equal(offset, (weight + 1) * normalised.bfloat16())


@pytest.mark.parametrize(
    "norm",
    [
        rms_norm,
        rms_norm_reference,
    ],
)
def test_the_result_has_the_type_of_x_whatever_the_weights(norm):
    """A model in bfloat16 may keep its norms' weights in float32."""
    x, weight = leaf(5, 33, dtype=torch.bfloat16), leaf(33)
    y = norm(x, weight, EPS)
    assert y.dtype == torch.bfloat16
    gradients = torch.autograd.grad(y.sum(), (x, weight))
    assert [x.dtype for x in gradients] == [torch.bfloat16, torch.float32]


def test_the_plain_norm_of_a_sum_is_the_norm_of_the_plain_sum():
    x, residual, weight = leaf(5, 33), leaf(5, 33), leaf(33)
    y, summed = add_rms_norm_reference(x, residual, weight, EPS, weight_offset=1.0)
    assert torch.equal(summed, x + residual)
    assert torch.equal(y, rms_norm_reference(summed, weight, EPS, weight_offset=1.0))
