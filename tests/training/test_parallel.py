"""The processes of a run: what is said where one cannot go on."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import config_of, run_python

from fastling.config import Config
from fastling.errors import RunError, UserError
from fastling.training.parallel import open_world


def test_a_world_of_one_needs_no_launcher(tiny_run):
    config = config_of("--config", tiny_run())
    with open_world(config) as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert world.from_main(5) == 5


def test_a_full_gpu_is_explained_with_what_helps():
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.80 GiB"
    with pytest.raises(
        RunError, match="cpu: CUDA out of memory. Tried to allocate 2.00 GiB\n  Lower train.micro"
    ):
        with open_world(Config()):
            raise torch.OutOfMemoryError(said)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_gpu_too_full_for_cuda_itself_is_explained(said):
    """Of what other programs leave of it, when the first kernel or product is loaded."""
    error = RuntimeError(
        f"{said}\nCUDA kernel errors might be asynchronously reported at some other API call."
    )
    with pytest.raises(RunError, match=rf"^cpu: {re.escape(said)}\n  Lower train.micro"):
        with open_world(Config()):
            raise error


def test_a_full_host_memory_is_explained():
    with pytest.raises(RunError, match="cpu: .*allocate .* bytes.*\n  Lower train.micro"):
        with open_world(Config()):
            torch.empty(2**60, dtype=torch.uint8)


def test_processes_that_srun_started_without_torchrun_are_refused(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    with open_world(Config()) as world:
        assert world.size == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(UserError, match="srun: started 8 processes that do not know of each other"):
        with open_world(Config()):
            pass


def test_ranks_without_a_master_address_are_refused(monkeypatch):
    """As on a cluster that sets some variables of torchrun's, or in a shell where they were left."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UserError, match="^RANK and WORLD_SIZE: are set, and MASTER_PORT not"):
        with open_world(Config()):
            pass


BUSY = """
import os, time
from fastling.config import Config
from fastling.training.parallel import open_world

with open_world(Config()):
    os.write(1, b".")
    time.sleep(600)
"""


IMPORTING = """
import os, time
import fastling

launcher = os.getppid()
os.write(1, b".")
while os.getppid() == launcher:  # as if PyTorch took that long to import
    time.sleep(0.01)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "is_read"), [(BUSY, True), (BUSY, False), (IMPORTING + BUSY, True)],
    ids=["read", "unread", "while they import"],
)  # fmt: skip
def test_the_processes_of_a_launcher_that_is_killed_end_with_it(tmp_path, program, is_read):
    """And say so, whether anybody still reads what they say or not."""
    script = tmp_path / "busy.py"
    script.write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **streams) as launcher:
        assert launcher.stdout.read(2) == b".."  # both are at work
        if not is_read:
            launcher.stderr.close()
        launcher.kill()
        killed = time.monotonic()
        launcher.stdout.read()  # ends when nobody is left who could write
        said = launcher.stderr.read() if is_read else b""
    assert time.monotonic() - killed < 120
    for rank in range(2 * is_read):
        assert f"error: rank {rank}: torchrun was killed".encode() in said


def run_on_two(script: str, folder: Path, *options: str) -> subprocess.CompletedProcess:
    """Run a script in two processes of torchrun's."""
    path = folder / "script.py"
    path.write_text(script)
    return run_python(path, ranks=2, torchrun=options)


# The second process dies, and is late when it is started again.
DIES_ONCE = """
import os, time
import torch
from fastling.config import Config
from fastling.errors import leave
from fastling.training.parallel import open_world

is_second, again = os.environ["RANK"] == "1", os.environ["TORCHELASTIC_RESTART_COUNT"] == "1"
time.sleep(3 * (is_second and again))
with open_world(Config()) as world:
    total = world.sum(torch.ones(1)).item()
    if is_second and not again:
        os.kill(os.getpid(), 9)
    world.sum(torch.ones(1))
    os.write(1, f"together: {total};".encode())  # in one piece
leave(0)
"""


@pytest.mark.slow
def test_torchrun_starts_processes_again_that_find_each_other(tmp_path):
    done = run_on_two(DIES_ONCE, tmp_path, "--max_restarts", "1")
    assert (done.returncode, done.stdout) == (0, "together: 2.0;" * 2), done.stderr


# PyTorch waits for a second, and now one process, now the other is later than that.
LATE = """
import datetime, os, time
from pathlib import Path
import torch
import torch.distributed as dist
from fastling import files
from fastling.config import Config
from fastling.errors import leave
from fastling.training import checkpoint
from fastling.training.parallel import open_world

def slowed(function):
    def slowly(*arguments):
        time.sleep(2)
        return function(*arguments)
    return slowly

with open_world(Config()) as world:
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=1), dist.group.WORLD)
    for late in range(2):
        time.sleep(2 * (world.rank == late))
        assert world.from_main(3 + world.rank) == 3
    files.publish = slowed(files.publish)  # of rank 0
    if world.rank == 1:
        Path.write_text = slowed(Path.write_text)
    tensors, folder = {"model.weight": torch.ones(4)}, Path(__file__).parent / "checkpoints"
    saved = checkpoint.save(folder, 7, tensors, {}, keep_last=1, group=world.patient)
    time.sleep(2 * world.rank)
    checkpoint.load(saved, tensors, world.patient)
    os.write(1, b".")
leave(0)
"""


@pytest.mark.slow
def test_processes_wait_for_one_that_prepares_its_data_or_writes_for_longer(tmp_path):
    done = run_on_two(LATE, tmp_path)
    assert (done.returncode, done.stdout) == (0, ".."), done.stderr


HANGS = """
import datetime, os, time
import torch
import torch.distributed as dist
from fastling.config import Config
from fastling.errors import leave, run_program
from fastling.training.parallel import open_world

def main(_):
    with open_world(Config()) as world:
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=2), dist.group.WORLD)
        time.sleep(60 * world.rank)
        world.sum(torch.ones(1))

leave(run_program(main))
"""


@pytest.mark.slow
def test_a_hanging_process_is_reported_by_those_that_wait(tmp_path):
    done = run_on_two(HANGS, tmp_path)
    assert "error: rank 0: cannot go on: another process of the run does not answer" in done.stderr
    assert "[rank0]: Traceback" not in done.stderr
