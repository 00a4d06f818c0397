"""Models that say what a test wants, with the real tokenizer and template, and servers of them."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from fastling.data.encoding import Encoder
from fastling.data.template import load_template
from fastling.data.tokenizer import load_tokenizer
from fastling.inference.chat_model import ChatModel
from fastling.model.decoding import Decoding
from fastling.model.llama import Llama, LlamaConfig
from fastling.serving.server import listen, make_server
from fastling.serving.worker import MOST_WAITING, Worker

TOKENIZER = Path(__file__).parents[2] / "fastling" / "demo" / "tokenizer.model"


class Parrot(ChatModel):
    """Says `says(question)`, token by token, pausing before each; after `held_after`, waits for `may_go_on`."""

    def __init__(
        self,
        says=lambda question: f"You said: {question}",
        *,
        pause_s=0.0,
        held_after: int | None = None,
        context=2048,
    ):
        tokenizer = load_tokenizer(TOKENIZER)
        with torch.device("meta"):
            model = Llama(LlamaConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=context))
        super().__init__(model, Encoder(load_template("bayling"), tokenizer, context), "parrot")
        self.says, self.pause_s, self.held_after = says, pause_s, held_after
        self.may_go_on = threading.Event()
        self.fed: list[list[int]] = []
        """The prompts that the model was given."""
        self.decodings: list[Decoding] = []
        self.ended = 0
        """Number of answers that ended, one way or another."""
        self.tokens = 0
        """Number of tokens generated in all."""

    def stream_ids(self, prompt, decoding) -> Iterator[int]:
        self.fed.append(list(prompt))
        self.decodings.append(decoding)
        text = self.encoder.tokenizer.decode([list(prompt)])[0]
        question = text.rpartition("### Instruction:\n")[2].removesuffix("\n### Response:\n")
        room = min(decoding.max_new_tokens, self.longest_sequence - len(prompt))
        try:
            [ids] = self.encoder.tokenizer.encode([self.says(question)])
            for token_id in ids[:room]:
                time.sleep(self.pause_s)
                if self.tokens == self.held_after:
                    assert self.may_go_on.wait(60)
                self.tokens += 1
                yield token_id
        finally:
            self.ended += 1


class Running:
    """A server in a thread."""

    def __init__(self, chat: ChatModel, defaults: Decoding, worker: Worker, token: str | None, host: str):
        self.chat, self.worker = chat, worker
        listening = threading.Event()

        def ready(url: str) -> None:
            self.url = url
            listening.set()

        self.server = make_server(chat, defaults, worker, host=host, token=token, ready=ready)
        self.thread = threading.Thread(target=self._run, args=(host,), daemon=True)
        self.thread.start()
        assert listening.wait(60)

    def _run(self, host: str) -> None:
        with listen(host, 0) as listening:
            asyncio.run(self.server.serve(sockets=[listening]))

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextlib.contextmanager
def serving(
    chat, *, defaults=None, token=None, most_waiting=MOST_WAITING, host="127.0.0.1"
) -> Iterator[Running]:
    """A real server on a free port, until the block ends."""
    worker = Worker(most_waiting)
    running = Running(chat, defaults or Decoding(max_new_tokens=64), worker, token, host)
    try:
        yield running
    finally:
        worker.end()
        running.server.should_exit = True
        running.thread.join(60)
        assert not running.thread.is_alive()


def wait_until(condition, seconds: float = 60.0) -> None:
    """Wait until something holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
