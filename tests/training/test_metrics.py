"""Honest speed (P14), and numbers that are none."""

import numpy
import pytest
import torch

from fastling.data.batches import Step
from fastling.data.packing import Plan
from fastling.errors import RunError
from fastling.model.llama import Llama, LlamaConfig
from fastling.training import evaluation, metrics
from fastling.training.evaluation import sums_by
from fastling.training.metrics import (
    Mark,
    Measured,
    Meter,
    check_finite,
)
from fastling.training.parallel import World
from fastling.training.work import Work

SHAPE = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip


def test_mfu_is_needed_work_over_what_all_gpus_could_do_in_that_time(monkeypatch):
    """Two ranks of 1e9 FLOP/s; half a second."""
    monkeypatch.setattr(metrics, "peak_flops", lambda device: 1e9)
    model = Llama(LlamaConfig(**SHAPE))
    plan = Plan(numpy.arange(4), numpy.arange(5), (4,))
    meter = Meter(model, World(0, 2, torch.device("cpu"), mesh=None), plan, ["a", "b"])
    step = Step(batches=[], tokens=40, supervised_tokens=10, packs=2, squared_tokens=1000)
    numbers, finished = torch.tensor([2.0, 0.25, 6.0, 3.0, 0.0, 0.0, 0.0]), Mark(torch.device("cpu"))
    finished.host_seconds = meter.last.host_seconds + 0.5
    line = meter.line(Measured(1, step, 0.1, numbers, finished), sequence_length=64)
    work = Work(model.config)
    assert line["mfu"] == pytest.approx(work.needed(40, 10, 1000) / 1e9)
    assert line["mfu_usual_count"] == pytest.approx(work.usual_count(40, 64) / 1e9)
    speeds = (line["tokens_per_s"], line["supervised_tokens_per_s"], line["padded_tokens_per_s"])
    assert speeds == pytest.approx((80, 20, 256))
    assert line["loss_a"] == 2.0 and "loss_b" not in line  # nothing of b was in the step
    assert (line["loss"], line["grad_norm"], line["epoch"]) == (0.25, 2.0, 0.5)
    assert 0.05 < line["memory_gib"] < 100


def test_a_non_finite_step_ends_the_run_with_usable_advice():
    """Resumed with a lower rate, a run would be refused."""
    meter = Meter(Llama(LlamaConfig(**SHAPE)), World(0, 1, torch.device("cpu"), mesh=None), None, [])
    measured = Measured(3, None, 0.1, torch.tensor([float("nan"), 2.0, 0.0]), Mark(torch.device("cpu")))
    with pytest.raises(RunError, match=r"(?s)step 3: .*loss 2.0, gradient norm nan\n.* a new run_dir"):
        meter.line(measured, sequence_length=64)


def test_sums_by_group():
    sums = sums_by(torch.tensor([2, 0, 2]), torch.tensor([1.0, 2.0, 4.0]), 3)
    assert sums.tolist() == [2, 1, 0, 0, 5, 2]
    assert sums_by(torch.tensor([], dtype=torch.long), torch.tensor([]), 2).tolist() == [0, 0, 0, 0]


def test_sums_are_formed_only_for_groups_in_the_batch(monkeypatch):
    sizes = []
    monkeypatch.setattr(evaluation, "sums_by", lambda *given: sizes.append(given[2]) or sums_by(*given))
    sums = torch.zeros(100_000, 2)
    for groups, values in (([70_000, 3, 70_000], [1.0, 2.0, 4.0, 0.0]), ([3], [1.0]), ([], [5.0])):
        evaluation.add_sums(sums, torch.tensor(groups, dtype=torch.long), torch.tensor(values))
    assert sums[[3, 70_000]].tolist() == [[3, 2], [5, 2]] and sums.sum() == 12
    assert sizes == [2, 1]


@pytest.mark.parametrize(("step", "fix"), [(0, "train.precision fp32"), (3, "A lower optimizer.lr")])
def test_non_finite_numbers_are_named_with_what_may_help(step, fix):
    """No learning rate has been at work before the first step."""
    check_finite(step, {"eval_loss": 1.5})
    with pytest.raises(
        RunError, match=f"step {step}: a loss or gradient norm is not finite: eval_loss nan\n  .*{fix}"
    ):
        check_finite(step, {"eval_loss": float("nan")})
