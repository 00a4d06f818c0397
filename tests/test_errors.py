"""Mistakes under torchrun: said once, at once, and again where torchrun's own report ends."""

import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run_python

pytestmark = pytest.mark.slow
# A verb with a mistake that one rank alone finds; the other waits for it, as in a collective operation.
ALONE = """
import os, sys, time
from fastling import errors

def main(arguments):
    if os.environ["RANK"] == "1":
        raise errors.UserError("data/mine.jsonl", "is not there", "Copy it to every node.")
    time.sleep(60)

errors.SECONDS_FOR_RANK_0 = 0.5
sys.exit(errors.run_command(main, []))
"""


def closing_report(stderr: str) -> str:
    return stderr[stderr.index("Root Cause (first observed failure):") :]


def test_what_all_ranks_find_is_said_by_one_and_in_the_report():
    result = run_python("fastling.train", "--optimizer.lr", "fast", ranks=2)
    assert result.returncode == 1  # torchrun's; the processes' own is 2
    report = closing_report(result.stderr)
    said = "error: --optimizer.lr: expected a number: fast"
    assert result.stderr.count(said) == 2 and report.count(said) == 1
    assert "exitcode  : 2" in report and "rank      : 0" in report


def test_what_one_rank_finds_is_said_by_that_one(tmp_path):
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, *torchrun, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert time.monotonic() - began < 50
    said = "rank 1: error: data/mine.jsonl: is not there\n  Copy it to every node."
    assert said in result.stderr
    assert "rank 1: error: data/mine.jsonl: is not there" in closing_report(result.stderr)
