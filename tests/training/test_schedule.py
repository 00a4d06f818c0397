"""The course of the learning rate."""

import pytest
import torch

from fastling.config import Config, Optimizer
from fastling.data.batches import Step
from fastling.errors import UserError
from fastling.training.optimizer import learning_rate, make_optimizer
from fastling.training.parallel import World
from fastling.training.update import Updater


def course(total_steps: int = 100, **settings) -> list[float]:
    config = Optimizer(lr=1.0, **settings)
    return [learning_rate(config, step, total_steps) for step in range(total_steps)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_warm_up_rises_in_equal_parts_to_the_highest_rate(schedule):
    rates = course(schedule=schedule, warmup_ratio=0.1)
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert max(rates) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_the_rate_falls_to_its_minimum_and_never_below(schedule):
    rates = course(schedule=schedule, warmup_ratio=0.0, min_lr_ratio=0.2)
    assert rates == sorted(rates, reverse=True)
    assert 0.2 <= rates[-1] < 0.25


def test_cosine_is_half_way_down_in_the_middle():
    assert course(warmup_ratio=0.0)[50] == pytest.approx(0.5)


def test_wsd_is_constant_until_its_decay_starts():
    rates = course(schedule="wsd", warmup_ratio=0.0, decay_ratio=0.25)
    assert rates[:76] == [1.0] * 76
    assert rates[-1] == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("warmup", "decay", "falling"), [(0.5, 0.2, 20), (0.5, 0.5, 50), (0.9, 0.5, 10), (0.5, None, 20)]
)
def test_wsd_decays_in_its_share_of_all_steps_warm_up_included(warmup, decay, falling):
    rates = course(schedule="wsd", warmup_ratio=warmup, decay_ratio=decay)
    assert sum(rate < 1.0 for rate in rates[round(100 * warmup) :]) == falling - 1  # the first is at the top
    assert rates[-1] == pytest.approx(1 / falling)


def test_constant_and_wsd_without_decay_stay_constant():
    assert set(course(schedule="constant", warmup_ratio=0.0)) == {1.0}
    assert set(course(schedule="wsd", warmup_ratio=0.0, decay_ratio=0.0)) == {1.0}


def test_a_setting_without_effect_is_refused():
    with pytest.raises(UserError, match="decay_ratio: has no effect with schedule cosine"):
        Optimizer(decay_ratio=0.1)
    with pytest.raises(UserError, match="min_lr_ratio: has no effect with schedule constant"):
        Optimizer(schedule="constant", min_lr_ratio=0.1)


def test_each_step_uses_the_rate_that_is_logged():
    """AdamW takes each weight as far as the rate says, if its gradient is the same at every step."""
    model = torch.nn.Linear(2, 2, bias=False)
    config = Config(optimizer=Optimizer(lr=0.1, weight_decay=0.0, schedule="linear", warmup_ratio=0.5))
    optimizer = make_optimizer(model, config.optimizer)
    world = World(0, 1, torch.device("cpu"), mesh=None)
    updater = Updater(config, world, model, optimizer, num_sources=1, num_steps=4)
    for number, rate in enumerate((0.05, 0.1, 0.1, 0.05), start=1):
        before = model.weight.detach().clone()
        model.weight.grad = torch.ones(2, 2)
        told = updater.update(Step([], 0, 0, 0, 0), number).lr
        went = before - model.weight.detach()
        assert told == pytest.approx(rate) and went.flatten().tolist() == pytest.approx([rate] * 4, rel=1e-4)
