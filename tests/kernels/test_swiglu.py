"""SwiGLU: what the table of cases leaves out."""

import pytest
import torch
from conftest import slow_without_gpu
from hypothesis import given, settings
from hypothesis import strategies as st

from fastling.kernels import exact
from fastling.kernels.swiglu import swiglu, swiglu_reference

pytestmark = pytest.mark.usefixtures("either_version")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@slow_without_gpu
@settings(max_examples=25)
@given(num_tokens=st.integers(1, 9), ffn=st.integers(1, 2500), padding=st.integers(0, 7))
def test_any_shape_of_strided_rows(num_tokens, ffn, padding):
    base = torch.randn(num_tokens, 2 * ffn + padding, device=DEVICE).requires_grad_()
    gate_up = base[:, : 2 * ffn]
    y, truth = swiglu(gate_up), exact.swiglu(gate_up.double())
    direction = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, base, direction)
    (true_gradient,) = torch.autograd.grad(truth, base, direction.double())
    torch.testing.assert_close(y.double(), truth, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient, true_gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_gates_of_any_size_stay_finite(dtype):
    gates = torch.tensor([-6e4, -200.0, -20.0, -1e-7, 0.0, 1e-7, 20.0, 200.0, 6e4], device=DEVICE)
    gate_up = torch.stack((gates, torch.ones_like(gates)), dim=1).to(dtype).requires_grad_()
    y = swiglu(gate_up)
    (gradient,) = torch.autograd.grad(y.sum(), gate_up)
    plain = swiglu_reference(gate_up)
    (plain_gradient,) = torch.autograd.grad(plain.sum(), gate_up)
    torch.testing.assert_close(y, plain, atol=1e-7, rtol=1e-3)
    torch.testing.assert_close(gradient, plain_gradient, atol=1e-4, rtol=1e-3)
    assert gradient.isfinite().all()


def test_nan_never_hides():
    gate_up = torch.randn(2, 8, device=DEVICE)
    gate_up[0, 1] = gate_up[1, 6] = float("nan")
    assert swiglu(gate_up).isnan().nonzero().tolist() == [[0, 1], [1, 2]]
