"""Forks the programs of tests from a process that has imported PyTorch, which is most of what a start takes.

Each program is a process of its own, with arguments, environment, folder and streams of its own, and imports
this project itself. It shares with the others only the imported PyTorch, and Python's seed for hashes.

    python tests/start/fork_server.py NAME     serves until its standard input ends
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback

import fastling  # noqa: F401  (sets in the environment how PyTorch's threads wait)

# What a training run or an export imports, without this project and without Triton, which reads its settings
# when it is imported.
IMPORTED = (
    "torch",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.launcher.api",
    "torch.distributed.tensor",
    "matplotlib.pyplot",
    "pyarrow.parquet",
    "rich.progress",
    "safetensors.torch",
    "sentencepiece",
    "tokenizers",
)

READ_AT_A_START = ("GOMP_", "KMP_", "LC_", "LANG", "MKL_", "OMP_", "PYTHON")
"""Beginnings of the names of variables that Python and libraries read before a program's first line."""

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
"""The server's environment: that of all tests, before one of them changes it."""


@functools.cache
def fork_server() -> str:
    """Start this process's own fork server, which ends with this process; return the server's name."""
    name = f"fastling-tests-{os.getpid()}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen([sys.executable, __file__, name], env=ENVIRONMENT, **pipes)
    assert server.stdout.readline() == b"ready\n"
    atexit.register(server.communicate)
    return name


class ForkedProgram:
    """`python ARGUMENTS`, forked by the server `name`, with those methods of subprocess.Popen that are needed.

    The arguments begin with `-m MODULE` or with a file, perhaps after `-u`. `streams` are the standard input,
    output and error. The program leads a session of its own.
    """

    def __init__(
        self, name: str, arguments: list[str], environment: dict, folder: str, streams: list
    ) -> None:
        self.returncode = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(f"\0{name}")
        with tempfile.TemporaryFile("w+") as request:
            json.dump({"arguments": arguments, "environment": environment, "folder": folder}, request)
            request.flush()
            descriptors = [
                stream if isinstance(stream, int) else stream.fileno() for stream in [*streams, request]
            ]
            socket.send_fds(self._connection, [b"."], descriptors)
        self._told = self._connection.makefile()
        self.pid = int(self._told.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit status, or the negative number of the signal that ended it.

        Raises subprocess.TimeoutExpired after `timeout` seconds.
        """
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked program", timeout)
            self.returncode = int(self._told.readline())
            self._told.close()
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None


def check_can_fork(environment: dict) -> None:
    """Raise ValueError unless a program with this environment would start as the server did."""
    for name in sorted(environment.keys() | ENVIRONMENT.keys()):
        if name.startswith(READ_AT_A_START) and environment.get(name) != ENVIRONMENT.get(name):
            raise ValueError(f"{name} is read at a program's start: run it anew")


def serve(name: str) -> list[str]:
    """Fork a program for each request. Returns only in such a program, with the arguments of what to run."""
    for module in IMPORTED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait for programs
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}")
    listener.listen()
    print("ready", flush=True)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _answer(connection, name)
        connection.close()
    sys.exit()


def _answer(connection: socket.socket, name: str) -> list[str]:
    _, descriptors, *_ = socket.recv_fds(connection, 1, 4)
    program = os.fork()
    if program == 0:
        connection.close()
        return _become(descriptors, name)
    for descriptor in (0, 1, 2, *descriptors):
        os.close(descriptor)  # so that readers of the program's output see its end
    try:
        connection.sendall(b"%d\n" % program)
        status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        connection.sendall(b"%d\n" % status)
    finally:
        os._exit(0)  # even if whoever asked is gone


def _become(descriptors: list[int], name: str) -> list[str]:
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    with open(descriptors[3]) as file:
        file.seek(0)
        request = json.load(file)
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.orig_argv = [sys.executable, *request["arguments"]]
    importlib.reload(sys.modules["sitecustomize"])
    is_unbuffered = request["arguments"][0] == "-u"
    sys.stdout.reconfigure(line_buffering=is_unbuffered)
    program = request["arguments"][is_unbuffered:]
    sys.path[0] = request["folder"] if program[0] == "-m" else os.path.dirname(program[0])
    if program[1:2] == ["torch.distributed.run"]:
        _fork_ranks(name)
    return program


def _fork_ranks(name: str) -> None:
    """Make torchrun fork its processes from this server, too."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import (
        SubprocessHandler,
    )

    def start(handler: SubprocessHandler, command: tuple[str, ...], environment: dict) -> ForkedProgram:
        streams = [0, handler._stdout or 1, handler._stderr or 2]
        return ForkedProgram(name, list(command[1:]), environment, os.getcwd(), streams)

    SubprocessHandler._popen = start


def _run(program: list[str]) -> int:
    """Run `-m MODULE` or a file with its arguments, as Python does; return the exit status."""
    try:
        if program[0] == "-m":
            sys.argv = program[1:]
            runpy.run_module(program[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = program
            runpy.run_path(program[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    status = _run(serve(sys.argv[1]))
    threading._shutdown()  # waits for its other threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)  # to take PyTorch's modules apart takes half a second, most of it to copy what is shared
