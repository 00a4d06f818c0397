"""Processes that share some work: none outlives the process that it works for, and what kills one is told."""

import dataclasses
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run_python
from interactive.parallel_text import knowledge_of, recipe_of, write_corpus

from fastling.errors import RunError
from fastling.interactive import build
from fastling.workers import start_workers

BUSY = """
import os
import sys
import time
from pathlib import Path
from fastling.workers import start_workers

def meet(folder):
    Path(folder, str(os.getpid())).touch()
    while len(list(Path(folder).iterdir())) < 2:
        time.sleep(0.01)

if __name__ == "__main__":
    with start_workers(2, time.sleep, 0, where="workers", fix="") as pool:
        for future in [pool.submit(meet, sys.argv[1]) for _ in range(2)]:
            future.result()
        print(*pool._processes, flush=True)
        time.sleep(600)
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
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    with subprocess.Popen(
        [sys.executable, script, meeting], stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # which nohup has all below it ignore
    ) as process:  # fmt: skip
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2 and all(map(alive, workers))
        process.send_signal(how)
    end = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


KILLED_AT_WORK = """
import time
from fastling.errors import RunError
from fastling.workers import start_workers

def work(content):
    time.sleep(600)

if __name__ == "__main__":
    try:
        with start_workers(2, time.sleep, 0, where="workers", fix="") as pool:
            pool.submit(time.sleep, 0).result()
            futures = [pool.submit(work, bytes(2**20)) for _ in range(8)]
            for process in list(pool._processes.values()):
                process.kill()
            for future in futures:
                future.result()
    except RunError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_killed_worker_is_told_though_more_work_is_on_its_way_than_a_pipe_holds(tmp_path):
    """Which Python's own pools wait for, for ever, before 3.11.5."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED_AT_WORK)
    done = subprocess.run([sys.executable, script], capture_output=True, timeout=300)
    assert b"workers: one of 2 processes was killed" in done.stdout


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (OSError("AF_UNIX path too long"), "TMPDIR: is too long: .*\n  Set it to /tmp."),
        (
            OSError(24, "Too many open files"),
            "workers: cannot start 2 processes: Too many open files\n  Fewer.",
        ),
        (BlockingIOError(11, "Try again"), "workers: cannot start 2 processes: Try again\n  Fewer."),
    ],
    ids=str,
)
def test_processes_that_cannot_be_started_are_told_in_words(problem, said, monkeypatch):
    def refuse(descriptors):
        raise problem

    monkeypatch.setattr(multiprocessing.forkserver, "connect_to_new_process", refuse)
    with pytest.raises(RunError, match=said):
        with start_workers(2, time.sleep, 0, where="workers", fix="Fewer.") as pool:
            pool.submit(time.sleep, 0)


def test_no_worker_imports_what_lies_in_the_current_folder(tmp_path):
    program, folder = tmp_path / "program" / "busy.py", tmp_path / "data"
    program.parent.mkdir()
    folder.mkdir()
    program.write_text(
        "import os\nfrom fastling.workers import start_workers\n"
        "if __name__ == '__main__':\n"
        "    with start_workers(1, os.getpid, where='workers', fix='') as pool:\n"
        "        print(pool.submit(abs, -1).result())\n"
        "    print(os.environ.get('PYTHONSAFEPATH'))\n"
    )
    for name in ("multiprocessing", "selectors", "signal", "types"):  # which multiprocessing's helpers import
        (folder / f"{name}.py").write_text("open('was_run', 'w')\n")
    done = run_python(program, cwd=folder, anew=True, environment={"PYTHONPATH": str(ROOT)})
    assert (done.stdout, (folder / "was_run").exists()) == ("1\nNone\n", False), done.stderr


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
