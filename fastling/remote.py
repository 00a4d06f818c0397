"""Asks a model behind an OpenAI-compatible server: many requests in flight, a cache, a budget of tokens.

The openai client itself repeats requests, with growing pauses, after 429, 5xx, lost connections and
time-outs. Every answer is written to the cache before it is used, so that no answer is paid for twice:
if the same is asked of the same address again, the answer comes from the cache.
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
from fastling.locks import takes

Message = dict[str, str]  # {"role": ..., "content": ...}
BYTES_PER_TOKEN = 3  # assumed for a server that does not report its usage
ADDRESS = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?(/\S*)?")
MOST_PORT = 65535
FEWEST_FAILURES = 3
"""A server that has never answered is given up after this many requests in a row find it UNREACHABLE."""
UNREACHABLE = re.compile("no connection|too slow|status (?:429|5..)")
PATIENCE = 3
"""A request with all its retries may last this many time-outs, or as long as its pauses if that is longer."""
LONGEST_PAUSE = 60.0
"""Seconds that the openai client waits at most before a retry, whatever a server asks for."""
CUT_OFF = ("length", "content_filter")
"""Finish reasons of an answer that ends too early, and would again if it were asked for again."""
BROKEN_OFF = ("error", "abort", "insufficient_system_resource")
"""Finish reasons of a server that failed midway after it sent 200 (OpenRouter, vLLM, DeepSeek): no answer."""
OTHER_NAMES = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None}
"""A parameter that some models refuse -> the name under which its value is sent instead; None: not at all."""


class BudgetSpent(Exception):
    """Raised instead of sending a request once the answers so far have used up the budget."""


class NoAnswer(Exception):
    """Raised if the server gave no whole answer to one request; the message says why, in a word or two.

    `said` is what the server said of it, if it did.
    """

    def __init__(self, reason: str, said: str = ""):
        super().__init__(reason)
        self.said = said


@dataclass(frozen=True)
class Answer:
    """The text of an answer, and its cost."""

    text: str
    tokens: int  # of prompt and completion, paid for


class Server:
    """Asks one model of one server.

    Args:
        url: up to and including "/v1"; the key is the environment's OPENAI_API_KEY, if it is set.
        option: the beginning of the verb's options about the server, such as "--judge", for errors.
        cache: a SQLite file, made if it is not there.
        budget_tokens: most tokens of all answers in the cache, with those of earlier runs; None for no limit.

    Raises UserError if the address cannot be one, the environment allows no client, the cache cannot be used,
    or another process uses it: both would pay for the same answers, and neither would count the other's.
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
        self._names: dict[str, str | None] = {}  # a parameter that this model refuses -> what is sent instead
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
        self._hold.close()  # last, since closing a file gives up SQLite's locks on it as well

    async def ask(self, messages: list[Message], *, temperature: float, seed: int, most_tokens: int) -> str:
        """The text of an answer, from the cache or the server.

        Raises BudgetSpent; NoAnswer if this request has failed for good; RunError if all of them would fail.
        """
        request = {
            "model": self.model,
            "messages": messages,
            "temperature": temperature,
            "seed": seed,
            "max_tokens": most_tokens,
        }
        # The address counts, too: many servers take any model's name, or one that another server has as well.
        asked = json.dumps({"url": self.url.rstrip("/"), **request}, sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(asked.encode()).hexdigest()
        if (kept := self._kept(key)) is not None:
            return kept
        async with self._in_flight:
            if self.budget_tokens is not None and self.tokens >= self.budget_tokens:
                raise BudgetSpent
            try:
                answer = await self._send(request)
            except NoAnswer as reason:
                self._count_failure(reason)
                raise
        self._failures, self._has_answered = 0, True
        self.tokens += answer.tokens
        self._keep(key, answer)
        return answer.text

    def _kept(self, key: str) -> str | None:
        """The text that the cache has. Raises RunError if it is damaged: asking again would pay twice."""
        try:
            found = self._cache.execute("SELECT text FROM answers WHERE key = ?", (key,)).fetchone()
            if found and not isinstance(found[0], str):
                raise sqlite3.DataError("an answer in it is no text")
        except sqlite3.Error as error:
            raise RunError(
                f"{self._option}-cache", f"cannot be read: {first_line(error)}", "Name another file."
            ) from None
        return found[0] if found else None

    def _keep(self, key: str, answer: Answer) -> None:
        try:
            with self._cache:
                row = (key, answer.text, answer.tokens)
                self._cache.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)
        except sqlite3.Error as error:  # the disk is full, another process holds the file
            raise RunError(
                f"{self._option}-cache",
                f"cannot be written: {error}",
                "Earlier answers are kept; the same command continues.",
            ) from None

    async def _send(self, request: dict) -> Answer:
        try:
            async with asyncio.timeout(self._longest_seconds):
                response = await self._create(request)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            # What a server says of a wrong key may repeat a part of it.
            said = _said(error) if isinstance(error, openai.NotFoundError) else ""
            words = f"{self.url} refuses {self.model}: {error.status_code}{said}"
            raise RunError(f"{self._option}-url", words, "Check address, model and OPENAI_API_KEY.") from None
        except (openai.APITimeoutError, TimeoutError):
            raise NoAnswer("too slow") from None
        except openai.APIConnectionError:
            raise NoAnswer("no connection") from None
        except openai.APIStatusError as error:
            raise NoAnswer(f"status {error.status_code}", _said(error)) from None
        except (openai.OpenAIError, ValueError, RecursionError):
            raise NoAnswer("broken answer") from None
        text = _text_of(response)
        return Answer(text, self._cost(request, text, response.usage))

    async def _create(self, request: dict):
        """Ask, and ask again without parameters that the model refuses by name. Raises as the client does."""
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

    def _count_failure(self, reason: NoAnswer) -> None:
        """Count a request without an answer. Raises RunError after many in a row, not to ask for hours."""
        self._failures += 1
        most = self._most_failures
        if not self._has_answered and UNREACHABLE.match(str(reason)):
            most = min(FEWEST_FAILURES, most)
        if self._failures >= most:
            # The limit, not the count: others in flight fail after this one, and any may be the one shown.
            words = f"{most} requests in a row got no answer from {self.url}: {reason}{reason.said}"
            raise RunError(
                f"{self._option}-url", words, "Finished answers are kept; the same command continues."
            )

    def _cost(self, request: dict, text: str, usage) -> int:
        told = getattr(usage, "total_tokens", None)
        if isinstance(told, int) and told > 0:
            return told
        texts = [message["content"] for message in request["messages"]] + [text]
        return sum(len(each.encode()) for each in texts) // BYTES_PER_TOKEN


def check_address(url: str, option: str) -> None:
    """Raise UserError unless `url` can be the address of a server."""
    match = ADDRESS.fullmatch(url)
    if not match or int((match[2] or ":0")[1:]) > MOST_PORT:
        raise UserError(f"{option}-url", f"is not an address: {url}", "Such as http://127.0.0.1:8000/v1.")


def _client(url: str, **settings: float) -> openai.AsyncOpenAI:
    """The client. Raises UserError if the environment's key, proxy or certificates cannot be used."""
    key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            "OPENAI_API_KEY", "contains characters that no key has", "Set it to the key alone, or unset it."
        )
    try:
        return openai.AsyncOpenAI(base_url=url, api_key=key, **settings)
    except Exception as error:  # of httpx, which has no common type for them
        where, fix = "the environment's proxy or certificates", "It reads HTTPS_PROXY, HTTP_PROXY, ALL_PROXY"
        raise UserError(where, first_line(error), f"{fix}, NO_PROXY and SSL_CERT_FILE.") from None


def _said(error: openai.APIStatusError) -> str:
    """The server's own words about an error, behind a comma; "" without any."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return f", {' '.join(said.split())[:200]}" if isinstance(said, str) and said.strip() else ""


def _text_of(response) -> str:
    """The text of a response. Raises NoAnswer if it has none: a server may send anything with 200."""
    try:
        choice = response.choices[0]
        content = choice.message.content
    except (AttributeError, IndexError, KeyError, TypeError):
        raise NoAnswer("broken answer") from None
    if not isinstance(content, str | None):
        raise NoAnswer("broken answer")
    if choice.finish_reason in BROKEN_OFF:
        raise NoAnswer(f"broken off: {choice.finish_reason}")
    # An answer that was cut off is kept as one without text: asked for again, it would be cut off again.
    text = "" if choice.finish_reason in CUT_OFF else content or ""
    return text.encode("utf-8", "replace").decode()  # JSON may hold lone surrogates, which cannot be stored


def _hold_cache(path: Path, option: str) -> BinaryIO:
    """Lock the file, which is made if need be, for this process, until the returned file is closed."""
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
    """(connection to the cache, tokens that all its answers have cost)."""
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
    """Read a prompt with $places from a file, which users may edit.

    Raises UserError if the file cannot be read, or has a $ that names none of `places`.
    """
    try:
        prompt = Template(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(option, f"cannot be read: {path}: {error}") from None
    unknown = set(prompt.get_identifiers()) - places if prompt.is_valid() else set()
    if unknown or not prompt.is_valid():
        what = f"unknown placeholder: ${sorted(unknown)[0]}" if unknown else "a $ that names no placeholder"
        raise UserError(
            str(path), what, f"The placeholders are ${', $'.join(sorted(places))}; $$ is a dollar sign."
        )
    return prompt
