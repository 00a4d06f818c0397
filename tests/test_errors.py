"""Mistakes under torchrun: said once, at once, and again where torchrun's own report ends."""

import subprocess
import time
from pathlib import Path

import pytest
from conftest import run_python

pytestmark = pytest.mark.slow
# A verb with a mistake that all ranks find. However busy the machine, rank 0 has the time to say it.
ALL = """
from fastling import errors
from fastling.train import main

errors.SECONDS_FOR_RANK_0 = 240
errors.leave(errors.run_command(main, ["--optimizer.lr", "fast"]))
"""
# A verb with a mistake that one rank alone finds; the other waits for it, as in a collective operation.
ALONE = """
import os, sys, time
from fastling import errors

def main(arguments):
    if os.environ["RANK"] == "1":
        raise errors.UserError("data/mine.jsonl", "is not there", "Copy it to every node.")
    time.sleep(600)

errors.SECONDS_FOR_RANK_0 = 0.5
sys.exit(errors.run_command(main, []))
"""
# The same inside a process group, whose end waits for all processes, as NCCL's does.
IN_A_GROUP = """
import signal
import time

import torch
import torch.distributed as dist

from fastling import errors
from fastling.config import Config
from fastling.training.parallel import open_world

def main(arguments):
    with open_world(Config()) as world:
        if world.rank == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which torchrun sends soon: time for its words
        world.sum(torch.ones(1))
        if world.rank == 1:
            raise errors.RunError("step 3", "out of GPU memory", "Lower train.micro_batch_tokens.")
        world.sum(torch.ones(1))

dist.destroy_process_group = lambda: time.sleep(600)
errors.SECONDS_FOR_RANK_0 = 0.5
errors.leave(errors.run_command(main, []))
"""
# Two processes save a checkpoint, and the disk is full for the one that is first.
ONE_CANNOT_SAVE = """
import time
from pathlib import Path

import torch

from fastling import errors
from fastling.config import Config
from fastling.training import checkpoint
from fastling.training.parallel import open_world

def write_text(path, text, write=Path.write_text):
    if path.name == "digests-0001.json":
        raise OSError(28, "No space left on device")
    time.sleep(1)
    write(path, text)

def main(arguments):
    Path.write_text = write_text
    with open_world(Config()):
        folder = Path(__file__).parent / "checkpoints"
        checkpoint.save(folder, 7, {"model.weight": torch.ones(4)}, {"identity": {}}, keep_last=1)

errors.leave(errors.run_command(main, []))
"""
# Two processes save a checkpoint, each on a disk of its own.
EACH_ON_ITS_OWN = """
import os
from pathlib import Path

import torch

from fastling import errors
from fastling.config import Config
from fastling.training import checkpoint
from fastling.training.parallel import open_world

def main(arguments):
    with open_world(Config()) as world:
        folder = Path(__file__).parent / str(world.rank)
        checkpoint.save(folder, 7, {"model.weight": torch.ones(4)}, {"identity": {}}, keep_last=1)

errors.leave(errors.run_command(main, []))
"""


def closing_report(stderr: str) -> str:
    return stderr[stderr.index("Root Cause (first observed failure):") :]


def run_script(folder: Path, text: str) -> subprocess.CompletedProcess:
    """Run a script on two processes; none may wait for another until it gives up."""
    script = folder / "alone.py"
    script.write_text(text)
    began = time.monotonic()
    result = run_python(script, ranks=2)
    assert time.monotonic() - began < 300
    return result


def test_an_error_of_all_ranks_is_said_by_one_and_in_the_report(tmp_path):
    result = run_script(tmp_path, ALL)
    assert result.returncode == 1  # torchrun's; the processes' own is 2
    report = closing_report(result.stderr)
    said = "error: --optimizer.lr: expected a number: fast"
    assert result.stderr.count(said) == 2 and report.count(said) == 1
    assert "exitcode  : 2" in report and "rank      : 0" in report


def test_an_error_of_one_rank_is_said_by_that_rank(tmp_path):
    result = run_script(tmp_path, ALONE)
    said = "rank 1: error: data/mine.jsonl: is not there\n  Copy it to every node."
    assert said in result.stderr
    assert "rank 1: error: data/mine.jsonl: is not there" in closing_report(result.stderr)


def test_a_rank_that_stops_in_the_midst_says_why_and_the_others_only_that_it_has(tmp_path):
    result = run_script(tmp_path, IN_A_GROUP)
    said = "rank 1: error: step 3: out of GPU memory\n  Lower train.micro_batch_tokens."
    assert said in result.stderr
    before_torchrun = result.stderr.split("torch/distributed/elastic")[0]
    assert "Traceback" not in before_torchrun
    assert result.stderr.index(said) < result.stderr.index("rank 0: cannot go on: another process")


def test_why_a_checkpoint_cannot_be_written_is_said_though_another_rank_finds_it(tmp_path):
    result = run_script(tmp_path, ONE_CANNOT_SAVE)
    said = "the checkpoint could not be written: OSError: [Errno 28] No space left on device"
    assert said in result.stderr.splitlines()[0]
    assert not list((tmp_path / "checkpoints").iterdir())


def test_no_checkpoint_is_written_of_the_shards_of_one_node_alone(tmp_path):
    result = run_script(tmp_path, EACH_ON_ITS_OWN)
    assert "OSError: this process does not see what rank 0 made: rank 1" in result.stderr.splitlines()[0]
    assert not list((tmp_path / "0").iterdir())
