"""AdamW and the clipping inside it, against PyTorch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastling.kernels.adamw import adamw_, adamw_reference_, clip_scale

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SETTINGS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
BOTH = pytest.mark.parametrize("update", [adamw_, adamw_reference_])


def pytorchs(parameters: list[Tensor]) -> torch.optim.AdamW:
    rest = {"lr": SETTINGS["lr"], "eps": SETTINGS["eps"], "weight_decay": SETTINGS["weight_decay"]}
    return torch.optim.AdamW(parameters, betas=(SETTINGS["beta1"], SETTINGS["beta2"]), **rest)


@BOTH
@pytest.mark.parametrize("clip_norm", [0.5, 1e9], ids=["clipped", "unclipped"])
def test_many_steps_equal_pytorchs_adamw(update, clip_norm):
    """Two tensors, clipped to one global norm."""
    theirs = [nn.Parameter(torch.randn(shape, device=DEVICE)) for shape in ((33, 47), (5,))]
    ours = [x.detach().clone() for x in theirs]
    moments = [(torch.zeros_like(x), torch.zeros_like(x)) for x in ours]
    optimizer = pytorchs(theirs)
    for step in range(1, 8):
        gradients = [torch.randn_like(x) * step for x in ours]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        norm = nn.utils.clip_grad_norm_(theirs, clip_norm)
        optimizer.step()
        scale = clip_scale(norm, clip_norm)
        for parameter, gradient, (exp_avg, exp_avg_sq) in zip(ours, gradients, moments, strict=True):
            update(parameter, gradient, exp_avg, exp_avg_sq, scale, step, **SETTINGS)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other.detach(), atol=2e-6, rtol=1e-5)
    for (exp_avg, exp_avg_sq), parameter in zip(moments, theirs, strict=True):
        state = optimizer.state[parameter]
        torch.testing.assert_close(exp_avg, state["exp_avg"], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(exp_avg_sq, state["exp_avg_sq"], atol=1e-6, rtol=1e-5)


def test_clip_scale_shrinks_only_norms_above_the_limit():
    norms = torch.tensor([0.0, 0.3, 0.5, 2.0, float("inf")], device=DEVICE)
    assert clip_scale(norms, 0.5).tolist() == [1.0, 1.0, 1.0, 4.0, float("inf")]
    assert clip_scale(torch.tensor(float("nan")), 0.5).isnan()


@settings(max_examples=15)
@given(num_weights=st.integers(0, 3000), step=st.integers(1, 100_000), decay=st.sampled_from([0.0, 0.1]))
def test_any_number_of_weights_at_any_step(num_weights, step, decay):
    # What is written beyond the parameters would be written into the gradients behind them.
    parameter, gradient, exp_avg, exp_avg_sq = torch.randn(4, num_weights, device=DEVICE)
    given = gradient.clone()
    states = [parameter, exp_avg, exp_avg_sq.square()]
    plain = [x.clone() for x in states]
    scale = torch.tensor(1.3, device=DEVICE)
    numbers = SETTINGS | {"weight_decay": decay}
    for update, (p, m, v) in ((adamw_, states), (adamw_reference_, plain)):
        update(p, gradient, m, v, scale, step, **numbers)
    for one, other in zip(states, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert torch.equal(gradient, given)


@BOTH
def test_a_half_precision_gradient_updates_as_its_float32_copy_does(update):
    parameter, gradient, exp_avg, exp_avg_sq = torch.randn(4, 50, device=DEVICE)
    gradient = gradient.bfloat16()
    results = []
    for same in (gradient, gradient.float()):
        states = [x.clone() for x in (parameter, exp_avg, exp_avg_sq.square())]
        update(states[0], same, *states[1:], torch.tensor(1.3, device=DEVICE), 3, **SETTINGS)
        results.append(states)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@BOTH
def test_weights_without_a_gradient_only_decay(update):
    parameter = torch.randn(50, device=DEVICE)
    zeros = [torch.zeros_like(parameter) for _ in range(3)]
    before = parameter.clone()
    update(parameter, *zeros, torch.tensor(1.0, device=DEVICE), 1, **SETTINGS)
    torch.testing.assert_close(parameter, before * (1 - SETTINGS["lr"] * SETTINGS["weight_decay"]))
    assert all(x.eq(0).all() for x in zeros)


@BOTH
def test_a_decay_of_a_millionth_is_as_strong_as_it_should_be(update):
    """Float32 has 1 - 1e-6 only with an error of 1.3 % of the 1e-6. Over many weights, roundings even out."""
    parameter = torch.rand(20_000, device=DEVICE) + 1
    zeros = [torch.zeros_like(parameter) for _ in range(3)]
    before = parameter.double()
    update(parameter, *zeros, torch.tensor(1.0, device=DEVICE), 1, **SETTINGS | {"lr": 1e-5})
    decay = ((before - parameter.double()) / before).mean().item()
    assert decay == pytest.approx(1e-6, rel=4e-3)


@BOTH
def test_nan_in_the_norm_never_hides(update):
    """Otherwise a broken step would look like a small one."""
    parameter, gradient, exp_avg, exp_avg_sq = torch.rand(4, 50, device=DEVICE)
    scale = clip_scale(torch.tensor(float("nan"), device=DEVICE), 1.0)
    update(parameter, gradient, exp_avg, exp_avg_sq, scale, 1, **SETTINGS)
    assert parameter.isnan().all()


@BOTH
def test_a_step_counted_from_0_is_refused_before_any_update(update):
    states = torch.rand(4, 50, device=DEVICE)
    before = states.clone()
    with pytest.raises(ValueError, match="adamw_: step must be at least 1: 0"):
        update(*states, torch.tensor(1.0, device=DEVICE), 0, **SETTINGS)
    assert torch.equal(states, before)
