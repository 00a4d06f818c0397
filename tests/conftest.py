"""What every test shares: no network, no home folder, and small runs made in the test."""

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

# Before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_X_SERVICE_WAIT"] = "300"  # seconds, for a machine with other work
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
# With it every program that a test starts would compile the project's source anew, for a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Such a program imports the project from this folder, and runs tests/start/sitecustomize.py first. (The folders are
# named once, though this file is imported by pytest, by each of its processes, and again by tests.)
os.environ["PYTHONPATH"] = os.pathsep.join(
    dict.fromkeys(
        [
            str(Path(__file__).parents[1]),
            str(Path(__file__).parent / "start"),
            *os.environ.get("PYTHONPATH", "").split(os.pathsep),
        ]
    )
).rstrip(os.pathsep)
os.environ["WITHOUT_TRANSFORMERS"] = "1"
# Code that PyTorch compiles for a CPU uses plain instructions: to find out which others the compiler knows takes
# a quarter of a minute.
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "0"

import pytest
import torch
from hypothesis import HealthCheck, settings
from start.fork_server import ForkedProgram, check_can_fork, fork_server
from start.interpreter import patch_once_a_launch

from fastling.config import Config, build_parser, parse

# The same examples each time, however long a busy machine takes for one, so that only the code can fail.
# (Hypothesis also draws from constants of loaded modules, so other tests in a run may change the examples.)
settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

# What programs print must not depend on the terminal in which the tests are run.
for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
    os.environ.pop(name, None)

if not torch.cuda.is_available():
    # Then the Triton kernels run on the CPU, slowly. It must be set before any of them is imported.
    os.environ["TRITON_INTERPRET"] = "1"
    patch_once_a_launch()

slow_without_gpu = pytest.mark.slow if not torch.cuda.is_available() else lambda test: test
"""Mark of tests that are slow where kernels are interpreted, and quick where they are compiled for a GPU."""

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "fastling" / "demo"


def pytest_collection_modifyitems(items):
    """Put files with slow tests first, so that the processes of `make test`, which take one file after the
    other, end at about the same time."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """A folder of the test session, shared by its processes, for token stores and for code that is compiled.

    Code that was compiled for another processor, and was still in /tmp, gave an infinite loss.
    """
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    cache.mkdir(exist_ok=True)
    os.environ["XDG_CACHE_HOME"], os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache), str(cache / "inductor")


@pytest.fixture
def quota():
    """No file may be longer than 4 kB. The error of writing more names no file, as that of a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def no_locks(monkeypatch, tmp_path):
    """No file under the test's folder can be locked, as on a Lustre file system mounted without locks."""
    lock = fcntl.flock

    def refuse(file, how):
        if Path(
            os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}")
        ).is_relative_to(tmp_path):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", refuse)


def run_python(
    program: object,
    *arguments: object,
    ranks: int = 0,
    torchrun: Sequence[str] = (),
    cwd: Path = ROOT,
    input: str = "",
    environment: dict | None = None,
    anew: bool = False,
) -> subprocess.CompletedProcess:
    """Run a module (as `python -m` does) or a file, from the root of the project.

    With `ranks` it runs under torchrun, with its options `torchrun`. `environment` has variables to add. The
    program is forked from a process that has imported PyTorch (start/fork_server.py); `anew` starts it as a user
    does, for tests of the start itself.
    """
    command = [*([] if str(program).endswith(".py") else ["-m"]), *map(str, (program, *arguments))]
    if ranks:
        command = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), *torchrun, *command]
    environment = programs_environment() | (environment or {})
    if anew:
        options = {"capture_output": True, "text": True, "timeout": 600}
        return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, input=input, **options)
    check_can_fork(environment)
    with ExitStack() as open_files:
        streams = [open_files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3)]
        streams[0].write(input)
        streams[0].seek(0)
        program = ForkedProgram(fork_server(), command, environment, str(cwd), streams)
        try:
            status = program.wait(600)
        except BaseException:
            os.killpg(program.pid, signal.SIGKILL)
            raise
        for stream in streams[1:]:
            stream.seek(0)
        return subprocess.CompletedProcess(command, status, *(stream.read() for stream in streams[1:]))


def programs_environment() -> dict[str, str]:
    """The environment of programs, in which kernels are not interpreted unless a test asks for it."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def kill(run_dir: Path) -> None:
    """Kill (-9) every process with the run folder in its command line: the launcher and its workers."""
    while subprocess.run(["pkill", "-9", "-f", str(run_dir)], check=False).returncode == 0:
        time.sleep(0.05)


def config_of(*arguments: object) -> Config:
    """The config that a verb reads from its arguments, such as "--config" and a path."""
    config, _ = parse(build_parser("test", ""), list(map(str, arguments)))
    return config


def tiny_settings(run_dir: Path) -> dict:
    """The config of a run of a few seconds on the demo's data."""
    return {
        "run_dir": str(run_dir),
        "model": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "data": {
            "tokenizer": "fastling:demo/tokenizer.model",
            "sequence_length": 256,
            "sources": [{"name": "demo", "path": "fastling:demo/train.jsonl"}],
            "validation": [{"name": "held-out", "path": "fastling:demo/held-out.jsonl"}],
        },
        "train": {"steps": 6, "global_batch_tokens": 1024, "micro_batch_tokens": 512, "precision": "fp32"},
        "optimizer": {"lr": 0.01},
        "checkpoint": {"every_steps": 2, "keep_last": 2},
        "evaluate": {"every_steps": 3, "samples": 1, "sample_tokens": 4},
    }  # fmt: skip


@pytest.fixture
def tiny_run(tmp_path):
    """Write the config of a run of a few seconds on the demo's data; returns a function of changes."""

    def write(**changes) -> Path:
        settings = tiny_settings(tmp_path / "run")
        for section, values in changes.items():
            if isinstance(values, dict):
                settings.setdefault(section, {}).update(values)
            else:
                settings[section] = values
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(settings))  # JSON is YAML
        return path

    return write
