"""Honest speed (P14), metrics files, and the plot."""

import errno
import os
from contextlib import nullcontext
from types import SimpleNamespace

import numpy
import pytest
import torch

from fastling.config import Config, Log
from fastling.data.batches import Step
from fastling.data.packing import Plan
from fastling.errors import RunError, UserError
from fastling.files import drop_later_steps, read_json_lines
from fastling.model.llama import Llama, LlamaConfig
from fastling.training import metrics
from fastling.training.evaluation import sums_by
from fastling.training.metrics import (
    Mark,
    Measured,
    Meter,
    MetricsLog,
    _start_wandb,
    check_finite,
    plot_loss,
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


def test_a_step_that_is_not_finite_ends_the_run_with_advice_that_can_be_taken():
    """Resumed with a lower rate, a run would be refused."""
    meter = Meter(Llama(LlamaConfig(**SHAPE)), World(0, 1, torch.device("cpu"), mesh=None), None, [])
    measured = Measured(3, None, 0.1, torch.tensor([float("nan"), 2.0, 0.0]), Mark(torch.device("cpu")))
    with pytest.raises(RunError, match=r"(?s)step 3: .*loss 2.0, gradient norm nan\n.* in another run_dir"):
        meter.line(measured, sequence_length=64)


def test_sums_by_group():
    sums = sums_by(torch.tensor([2, 0, 2]), torch.tensor([1.0, 2.0, 4.0]), 3)
    assert sums.tolist() == [2, 1, 0, 0, 5, 2]
    assert sums_by(torch.tensor([], dtype=torch.long), torch.tensor([]), 2).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("rest", [b'{"step": 2, "lo', b'{"step": 2, "q": "\xe8\xaf', b"\0\0\0", b"[2]", b""])
def test_what_a_kill_has_spoilt_is_left_out(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + rest + b'\n{"step": 3}\n')
    assert read_json_lines(path) == [{"step": 1, "loss": 2.0}, {"step": 3}]
    assert read_json_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("other", ['{"loss": 1.0}', '{"step": null}', '{"step": "2"}'])
def test_what_others_have_written_there_does_not_keep_a_run_from_going_on(tmp_path, other):
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / name).write_text(f'{{"step": 2}}\n{other}\n{{"step": 3}}\n')
    with MetricsLog(tmp_path, Config(), 2):
        pass
    drop_later_steps(tmp_path / "samples.jsonl", 2)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert read_json_lines(tmp_path / name) == [{"step": 2}]


def test_wandb_without_a_key_is_told_in_words(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")

    def refuses(**_):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuses)
    with pytest.raises(UserError, match="log.wandb: W&B does not start: No API key configured.\n  Run"):
        MetricsLog(tmp_path, Config(log=Log(wandb=True)), 0)


def test_wandb_s_id_of_a_run_is_whole_or_absent(monkeypatch, tmp_path):
    """With half of one, the run could not be started again."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "init", lambda **given: SimpleNamespace(define_metric=lambda *_, **__: given))

    def is_full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", is_full)
        with pytest.raises(OSError, match="No space left"):
            _start_wandb(tmp_path, Config(log=Log(wandb=True)))
    assert not (tmp_path / "wandb-id").exists()
    assert len(_start_wandb(tmp_path, Config(log=Log(wandb=True))).define_metric()["id"]) == 8


@pytest.mark.parametrize(("error", "status"), [(None, 0), (RunError("step 3", "not finite"), 1)])
def test_wandb_is_told_how_a_run_ended_and_keeps_its_last_steps(monkeypatch, tmp_path, error, status):
    finished = []
    fake = SimpleNamespace(finish=lambda **given: finished.append(given["exit_code"]))
    monkeypatch.setattr("fastling.training.metrics._start_wandb", lambda *_: fake)
    with pytest.raises(RunError) if error else nullcontext():
        with MetricsLog(tmp_path, Config(log=Log(wandb=True)), 0):
            if error:
                raise error
    assert finished == [status]


def test_a_plot_is_the_old_one_until_the_new_one_is_whole(tmp_path, monkeypatch):
    def killed_in_the_midst(figure, path, **_):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    before = plot_loss(tmp_path, "token").read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", killed_in_the_midst)
    with pytest.raises(KeyboardInterrupt):
        plot_loss(tmp_path, "token")
    assert (tmp_path / "loss.png").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "cost$_$", "运行"])
def test_plot_is_a_picture_whatever_the_folder_is_called(name, tmp_path):
    run_dir = tmp_path / name
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0, "eval_loss": 2.5}\n'
    )
    assert plot_loss(run_dir, "token").read_bytes().startswith(b"\x89PNG")


def test_a_plot_says_by_what_each_loss_is(tmp_path, monkeypatch):
    labels = []

    def look(figure, path, **_):
        labels.extend(figure.axes[0].get_legend_handles_labels()[1])
        path.write_bytes(b"")

    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 2.0, "eval_loss": 2.5}\n')
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", look)
    plot_loss(tmp_path, "turn")
    assert labels == ["training, per turn", "running mean", "held out, per token"]


@pytest.mark.parametrize(("step", "fix"), [(0, "train.precision fp32"), (3, "A lower optimizer.lr")])
def test_numbers_that_are_none_are_named_with_what_may_help(step, fix):
    """No learning rate has been at work before the first step."""
    check_finite(step, {"eval_loss": 1.5})
    with pytest.raises(RunError, match=f"step {step}: not all is finite: eval_loss nan\n  .*{fix}"):
        check_finite(step, {"eval_loss": float("nan")})
