"""Clipping inside the update equals clipping before it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from fastling.config import Optimizer
from fastling.training.optimizer import clip, make_optimizer

CONFIG = Optimizer(lr=1e-2, weight_decay=0.1)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2))


@pytest.mark.parametrize("clip_norm", [0.01, 1.0, 1e9])
def test_an_update_is_that_of_gradients_clipped_beforehand(clip_norm):
    ours, theirs = model(), model()
    our_optimizer, their_optimizer = make_optimizer(ours, CONFIG), make_optimizer(theirs, CONFIG)
    for step in range(5):
        torch.manual_seed(step)
        inputs = torch.randn(4, 6)
        for network in (ours, theirs):
            network.zero_grad()
            network(inputs).square().sum().backward()
        norm = clip(our_optimizer, clip_norm)
        our_optimizer.step()
        expected_norm = clip_grad_norm_(theirs.parameters(), clip_norm)
        their_optimizer.step()
        torch.testing.assert_close(norm, expected_norm)
    for our_weight, their_weight in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(our_weight, their_weight, atol=1e-6, rtol=1e-5)


def test_a_clip_scale_is_not_carried_into_the_next_step():
    """The norm is asked for anew: gradients within the bound are left as they are, to the bit."""
    clipped, plain = model(), model()
    optimizer, plain_optimizer = make_optimizer(clipped, CONFIG), make_optimizer(plain, CONFIG)
    for network in (clipped, plain):
        for weight in network.parameters():
            weight.grad = torch.full_like(weight, 0.01)
    optimizer.grad_scale = torch.tensor(1e6)  # as an earlier step may have left it
    clip(optimizer, 10.0)
    optimizer.step()
    plain_optimizer.step()
    for one, other in zip(clipped.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_norm_of_a_large_gradient_is_that_of_float64():
    """PyTorch's own norm of such a matrix on a CPU is off by 1e-4, and by 1e-2 of LLaMA-7B's embedding."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(5000, 1000))
    weight.grad = torch.randn(5000, 1000)
    norm = clip(torch.optim.AdamW([weight], fused=True), 1.0)
    torch.testing.assert_close(norm.double(), weight.grad.double().norm(), rtol=1e-6, atol=0)
