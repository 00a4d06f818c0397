"""A model behind an OpenAI-compatible server: many requests in flight, answers kept, a budget of tokens.

Retries with growing pauses (429, 5xx, lost connections, time-outs) are the openai client's own. Every
answer is written to the cache before it is used, so that a run that is stopped pays nothing twice: asked
the same again of the same address, the file answers.
"""

import asyncio
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Set
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import BinaryIO

import openai

from fastling.errors import RunError, UserError, first_line
from fastling.files import takes

Message = dict[str, str]  # {"role": ..., "content": ...}
BYTES_PER_TOKEN = 3  # for a server that does not tell its usage
ADDRESS = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?(/\S*)?")
MOST_PORT = 65535
FEWEST_FAILURES = 3
"""In a row, of a server that has never answered: nobody listens there, or it takes hours to say so."""
UNREACHABLE = re.compile("no connection|too slow|status (?:429|5..)")
PATIENCE = 3
"""Time-outs that a request with all its retries may take, if their pauses alone may not take longer."""
LONGEST_PAUSE = 60.0
"""Seconds: the openai client waits no longer, whatever a server asks for."""
CUT_OFF = ("length", "content_filter")
"""Reasons for which an answer ends too early, and would again if it were asked for again."""
BROKEN_OFF = ("error", "abort", "insufficient_system_resource")
"""Reasons of a server that failed midway and still said 200 (OpenRouter, vLLM, DeepSeek): it is no answer."""
OTHER_NAMES = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None}
"""Where a model refuses a parameter by name: what is sent in its place."""


class BudgetSpent(Exception):
    """No request is sent once the answers so far have cost what they may."""


class NoAnswer(Exception):
    """The server gave no whole answer to one request; the text says why, in a word or two."""


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: int  # of prompt and completion, paid for


class Server:
    """Asks one model of one server.

    Args:
        url: up to and including "/v1"; the key is the environment's OPENAI_API_KEY, if it is set.
        option: how the verb's options about the server begin, for its errors.
        cache: a SQLite file, made if it is not there.
        budget_tokens: of all answers in the cache, those of earlier runs included; None for no bound.

    Raises UserError if the address is none, the environment allows no client, the cache cannot be used, or
    another process uses it: both would pay for the same answers, and neither count the other's.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cache: Path,
        *,
        option: str,
        budget_tokens: int | None = None,
        requests_in_flight: int = 16,
        timeout_seconds: float = 120.0,
        retries: int = 6,
    ):
        self.model, self.budget_tokens, self.url, self._option = model, budget_tokens, url, option
        check_address(url, option)
        self._failures, self._most_failures, self._has_answered = 0, 2 * requests_in_flight, False
        self._names: dict[str, str | None] = {}  # of parameters that this model refuses, the other ones
        self._client = _client(url, max_retries=retries, timeout=timeout_seconds)
        self._longest_seconds = max(PATIENCE * timeout_seconds, retries * LONGEST_PAUSE)
        self._in_flight = asyncio.Semaphore(requests_in_flight)
        self._hold = _hold_cache(cache, option)
        try:
            self._cache, self.tokens = _open_cache(cache, option)
        except UserError:
            self._hold.close()
            raise

    async def close(self) -> None:
        await self._client.close()
        self._cache.close()
        self._hold.close()  # not before: to close a file is to give up what SQLite holds of it

    async def ask(self, messages: list[Message], *, temperature: float, seed: int, most_tokens: int) -> str:
        """The text of an answer, from the cache or the server.

        Raises BudgetSpent; NoAnswer where this request fails for good; RunError where every one would.
        """
        request = {
            "model": self.model,
            "messages": messages,
            "temperature": temperature,
            "seed": seed,
            "max_tokens": most_tokens,
        }
        # By address, too: many servers answer to any model's name, or to one that another server has as well.
        asked = json.dumps({"url": self.url.rstrip("/"), **request}, sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(asked.encode()).hexdigest()
        found = self._cache.execute("SELECT text FROM answers WHERE key = ?", (key,)).fetchone()
        if found:
            return found[0]
        async with self._in_flight:
            if self.budget_tokens is not None and self.tokens >= self.budget_tokens:
                raise BudgetSpent
            try:
                answer = await self._send(request)
            except NoAnswer as reason:
                self._count_failure(str(reason))
                raise
        self._failures, self._has_answered = 0, True
        self.tokens += answer.tokens
        self._keep(key, answer)
        return answer.text

    def _keep(self, key: str, answer: Answer) -> None:
        try:
            with self._cache:
                row = (key, answer.text, answer.tokens)
                self._cache.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)
        except sqlite3.Error as error:  # the disk is full, another process holds the file
            raise RunError(
                f"{self._option}-cache",
                f"cannot be written: {error}",
                "What was kept before is kept; the same command goes on.",
            ) from None

    async def _send(self, request: dict) -> Answer:
        try:
            async with asyncio.timeout(self._longest_seconds):
                response = await self._create(request)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            words = f"{self.url} refuses {self.model}: {error.status_code}"
            raise RunError(f"{self._option}-url", words, "Check address, model and OPENAI_API_KEY.") from None
        except (openai.APITimeoutError, TimeoutError):
            raise NoAnswer("too slow") from None
        except openai.APIConnectionError:
            raise NoAnswer("no connection") from None
        except openai.APIStatusError as error:
            raise NoAnswer(f"status {error.status_code}") from None
        except (openai.OpenAIError, ValueError, RecursionError):
            raise NoAnswer("broken answer") from None
        text = _text_of(response)
        return Answer(text, self._cost(request, text, response.usage))

    async def _create(self, request: dict):
        """Ask, and ask again without what the model refuses by name. Raises what the client raises."""
        while True:
            sent = {self._names.get(name, name): value for name, value in request.items()}
            sent.pop(None, None)
            try:
                return await self._client.chat.completions.create(**sent)
            except openai.BadRequestError as error:
                refused = str(error.code).startswith("unsupported") and error.param
                if refused not in OTHER_NAMES or refused not in sent:
                    raise
                self._names[refused] = OTHER_NAMES[refused]

    def _count_failure(self, reason: str) -> None:
        """One request may fail; a server that answers none is not asked for hours."""
        self._failures += 1
        most = self._most_failures
        if not self._has_answered and UNREACHABLE.match(reason):
            most = min(FEWEST_FAILURES, most)
        if self._failures >= most:
            # The bound, not the count: others in flight fail after this one, and any of them may be told.
            words = f"{most} requests in a row had no answer from {self.url}: {reason}"
            raise RunError(
                f"{self._option}-url", words, "What was answered is kept; the same command goes on."
            )

    def _cost(self, request: dict, text: str, usage) -> int:
        told = getattr(usage, "total_tokens", None)
        if isinstance(told, int) and told > 0:
            return told
        texts = [message["content"] for message in request["messages"]] + [text]
        return sum(len(each.encode()) for each in texts) // BYTES_PER_TOKEN


def check_address(url: str, option: str) -> None:
    """Raises UserError unless a server may be there."""
    match = ADDRESS.fullmatch(url)
    if not match or int((match[2] or ":0")[1:]) > MOST_PORT:
        raise UserError(f"{option}-url", f"is no address: {url}", "Such as http://127.0.0.1:8000/v1.")


def _client(url: str, **settings: float) -> openai.AsyncOpenAI:
    """Raises UserError for a key, a proxy or certificates of the environment that cannot be used."""
    key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
    if not (key.isascii() and key.isprintable()):
        raise UserError("OPENAI_API_KEY", "holds what no key has", "Set it to the key alone, or unset it.")
    try:
        return openai.AsyncOpenAI(base_url=url, api_key=key, **settings)
    except Exception as error:  # of httpx, which has no type for them all
        where, fix = "the environment's proxy or certificates", "It reads HTTPS_PROXY, HTTP_PROXY, ALL_PROXY"
        raise UserError(where, first_line(error), f"{fix}, NO_PROXY and SSL_CERT_FILE.") from None


def _text_of(response) -> str:
    """What was answered. Raises NoAnswer: a server may answer 200 with anything."""
    try:
        choice = response.choices[0]
        content = choice.message.content
    except (AttributeError, IndexError, KeyError, TypeError):
        raise NoAnswer("broken answer") from None
    if not isinstance(content, str | None):
        raise NoAnswer("broken answer")
    if choice.finish_reason in BROKEN_OFF:
        raise NoAnswer(f"broken off: {choice.finish_reason}")
    # Cut off, it is kept as an answer without text: asked again it would be cut off again.
    text = "" if choice.finish_reason in CUT_OFF else content or ""
    return text.encode("utf-8", "replace").decode()  # half a character can be said in JSON, but not kept


def _hold_cache(path: Path, option: str) -> BinaryIO:
    """Keep other processes out of the file, made if need be, until what this returns is closed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")
    except OSError as error:
        raise UserError(f"{option}-cache", f"cannot be used: {path}: {error}") from None
    if not takes(file.fileno(), path):
        file.close()
        what = f"is being written by another process: {path}"
        raise UserError(f"{option}-cache", what, "Wait for it, stop it, or name another file.")
    return file


def _open_cache(path: Path, option: str) -> tuple[sqlite3.Connection, int]:
    """The file, and how many tokens its answers have cost."""
    cache = None
    try:
        cache = sqlite3.connect(path)
        cache.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT, tokens INTEGER)")
        (tokens,) = cache.execute("SELECT COALESCE(SUM(tokens), 0) FROM answers").fetchone()
    except sqlite3.Error as error:
        if cache:
            cache.close()
        raise UserError(f"{option}-cache", f"cannot be used: {path}: {error}") from None
    return cache, tokens


def read_prompt(path: Path | Traversable, places: Set[str], *, option: str) -> Template:
    """A prompt with $places, out of a file that anyone can edit.

    Raises UserError for a file that cannot be read or uses a place that is not filled.
    """
    try:
        prompt = Template(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(option, f"cannot be read: {path}: {error}") from None
    unknown = set(prompt.get_identifiers()) - places if prompt.is_valid() else set()
    if unknown or not prompt.is_valid():
        what = f"unknown place: ${sorted(unknown)[0]}" if unknown else "a $ that names no place"
        raise UserError(str(path), what, f"Places are ${', $'.join(sorted(places))}; $$ is a dollar.")
    return prompt
