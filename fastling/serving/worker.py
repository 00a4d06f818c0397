"""A thread that generates one answer at a time, and a short queue of answers that wait for it."""

import asyncio
import collections
import logging
import threading
from collections.abc import AsyncIterator

from fastling.errors import UserError, kind_and_line, visible
from fastling.inference.chat_model import StreamedAnswer

LOG = logging.getLogger(__name__)
"""Errors go to stderr, as uvicorn's own do."""
MOST_WAITING = 64
"""Most answers that may wait for the one being generated."""


class Busy(Exception):
    """Too many answers are waiting already."""


class Ending(Exception):
    """The server is ending, so the answer ends, too."""


class Failed(Exception):
    """The model failed. The message is what the client gets.

    The original error is not passed on: its traceback refers to the answer and its cache, and an error that
    went through an event loop is freed only by the garbage collector. The next answer needs that memory.
    """


class Job:
    """An answer that is generated in the worker's thread and awaited in an event loop.

    Its text is kept until it is read, so that a slow reader never stops the thread. Since the tokens of an
    answer are bounded, that takes a few kilobytes at most.
    """

    def __init__(self, answer: StreamedAnswer):
        self.answer = answer
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | Ending | Failed | None] = asyncio.Queue()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Call when nobody reads on: the generation ends at the next token."""
        self._cancelled.set()

    def end(self) -> None:
        """End the generation; whoever reads the answer gets Ending."""
        self.cancel()
        self._put(Ending("the server is ending"))

    @property
    def is_cancelled(self) -> bool:
        """Whether the generation is to end, or not to begin."""
        return self._cancelled.is_set()

    async def pieces(self) -> AsyncIterator[str]:
        """Yield the text as it comes. Raises Failed if the model fails, and Ending if the server ends."""
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def run(self) -> None:
        """Generate until the end, or until the job is cancelled. Called in the worker's thread."""
        pieces = iter(self.answer)
        try:
            for piece in pieces:
                if self.is_cancelled:
                    return
                if piece:
                    self._put(piece)
            self._put(None)
        except Exception as error:  # any failure of the model, also out of memory, ends only this answer
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
    """Runs jobs one after another in a thread of its own."""

    def __init__(self, most_waiting: int = MOST_WAITING):
        self.most_waiting = most_waiting
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Busy if too many are waiting; those that were cancelled are not counted."""
        with self._changed:
            still = [each for each in self._waiting if not each.is_cancelled]
            self._waiting = collections.deque(still)
            if len(self._waiting) >= self.most_waiting or self._ended:
                raise Busy
            self._waiting.append(job)
            self._changed.notify()

    def end(self) -> None:
        """End the job that runs and those that wait; the thread ends after its current token."""
        with self._changed:
            self._ended = True
            for job in (*self._waiting, *([self._running] if self._running else [])):
                job.end()
            self._changed.notify()
        self._thread.join(timeout=10)

    @property
    def is_idle(self) -> bool:
        """Whether no job runs and none waits."""
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
            del job  # frees what the answer holds


def in_words(error: Exception) -> str:
    """What a client is told about an error in the thread: only its kind, unless it is a UserError."""
    return f"{error.where} {error.what}" if isinstance(error, UserError) else type(error).__name__
