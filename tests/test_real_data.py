"""The main job on real conversations with LLaMA's own tokenizer, where they are at hand.

Set FASTLING_DATA to a folder with instructions/, parallel/ and tokenizers/llama.model.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, kill, run_python
from pairs_to_dialogues import main as pairs_to_dialogues
from test_train import course, train

from fastling.json_files import read_json_lines

DATA = Path(os.environ.get("FASTLING_DATA", "/nowhere"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="FASTLING_DATA names no folder of real data"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    sides = [str(DATA / "parallel" / f"zh-en.{side}") for side in ("zh", "en")]
    pairs_to_dialogues(*sides, str(folder / "pairs.jsonl"), "zh-en")
    lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "held-out.jsonl").write_text("".join(lines[:50]), encoding="utf-8")
    (folder / "train.jsonl").write_text("".join(lines[50:]), encoding="utf-8")
    settings = {
        "run_dir": str(folder / "run"),
        "model": {
            "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4,
        },
        "data": {
            "tokenizer": str(DATA / "tokenizers" / "llama.model"),
            "sequence_length": 1024,
            "sources": [
                {"name": "sharegpt", "path": str(DATA / "instructions" / "sharegpt-dummy.json")},
                {"name": "alpaca-zh", "path": str(DATA / "instructions" / "alpaca-zh.json"), "pair": "zh-zh"},
                {"name": "pairs", "path": str(folder / "train.jsonl")},
            ],
            "validation": [{"name": "held-out", "path": str(folder / "held-out.jsonl")}],
        },
        "train": {"steps": 16, "global_batch_tokens": 8192, "micro_batch_tokens": 2048, "precision": "fp32"},
        "optimizer": {"lr": 5e-3},
        "checkpoint": {"every_steps": 4},
        "evaluate": {"every_steps": 8, "samples": 1, "sample_tokens": 4},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


def test_two_processes_train_are_killed_and_go_on_bit_for_bit(config, tmp_path):
    done = json.loads(train("--config", config, "--json", ranks=2).stdout.splitlines()[-1])
    assert done["loss_last"] < done["loss_first"] - 1
    assert done["eval_loss_last"] < done["eval_loss_first"] - 1

    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "fastling.train"]
    process = subprocess.Popen(
        [*command, "--config", str(config), "--run_dir", str(killed)],
        cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while len(read_json_lines(killed / "metrics.jsonl")) < 6:
        assert process.poll() is None
        time.sleep(0.02)
    kill(killed)
    process.wait()
    train("--config", config, "--run_dir", killed, ranks=2)
    whole = Path(done["run_dir"])
    assert course(killed) == course(whole)
    weights = "export/model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()


def test_packs_are_more_than_99_percent_full(config):
    result = run_python(
        "fastling.prepare", "--config", config, "--json", "--data.sequence_length", "2048",
        "--train.epochs", "1", "--run_dir", config.parent / "prepared",
    )  # fmt: skip
    assert json.loads(result.stdout.splitlines()[-1])["fill"] > 0.99
