"""The main job over real processes: train, kill, resume, export."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT, kill, run_python, tiny_settings

from fastling.errors import run_command
from fastling.export import main as export_main
from fastling.json_files import read_json_lines
from fastling.train import main as train_main

pytestmark = pytest.mark.slow
SAME_AGAIN = ("step", "epoch", "loss", "lr", "grad_norm", "tokens", "supervised_tokens", "eval_loss")


def course(run_dir: Path) -> list[dict]:
    """The numbers of a run that must come out the same again, bit for bit."""
    lines = read_json_lines(run_dir / "metrics.jsonl")
    return [{name: line[name] for name in SAME_AGAIN if name in line} for line in lines]


def train(*arguments, ranks: int = 0, **options) -> subprocess.CompletedProcess:
    result = run_python("fastling.train", *arguments, ranks=ranks, **options)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small run of eight steps to its end on two processes, looked at by several tests."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny_settings(folder / "run") | {"log": {"wandb": True}}
    config["train"] |= {"steps": 8, "micro_batch_tokens": 256}
    config["evaluate"]["samples"] = 2
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    result = train("--config", path, "--json", ranks=2)
    return path, folder / "run", result


def test_loss_falls_and_the_summary_says_so(finished):
    _, run_dir, result = finished
    done = json.loads(result.stdout.splitlines()[-1])
    assert done["steps"] == 8
    assert done["loss_last"] < done["loss_first"]
    assert done["eval_loss_last"] < done["eval_loss_first"]
    for name in ("loss_plot", "export"):
        assert Path(done[name]).exists()


def test_the_run_folder_holds_what_is_promised(finished):
    _, run_dir, _ = finished
    names = {path.name for path in run_dir.iterdir()}
    expected = {"config.yaml", "manifest.json", "metrics.jsonl", "checkpoints", "export", "loss.png"}
    assert expected | {"ledger.json", "refused.jsonl", "samples.jsonl", "wandb"} <= names
    steps = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert steps == ["step-00000006", "step-00000008"]
    assert len((run_dir / "samples.jsonl").read_text().splitlines()) == 2 * 4  # before, 3, 6, 8


def test_every_line_of_metrics_has_the_promised_keys(finished):
    lines = read_json_lines(finished[1] / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    keys = "loss lr grad_norm tokens supervised_tokens tokens_per_s supervised_tokens_per_s mfu memory_gib"
    for line in lines:
        assert set(keys.split()) <= line.keys()
        assert line["loss_demo"] == pytest.approx(line["loss"], rel=1e-5)  # one source, token loss
    assert {"eval_loss", "eval_loss_held-out", "eval_loss_zh-en"} <= lines[2].keys()


def test_the_export_opens_in_transformers_and_agrees(finished):
    folder = finished[1] / "export"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Guten Morgen!"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]

    from fastling import load_pretrained

    ours = load_pretrained(folder)
    borders = torch.tensor([0, len(ids)], dtype=torch.int32)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
        found = ours.logits(torch.tensor(ids), borders)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]


def test_a_finished_run_started_again_changes_nothing(finished, capsys):
    config, run_dir, _ = finished
    before = course(run_dir)
    train_main(["--config", str(config), "--log.wandb", "false"])
    assert "resuming after step 8 of 8" in capsys.readouterr().err
    assert course(run_dir) == before


def test_the_triton_kernels_train_the_same_model(tmp_path, capsys):
    """Two processes, two steps, every kernel interpreted, against plain PyTorch in this one."""
    courses = {}
    for kernels in ("triton", "reference"):
        config = tiny_settings(tmp_path / kernels)
        config["model"] |= {"kernels": kernels, "hidden_size": 16, "intermediate_size": 24}
        config["data"] |= {"sequence_length": 128, "validation": []}
        del config["evaluate"]
        config["train"] |= {"steps": 2, "global_batch_tokens": 256, "micro_batch_tokens": 128}
        path = tmp_path / f"{kernels}.json"
        path.write_text(json.dumps(config))
        if kernels == "triton":
            said = train("--config", path, ranks=2, environment={"TRITON_INTERPRET": "1"}).stderr
        else:
            train_main(["--config", str(path)])
            said = capsys.readouterr().err
        assert f"swiglu: {kernels}: named in the config" in said
        assert "nothing is evaluated" not in said  # nothing was asked for
        courses[kernels] = course(tmp_path / kernels)
    assert len(courses["triton"]) == 2
    for ours, plain in zip(courses["triton"], courses["reference"], strict=True):
        assert ours.keys() == plain.keys()
        for name, value in plain.items():
            assert ours[name] == pytest.approx(value, rel=1e-5), name


def test_another_number_of_ranks_sees_the_same_data_and_the_same_loss(finished, tmp_path):
    config, run_dir, _ = finished
    train_main(["--config", str(config), "--run_dir", str(tmp_path / "alone"), "--log.wandb", "false"])
    for mine, theirs in zip(course(tmp_path / "alone"), course(run_dir), strict=True):
        assert mine["tokens"] == theirs["tokens"]
        assert mine["supervised_tokens"] == theirs["supervised_tokens"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def start_and_kill(arguments: list, run_dir: Path, enough: int) -> None:
    """Train on two processes and kill -9 them after so many lines of metrics."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "fastling.train"]
    process = subprocess.Popen(
        [*command, *map(str, arguments), "--run_dir", str(run_dir)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while len(read_json_lines(run_dir / "metrics.jsonl")) < enough and process.poll() is None:
        time.sleep(0.01)
    kill(run_dir)
    process.wait()


def test_killed_at_any_moment_it_resumes_bit_for_bit(finished, tmp_path):
    """P10, with kill -9 before the first checkpoint and between later ones, over two processes."""
    config, undisturbed, _ = finished
    arguments = ["--config", config, "--log.wandb", "false"]
    run_dir = tmp_path / "killed"
    for enough in (1, 5):
        start_and_kill(arguments, run_dir, enough)
    train(*arguments, "--run_dir", run_dir, ranks=2)
    assert course(run_dir) == course(undisturbed)
    samples = [(folder / "samples.jsonl").read_text(encoding="utf-8") for folder in (run_dir, undisturbed)]
    assert samples[0] == samples[1]
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        mine, theirs = (folder / "export" / name for folder in (run_dir, undisturbed))
        assert mine.read_bytes() == theirs.read_bytes()


def test_it_resumes_with_processes_that_cannot_share_its_packs_evenly(finished, tmp_path):
    """Four packs a step on two processes, then on three, as when a machine is lost: the same data and losses."""
    config, undisturbed, _ = finished
    run_dir = shutil.copytree(undisturbed, tmp_path / "run", ignore=shutil.ignore_patterns("wandb*"))
    shutil.rmtree(run_dir / "checkpoints/step-00000008")
    resumed = train("--config", config, "--log.wandb", "false", "--run_dir", run_dir, ranks=3)
    assert "resuming after step 6 of 8" in resumed.stderr
    assert re.search(r"in the same order, not to the same bits: processes \d -> 3", resumed.stderr)
    for mine, theirs in zip(course(run_dir), course(undisturbed), strict=True):
        assert (mine["tokens"], mine["supervised_tokens"]) == (theirs["tokens"], theirs["supervised_tokens"])
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_a_stop_signal_saves_on_all_processes_and_resumes_exactly(finished, tmp_path):
    """By one SIGTERM, or two as under Slurm, to one of two processes. P10 holds of it, too.

    It comes after step 3, where an evaluation is due, which is left out until the run goes on.
    """
    config, undisturbed, _ = finished
    arguments = ["--config", config, "--log.wandb", "false", "--run_dir", tmp_path / "run"]
    arguments += ["--checkpoint.every_steps", "100"]
    told = run_python("tests.training.stopped_worker", *arguments, ranks=2)
    assert told.returncode != 0  # torchrun's own
    assert "run: was told to stop, and saved after step 3 of 8" in told.stderr
    assert "exitcode  : 143" in told.stderr
    said = train(*arguments, ranks=2).stderr
    assert "resuming after step 3 of 8" in said and "not to the same bits" not in said
    assert course(tmp_path / "run") == course(undisturbed)


def test_a_single_process_stops_with_the_signals_status(tiny_run, tmp_path):
    told = run_python("tests.training.stopped_worker", "--config", tiny_run(evaluate={"every_steps": 4}))
    assert (told.returncode, told.stdout) == (143, "")
    said = f"error: {tmp_path / 'run'}: was told to stop, and saved after step 4 of 6"
    assert told.stderr.splitlines()[-2:] == [said, "  The same command resumes from there."]
    assert (tmp_path / "run/checkpoints/step-00000004").is_dir()


def test_an_interrupted_evaluation_is_made_up_for(tiny_run, tmp_path):
    """Told to stop after step 3, a run saves after step 4 without the evaluation that is due there."""
    config, runs = tiny_run(evaluate={"every_steps": 4}), [tmp_path / "told", tmp_path / "undisturbed"]
    run_python("tests.training.stopped_worker", "--config", config, "--run_dir", runs[0])
    assert [("eval_loss" in line) for line in read_json_lines(runs[0] / "metrics.jsonl")] == [False] * 4
    for run_dir in runs:
        train("--config", config, "--run_dir", run_dir)
    assert course(runs[0]) == course(runs[1])
    lines, undisturbed = (read_json_lines(run_dir / "metrics.jsonl") for run_dir in runs)
    assert [list(line) for line in lines] == [list(line) for line in undisturbed]
    assert "eval_loss" in lines[3]
    samples = [(run_dir / "samples.jsonl").read_text(encoding="utf-8") for run_dir in runs]
    assert samples[0] == samples[1]


def test_hsdp_replicas_train_and_resume_like_shards(finished, tmp_path):
    """Their gradients are summed over both of two micro-batches at once; and they write each tensor once
    between them, which the check must not miss on the others."""
    config, undisturbed, _ = finished
    arguments = ["--config", config, "--log.wandb", "false"]
    arguments = [*arguments, "--run_dir", tmp_path / "run", "--parallel.replicate", "2"]
    train(*arguments, ranks=2)
    for mine, theirs in zip(course(tmp_path / "run"), course(undisturbed), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    before = course(tmp_path / "run")
    result = train(*arguments, ranks=2)
    assert "resuming after step 8 of 8" in result.stderr
    assert "damaged" not in result.stderr
    assert course(tmp_path / "run") == before


def test_non_finite_weights_are_not_saved(tiny_run, tmp_path):
    """The step's own loss is of the weights before it; the held-out one is of those after. W&B keeps the rest."""
    each = {"every_steps": 1}
    config = tiny_run(optimizer={"lr": 1e30}, checkpoint=each, evaluate=each, log={"wandb": True})
    result = run_python("fastling.train", "--config", config)
    assert result.returncode == 1
    assert "error: step 1: a loss or gradient norm is not finite: eval_loss nan" in result.stderr
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert b"optimizer" in kept.read_bytes()


def test_two_runs_do_not_share_a_folder(finished, capsys):
    config, run_dir, _ = finished
    with open(run_dir / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_command(train_main, ["--config", str(config), "--log.wandb", "false"]) == 2
    assert "another run is using it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)], ids=["Ctrl-C", "a connection that ends"]
)
def test_stopping_a_run_by_hand_loses_no_step(tiny_run, tmp_path, how, status):
    run_dir = tmp_path / "run"
    rarely = {"every_steps": 50000}
    config = tiny_run(train={"steps": 50000}, checkpoint=rarely, evaluate=rarely)
    process = subprocess.Popen(
        [sys.executable, "-m", "fastling.train", "--config", str(config)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
        # A shell's background job, and all it starts, would ignore the keyboard.
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGHUP)],
    )  # fmt: skip
    while len(read_json_lines(run_dir / "metrics.jsonl")) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(how)
    _, said = process.communicate(timeout=120)
    assert process.returncode == status
    assert "Traceback" not in said
    assert ("Ctrl-C again ends the run" in said) == (how == signal.SIGINT)
    step = read_json_lines(run_dir / "metrics.jsonl")[-1]["step"]
    assert f"{run_dir}: was told to stop, and saved after step {step} of 50000" in said
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [f"step-{step:08d}"]


def test_a_run_does_not_resume_with_other_settings(finished, capsys):
    config, run_dir, _ = finished
    arguments = ["--config", str(config), "--optimizer.lr", "0.5", "--log.wandb", "false"]
    assert run_command(train_main, arguments) == 2
    said = capsys.readouterr().err
    assert "was made with another optimizer.lr: 0.01; the config now gives 0.5" in said
    assert "set model.pretrained to this one's export" in said


def test_export_from_a_checkpoint_equals_the_run_s_own(finished, tmp_path, capsys):
    _, run_dir, _ = finished
    export_main(["--run", str(run_dir), "--out", str(tmp_path / "out"), "--json"])
    checks = json.loads(capsys.readouterr().out.splitlines()[-1])["checks"]
    assert all(check["passed"] for check in checks), checks
    mine, theirs = tmp_path / "out" / "model.safetensors", run_dir / "export" / "model.safetensors"
    assert mine.read_bytes() == theirs.read_bytes()


SLOW_DISK = """
import datetime, time
import torch.distributed as dist
from fastling import export, train
from fastling.errors import leave, run_program

def slowly(tensors, *others, digested=export.digested):
    for each in digested(tensors, *others):
        time.sleep(3 * (each[0] == "model.layers.0.mlp.up_proj.weight"))
        yield each

def finish(run, finish=train.Run.finish):
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=1), dist.group.WORLD)
    return finish(run)

export.digested, train.Run.finish = slowly, finish
leave(run_program(train.main))
"""


def test_processes_wait_for_the_one_that_writes_the_export_on_a_slow_disk(tiny_run, tmp_path):
    """For longer than the time in which they must have gathered a weight: NCCL's is ten minutes, for all of them."""
    script = tmp_path / "slow_disk.py"
    script.write_text(SLOW_DISK)
    config = tiny_run(train={"steps": 1}, data={"validation": []})
    done = run_python(script, "--config", config, ranks=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/export/model.safetensors").exists()


def test_a_pretrained_folder_is_fine_tuned(finished, tmp_path):
    """From the export of one run into another, in bf16, with everything switched on."""
    _, run_dir, _ = finished
    config = {
        "run_dir": str(tmp_path / "second"),
        "model": {"pretrained": str(run_dir / "export")},
        "data": {
            "template": "bayling",
            "sequence_length": 128,
            "max_refused_share": 0.2,
            "sources": [{"name": "demo", "path": "fastling:demo/train.jsonl", "weight": 0.5}],
        },
        "train": {
            "steps": 2, "global_batch_tokens": 512, "micro_batch_tokens": 256, "loss": "turn",
            "activation_checkpointing": "selective",
        },
        "optimizer": {"schedule": "wsd", "weight_decay": 0.1},
        "parallel": {"shard": "gradients", "replicate": 2},
        "evaluate": {"every_steps": 1},
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    result = train("--config", path, ranks=2)
    assert "trained 2 steps: loss per turn " in result.stderr
    assert "nothing is evaluated: neither data.validation nor data.held_out_share is set" in result.stderr
    lines = read_json_lines(tmp_path / "second" / "metrics.jsonl")
    first = read_json_lines(run_dir / "metrics.jsonl")
    assert lines[0]["loss"] < first[0]["loss"] - 0.3  # it begins where the first run ended
    exported = json.loads((tmp_path / "second" / "export" / "config.json").read_text())
    assert exported["torch_dtype"] == exported["dtype"] == "bfloat16"


def test_a_resumed_run_does_not_read_the_pretrained_weights(
    finished, tiny_run, tmp_path, monkeypatch, capsys
):
    """They would be read for nothing, on each process: 13 GB of a 7B model."""
    export = str(finished[1] / "export")
    arguments = ["--config", str(tiny_run(model=None, train={"steps": 1}, evaluate={"samples": 0}))]
    arguments += ["--model.pretrained", export]
    train_main(arguments)
    written = (tmp_path / "run/export/model.safetensors").read_bytes()
    monkeypatch.setattr("fastling.training.build.load_weights", pytest.fail)
    train_main(arguments)
    assert "resuming after step 1 of 1" in capsys.readouterr().err
    assert (tmp_path / "run/export/model.safetensors").read_bytes() == written


def test_spoilt_samples_and_a_lost_export_do_not_keep_a_run_from_going_on(finished, tmp_path):
    """A kill while samples are written cuts a character; one while an export is replaced leaves two folders."""
    config, run_dir, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("wandb*"))
    with open(copy / "samples.jsonl", "ab") as file:
        file.write(b'{"step": 8, "question": "\xe8\xaf')
    (copy / "export").rename(copy / ".export.replaced")
    train_main(["--config", str(config), "--run_dir", str(copy), "--log.wandb", "false"])
    assert (copy / "samples.jsonl").read_text() == (run_dir / "samples.jsonl").read_text()
    assert (copy / "export" / "README.md").exists() and not (copy / ".export.replaced").exists()


def test_a_run_resumed_with_other_held_out_data_says_so(finished, tmp_path, capsys):
    config, run_dir, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("wandb*"))
    shutil.rmtree(copy / "checkpoints/step-00000008")
    arguments = ["--config", str(config), "--run_dir", str(copy), "--log.wandb", "false"]
    other = '[{"name": "held-out", "path": "fastling:demo/train.jsonl"}]'
    train_main([*arguments, "--data.validation", other])
    words = "the held-out data has changed: its losses up to step 6 are not comparable"
    assert words in capsys.readouterr().err
    train_main([*arguments, "--data.validation", other])
    assert words not in capsys.readouterr().err


def test_a_run_whose_checkpoints_are_gone_says_that_it_starts_over(tiny_run, tmp_path, capsys):
    """As on a disk that is swept: its metrics, and in the end its export, are replaced."""
    arguments = ["--config", str(tiny_run(train={"steps": 1}, evaluate={"samples": 0}))]
    words = "there is no checkpoint: the run starts over, and replaces the metrics of its earlier start"
    train_main(arguments)
    assert words not in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    train_main(arguments)
    assert words in capsys.readouterr().err


def test_metrics_are_on_the_disk_before_the_checkpoint_that_goes_on_after_them(
    tiny_run, tmp_path, monkeypatch
):
    """A power failure would otherwise leave a run that resumes after steps whose losses are lost."""
    flushed, fsync = [], os.fsync

    def recorded(number):
        flushed.append((Path(os.readlink(f"/proc/self/fd/{number}")), os.fstat(number).st_size))
        fsync(number)

    monkeypatch.setattr(os, "fsync", recorded)
    train_main(["--config", str(tiny_run(train={"steps": 1}, evaluate={"samples": 0}))])
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = flushed.index((metrics, metrics.stat().st_size))
    saved = [place for place, (path, _) in enumerate(flushed) if "checkpoints" in path.parts]
    assert whole < saved[0]


def test_a_plot_and_samples_that_cannot_be_written_do_not_keep_a_run_from_its_checkpoint(
    tiny_run, tmp_path, monkeypatch, capsys
):
    """For want of room, or because of what matplotlib finds in the environment."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def without(*_, **__):
        raise ValueError("'nonsense' is not a valid value for backend")

    monkeypatch.setattr("fastling.training.evaluation.json_line", full)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", without)
    train_main(["--config", str(tiny_run())])
    said = capsys.readouterr().err
    assert said.count("samples.jsonl: cannot be written: OSError: [Errno 28] No space left on device") == 1
    words = "ValueError: 'nonsense' is not a valid value for backend; the run continues without it"
    assert said.count(f"loss.png: cannot be written: {words}") == 1
    assert "loss plot:" not in said
    assert (tmp_path / "run/checkpoints/step-00000006").is_dir()


def test_the_loss_before_training_is_logged_though_not_every_step_is(tmp_path, capsys):
    settings = tiny_settings(tmp_path / "run")
    settings["train"] |= {"steps": 2}
    settings["log"] = {"every_steps": 2}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    train_main(["--config", str(path), "--json"])
    done = json.loads(capsys.readouterr().out)
    (line,) = read_json_lines(tmp_path / "run/metrics.jsonl")
    assert done["eval_loss_first"] == line["eval_loss_before"] == pytest.approx(7.6, abs=0.3)


def test_the_loss_before_training_outlives_a_kill_between_lines_of_metrics(tmp_path):
    """The run may be killed right after its first checkpoint, with no step told before it."""
    settings = tiny_settings(tmp_path / "run") | {"log": {"every_steps": 50_000}}
    settings["train"]["steps"] = 50_000
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings | {"evaluate": {"every_steps": 50_000, "samples": 0}}))
    start_and_kill(["--config", path], tmp_path / "run", 1)
    (line,) = read_json_lines(tmp_path / "run/metrics.jsonl")
    assert line["step"] == 2 and "eval_loss_before" in line
