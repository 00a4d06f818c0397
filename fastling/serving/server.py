"""Runs the application with uvicorn: how it listens, how long it waits for clients, and how it ends."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fastling.errors import RunError
from fastling.inference.chat_model import ChatModel
from fastling.model.decoding import Decoding
from fastling.serving.endpoint import make_application
from fastling.serving.gate import Gate
from fastling.serving.worker import Worker

HEADERS_TIMEOUT_S = 10.0
"""Seconds within which a request's headers must arrive, from the connection's start or their first byte."""
STALLED_READER_TIMEOUT_S = 20.0
"""Seconds after which a client that takes nothing of the response is disconnected."""
MOST_CONNECTIONS = 128


class Protocol(H11Protocol):
    """HTTP that closes the connections of clients that do not use them."""

    _waiting: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_headers()

    def connection_lost(self, exc) -> None:
        for timer in (self._waiting, self._stalled):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_READER_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled:
            self._stalled.cancel()
        super().resume_writing()

    def _wait_for_headers(self) -> None:
        at_work = self.cycle is not None and not self.cycle.response_complete
        if at_work and self._waiting:
            self._waiting.cancel()
            self._waiting = None
        elif not at_work and not self._waiting:
            self._waiting = self.loop.call_later(HEADERS_TIMEOUT_S, self.transport.abort)


class Server(uvicorn.Server):
    """Reports when it listens, and does not wait for answers when it ends."""

    def __init__(self, config: uvicorn.Config, worker: Worker, ready: Callable[[str], None]):
        super().__init__(config)
        self._worker, self._ready = worker, ready

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self._ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    async def shutdown(self, sockets=None) -> None:
        await asyncio.to_thread(self._worker.end)
        await super().shutdown(sockets)


def make_server(
    chat: ChatModel,
    defaults: Decoding,
    worker: Worker,
    *,
    host: str,
    token: str | None,
    ready: Callable[[str], None],
) -> Server:
    """A server that is not started yet. `ready` is called with its URL once it listens."""
    config = uvicorn.Config(
        Gate(make_application(chat, defaults, worker), host, token),
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    return Server(config, worker, ready)


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[Any]:
    """Yield a bound socket. Raises RunError for a port that is taken, before anything slow is done."""
    said = logging.getLogger("uvicorn.error")
    said.disabled = True
    try:
        listening = uvicorn.Config("", host=host, port=port, log_config=None).bind_socket()
    except SystemExit:  # how uvicorn reports it
        what = f"cannot listen on {host}:{port}"
        raise RunError("--port", what, "Another program may have it; --port 0 takes any.") from None
    finally:
        said.disabled = False
    try:
        yield listening
    finally:
        listening.close()


def run_server(
    chat: ChatModel,
    defaults: Decoding,
    host: str,
    token: str | None,
    listening: Any,
    ready: Callable[[str], None],
) -> None:
    """Serve on what `listen` bound, until Ctrl-C."""
    worker = Worker()
    server = make_server(chat, defaults, worker, host=host, token=token, ready=ready)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        worker.end()
