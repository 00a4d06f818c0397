"""The metrics that are kept of a run: their file, W&B, and the plot."""

import errno
import os
import tracemalloc
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Literal

import pytest
from pydantic import TypeAdapter

from fastling.config import Config, Log
from fastling.errors import RunError, UserError
from fastling.json_files import drop_later_steps, json_line, read_json_lines
from fastling.training.metrics_log import MetricsLog, _running_mean, _start_wandb, plot_loss


@pytest.mark.parametrize("other", ['{"loss": 1.0}', '{"step": null}', '{"step": "2"}'])
def test_foreign_lines_in_metrics_do_not_stop_a_resume(tmp_path, other):
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / name).write_text(f'{{"step": 2}}\n{other}\n{{"step": 3}}\n')
    with MetricsLog(tmp_path, Config(), 2) as log:
        assert log.wandb is None  # as nobody asked for it
    drop_later_steps(tmp_path / "samples.jsonl", 2)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert read_json_lines(tmp_path / name) == [{"step": 2}]


def test_late_additions_go_into_the_last_line_and_to_wandb(tmp_path, monkeypatch):
    told = []
    fake = SimpleNamespace(log=told.append, finish=lambda **_: None)
    monkeypatch.setattr("fastling.training.metrics_log._start_wandb", lambda *_: fake)
    with MetricsLog(tmp_path, Config(log=Log(wandb=True)), 0) as log:
        for step in (1, 2):
            log.write({"step": step, "loss": 2.0})
        log.amend(2, {"eval_loss": 3.0})
        log.write({"step": 3, "loss": 1.0})
    two = {"step": 2, "loss": 2.0, "eval_loss": 3.0}
    assert read_json_lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 2.0},
        two,
        {"step": 3, "loss": 1.0},
    ]
    assert told[2] == {"train/global_step": 2, "eval/loss": 3.0}


def test_wandb_without_a_key_is_explained(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")

    def refuses(**_):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuses)
    with pytest.raises(UserError, match="log.wandb: W&B does not start: No API key configured.\n  Run"):
        MetricsLog(tmp_path, Config(log=Log(wandb=True)), 0)


def test_a_variable_that_wandb_rejects_is_explained(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")

    def refuses(**_):
        TypeAdapter(Literal["online", "offline"]).validate_python("ofline")

    monkeypatch.setattr(wandb, "init", refuses)
    with pytest.raises(UserError, match="log.wandb: W&B does not start: .*'online' or 'offline'.*'ofline'"):
        MetricsLog(tmp_path, Config(log=Log(wandb=True)), 0)


@pytest.mark.parametrize(("given", "taken"), [("fastling", "of-the-shell"), ("mine", "mine")])
def test_wandbs_project_comes_from_the_config_or_else_the_environment(monkeypatch, tmp_path, given, taken):
    wandb = pytest.importorskip("wandb")
    started = []
    run = SimpleNamespace(define_metric=lambda *_, **__: None)
    monkeypatch.setattr(wandb, "init", lambda **settings: started.append(settings) or run)
    monkeypatch.setenv("WANDB_PROJECT", "of-the-shell")
    _start_wandb(tmp_path, Config(log=Log(wandb=True, project=given)))
    assert started[0]["project"] == taken


def test_the_wandb_id_file_is_whole_or_absent(monkeypatch, tmp_path):
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
def test_wandb_learns_how_a_run_ended_and_keeps_its_last_steps(monkeypatch, tmp_path, error, status):
    finished, told = [], []
    fake = SimpleNamespace(finish=lambda **given: finished.append(given["exit_code"]), log=told.append)
    monkeypatch.setattr("fastling.training.metrics_log._start_wandb", lambda *_: fake)
    with pytest.raises(RunError) if error else nullcontext():
        with MetricsLog(tmp_path, Config(log=Log(wandb=True)), 0) as log:
            log.write({"lr": 0.1, "loss_demo": 2.0, "eval_loss_demo": 3.0})
            if error:
                raise error
    assert finished == [status]
    assert told == [{"train/learning_rate": 0.1, "train/loss_demo": 2.0, "eval/loss_demo": 3.0}]
    assert read_json_lines(tmp_path / "metrics.jsonl")[0]["eval_loss_demo"] == 3.0


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
def test_the_plot_is_a_picture_whatever_the_name_of_the_folder(name, tmp_path):
    run_dir = tmp_path / name
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0, "eval_loss": 2.5}\n'
    )
    assert plot_loss(run_dir, "token").read_bytes().startswith(b"\x89PNG")


def test_a_plot_names_the_unit_of_each_loss(tmp_path, monkeypatch):
    labels = []

    def look(figure, path, **_):
        labels.extend(figure.axes[0].get_legend_handles_labels()[1])
        path.write_bytes(b"")

    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 2.0, "eval_loss": 2.5}\n')
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", look)
    plot_loss(tmp_path, "turn")
    assert labels == ["training, per turn", "running mean", "held out, per token"]


def test_neither_plot_nor_resume_reads_all_metrics_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: path.write_bytes(b""))
    line = {"step": 1, "loss": 2.0, "words": "x" * 10_000}
    (tmp_path / "metrics.jsonl").write_text(2000 * json_line(line))
    tracemalloc.start()
    try:
        drop_later_steps(tmp_path / "metrics.jsonl", 1)
        plot_loss(tmp_path, "token")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert read_json_lines(tmp_path / "metrics.jsonl") == 2000 * [line]


def test_the_running_mean_starts_with_the_first_steps():
    assert _running_mean((4.0, 2.0, 6.0), 2) == [4.0, 3.0, 4.0]
