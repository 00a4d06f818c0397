"""One thread that generates, one answer at a time, and a short line of those who wait for it."""

import asyncio
import collections
import logging
import threading
from collections.abc import AsyncIterator

from fastling.errors import UserError, kind_and_line, visible
from fastling.inference.chat_model import StreamedAnswer

LOG = logging.getLogger(__name__)
"""As uvicorn's own errors, to stderr; one that is closed ends nothing."""
MOST_WAITING = 64
"""Answers that may wait for the one that is generated."""


class Busy(Exception):
    """Too many wait already."""


class Ending(Exception):
    """The server ends, and with it the answer."""


class Failed(Exception):
    """The model failed: what a client is told of it.

    Not the error itself: its traceback holds all that the answer held, its cache too, and errors that go
    through an event loop are freed only when Python looks for garbage. The next answer needs that memory.
    """


class Job:
    """An answer that is waited for in an event loop and generated in the worker's thread.

    Its text is held until it is read: an answer is bounded by its tokens, so a reader who is slow
    costs a few kilobytes, and never stops the thread.
    """

    def __init__(self, answer: StreamedAnswer):
        self.answer = answer
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | Ending | Failed | None] = asyncio.Queue()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Nobody reads on: end the generation at the next token."""
        self._cancelled.set()

    def end(self) -> None:
        """End the generation and tell who reads on."""
        self.cancel()
        self._put(Ending("the server is ending"))

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    async def pieces(self) -> AsyncIterator[str]:
        """The text as it comes. Raises Failed, or Ending."""
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def run(self) -> None:
        """In the worker's thread: generate until the end, or until nobody reads on."""
        pieces = iter(self.answer)
        try:
            for piece in pieces:
                if self.is_cancelled:
                    return
                if piece:
                    self._put(piece)
            self._put(None)
        except Exception as error:  # of the model, out of memory too: it ends this answer only
            LOG.error("an answer failed: %s", visible(kind_and_line(error)))
            self._put(Failed(f"the model failed: {in_words(error)}"))
        finally:
            pieces.close()

    def _put(self, piece: str | Ending | Failed | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:  # the loop was closed: the server has ended
            self.cancel()


class Worker:
    """Runs jobs in turn, in a thread of its own."""

    def __init__(self, most_waiting: int = MOST_WAITING):
        self.most_waiting = most_waiting
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Raises Busy where too many wait already; those who have left are not counted."""
        with self._changed:
            still = [each for each in self._waiting if not each.is_cancelled]
            self._waiting = collections.deque(still)
            if len(self._waiting) >= self.most_waiting or self._ended:
                raise Busy
            self._waiting.append(job)
            self._changed.notify()

    def end(self) -> None:
        """End what is generated and what waits; the thread ends after the token that it is at."""
        with self._changed:
            self._ended = True
            for job in (*self._waiting, *([self._running] if self._running else [])):
                job.end()
            self._changed.notify()
        self._thread.join(timeout=10)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is generated and nobody waits."""
        with self._changed:
            return self._running is None and all(job.is_cancelled for job in self._waiting)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if self._ended:
                    return
                self._running = job = self._waiting.popleft()
            if not job.is_cancelled:
                job.run()
            del job  # and with it what the answer holds


def in_words(error: Exception) -> str:
    """What a user may know of an error in the thread, and no more."""
    return f"{error.where} {error.what}" if isinstance(error, UserError) else type(error).__name__
