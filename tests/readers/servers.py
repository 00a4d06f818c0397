"""Other people's software that opens an export, each installed under .readers by `make readers`.

All are asked over HTTP, as OpenAI's clients ask, so that their own template and tokenizer make the prompt.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT

READERS = Path(os.environ.get("FASTLING_READERS", ROOT / ".readers")).resolve()
LLAMA_CPP = READERS / "llama.cpp"
LONGEST = 512
"""Most tokens of a conversation."""
SECONDS_TO_START = 300


@dataclass(frozen=True)
class Reply:
    """The answer of a server, with the ids of its prompt and its own."""

    prompt_ids: list[int]
    ids: list[int]
    """The last one is the end of the turn, if the server tells it."""
    logprobs: list[float | None]
    """None if the server does not tell."""
    text: str
    has_stopped: bool


@dataclass(frozen=True)
class Server:
    program: Path
    """A file that is there if the server is installed."""
    command: Callable[[Path, Path, int], list]
    """Makes the command from an export, a folder for the server's own files, and a port."""
    ask: Callable[["Connection", list[dict], int], Reply]
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Connection:
    server: Server
    address: str

    def ask(self, messages: list[dict], max_tokens: int) -> Reply:
        return self.server.ask(self, messages, max_tokens)

    def post(self, path: str, **fields) -> dict:
        request = urllib.request.Request(
            self.address + path, json.dumps(fields).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    def complete(self, messages: list[dict], max_tokens: int, **fields) -> tuple[dict, dict]:
        """(choice, whole response) of a chat completion, greedy."""
        request = {"model": "default", "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        response = self.post("/v1/chat/completions", logprobs=True, **request, **fields)
        return response["choices"][0], response


@contextmanager
def running(server: Server, export: Path, scratch: Path) -> Iterator[Connection]:
    """A server of an export, until the block ends. If it does not start, the error has its last words."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scratch.mkdir(parents=True, exist_ok=True)
    log = scratch / "log.txt"
    without = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON", "OMP"))}
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            list(map(str, server.command(export, scratch, port))),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**without, "HF_HUB_OFFLINE": "1", **dict(server.environment)},
            start_new_session=True,
        )
    connection = Connection(server, f"http://127.0.0.1:{port}")
    try:
        _wait(process, connection, log)
        yield connection
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)  # its workers, too
        process.wait()


def _wait(process: subprocess.Popen, connection: Connection, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(connection.address + "/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    words = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
    raise RuntimeError(f"{connection.server.program} did not start:\n" + "\n".join(words))


# vLLM and SGLang ------------------------------------------------------------------------------------


def _ask_for_ids(connection: Connection, messages: list[dict], max_tokens: int) -> Reply:
    """Both tell the ids of prompt and answer if they are asked to, each in places of its own."""
    choice, response = connection.complete(
        messages, max_tokens, return_token_ids=True, return_prompt_token_ids=True
    )
    prompt_ids = response.get("prompt_token_ids") or choice["prompt_token_ids"]
    assert response["usage"]["prompt_tokens"] == len(prompt_ids)
    logprobs = [each["logprob"] for each in choice["logprobs"]["content"]]
    ids = choice.get("token_ids") or choice["response_token_ids"]
    return Reply(prompt_ids, ids, logprobs, choice["message"]["content"], choice["finish_reason"] == "stop")


VLLM = Server(
    READERS / "vllm/bin/python",
    lambda export, scratch, port: [
        VLLM.program, "-m", "vllm.entrypoints.openai.api_server", "--model", export, "--port", port,
        "--served-model-name", "default", "--enforce-eager", "--dtype", "float32", "--max-model-len", LONGEST,
        "--max-num-seqs", 4,
    ],
    _ask_for_ids,
    (("VLLM_CPU_KVCACHE_SPACE", "1"), ("VLLM_NO_USAGE_STATS", "1")),
)  # fmt: skip
SGLANG = Server(
    READERS / "sglang/bin/python",
    lambda export, scratch, port: [
        SGLANG.program, "-m", "sglang.launch_server", "--model-path", export, "--port", port, "--device",
        "cpu", "--dtype", "float32", "--attention-backend", "torch_native", "--sampling-backend", "pytorch",
        "--grammar-backend", "none", "--disable-radix-cache", "--disable-overlap-schedule",
        "--mem-fraction-static", 0.3, "--max-total-tokens", 4 * LONGEST, "--context-length", LONGEST,
    ],
    _ask_for_ids,
    # Without a driver its kernels' file does not load; with this empty one it does, and is not called.
    (("SGLANG_USE_CPU_ENGINE", "1"), ("LD_LIBRARY_PATH", str(READERS / "sglang/no-driver"))),
)  # fmt: skip


# llama.cpp ------------------------------------------------------------------------------------------


def convert(export: Path, scratch: Path) -> Path:
    """The export as a GGUF file, by llama.cpp's own converter."""
    scratch.mkdir(parents=True, exist_ok=True)
    gguf = scratch / "model.gguf"
    command = [sys.executable, LLAMA_CPP / "convert_hf_to_gguf.py", export, "--outfile", gguf]
    result = subprocess.run(
        list(map(str, [*command, "--outtype", "f32"])), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0 and gguf.is_file(), result.stderr[-2000:]
    return gguf


def _ask_llama_cpp(connection: Connection, messages: list[dict], max_tokens: int) -> Reply:
    """It tells only the number of a prompt's tokens; their ids come from the two steps that it takes itself."""
    choice, response = connection.complete(messages, max_tokens, cache_prompt=False)
    prompt = connection.post("/apply-template", messages=messages)["prompt"]
    prompt_ids = connection.post("/tokenize", content=prompt, add_special=True, parse_special=True)["tokens"]
    assert response["usage"]["prompt_tokens"] == len(prompt_ids)
    request = {"prompt": prompt_ids, "n_predict": max_tokens, "temperature": 0, "cache_prompt": False}
    completed = connection.post("/completion", **request, n_probs=1, return_tokens=True)
    told = [(token["id"], token["logprob"]) for token in completed["completion_probabilities"]]
    logprobs = []
    for token_id in completed["tokens"]:  # of a letter with several tokens it tells only the last one
        logprobs.append(told.pop(0)[1] if told and told[0][0] == token_id else None)
    text, has_stopped = choice["message"]["content"], choice["finish_reason"] == "stop"
    return Reply(prompt_ids, completed["tokens"], logprobs, text, has_stopped)


LLAMA_SERVER = Server(
    LLAMA_CPP / "build/bin/llama-server",
    lambda export, scratch, port: [
        LLAMA_SERVER.program, "--model", convert(export, scratch), "--port", port, "--threads", 2,
        "--ctx-size", LONGEST, "--parallel", 1, "--jinja", "--cache-type-k", "f32", "--cache-type-v", "f32",
        "--flash-attn", "off",
    ],
    _ask_llama_cpp,
)  # fmt: skip

SERVERS = {"vLLM": VLLM, "SGLang": SGLANG, "llama.cpp": LLAMA_SERVER}
