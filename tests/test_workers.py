"""Processes that share some work: none outlives the process that it works for, and what kills one is told."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from interactive.parallel_text import knowledge_of, recipe_of, write_corpus

from fastling.errors import RunError
from fastling.interactive import build

BUSY = """
import time
from fastling.workers import start_workers

if __name__ == "__main__":
    with start_workers(2, time.sleep, 0, where="workers", fix="") as pool:
        futures = [pool.submit(time.sleep, 0.2) for _ in range(2)]
        for future in futures:
            future.result()
        print(*pool._processes, flush=True)
        time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=lambda how: how.name)
def test_no_worker_outlives_a_process_that_is_killed(tmp_path, how):
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # which nohup has all below it ignore
    ) as process:  # fmt: skip
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2 and all(map(alive, workers))
        process.send_signal(how)
    end = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.mark.slow
def test_a_worker_of_dialogues_that_is_killed_is_told_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "LINES_PER_CHUNK", 20)
    corpus, out = write_corpus(tmp_path, "zh", "en"), tmp_path / "out.jsonl"
    recipe = recipe_of(dataclasses.replace(knowledge_of("zh", "en"), corpus=corpus))

    def kill_one(lines):
        for child in multiprocessing.active_children()[:1]:
            child.kill()

    with pytest.raises(RunError, match="--workers: one of 2 processes was killed, .* memory"):
        build.write_dialogues(recipe, out, total=600, workers=2, progress=kill_one)
    assert not out.exists()
