"""A model behind an OpenAI-compatible server: many requests in flight, answers kept, a budget of tokens.

Retries with growing pauses (429, 5xx, lost connections, time-outs) are the openai client's own. Every
answer is written to the cache before it is used, so that a run that is stopped pays nothing twice: asked
the same again, the file answers.
"""

import asyncio
import hashlib
import json
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import openai

from fastling.errors import RunError, UserError

Message = dict[str, str]  # {"role": ..., "content": ...}
BYTES_PER_TOKEN = 3  # for a server that does not tell its usage


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

    Raises UserError if the cache cannot be used.
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
        self._failures, self._most_failures = 0, 2 * requests_in_flight  # in a row
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=retries,
            timeout=timeout_seconds,
        )
        self._in_flight = asyncio.Semaphore(requests_in_flight)
        self._cache = _open_cache(cache, option)
        (self.tokens,) = self._cache.execute("SELECT COALESCE(SUM(tokens), 0) FROM answers").fetchone()

    async def close(self) -> None:
        await self._client.close()
        self._cache.close()

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
        key = hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
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
        self._failures = 0
        self.tokens += answer.tokens
        with self._cache:
            row = (key, answer.text, answer.tokens)
            self._cache.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)
        return answer.text

    async def _send(self, request: dict) -> Answer:
        try:
            response = await self._client.chat.completions.create(**request)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            words = f"{self.url} refuses {self.model}: {error.status_code}"
            raise RunError(f"{self._option}-url", words, "Check address, model and OPENAI_API_KEY.") from None
        except openai.APITimeoutError:
            raise NoAnswer("too slow") from None
        except openai.APIConnectionError:
            raise NoAnswer("no connection") from None
        except openai.APIStatusError as error:
            raise NoAnswer(f"status {error.status_code}") from None
        except (openai.OpenAIError, json.JSONDecodeError):
            raise NoAnswer("broken answer") from None
        if not getattr(response, "choices", None):  # a server may answer 200 with anything
            raise NoAnswer("broken answer")
        choice = response.choices[0]
        # Cut off, it is kept as an answer without text: asked again it would be cut off again.
        text = "" if choice.finish_reason == "length" else choice.message.content or ""
        return Answer(text, self._cost(request, text, response.usage))

    def _count_failure(self, reason: str) -> None:
        """One request may fail; a server that answers none is not asked for hours."""
        self._failures += 1
        if self._failures >= self._most_failures:
            words = f"{self._failures} requests in a row had no answer from {self.url}: {reason}"
            raise RunError(
                f"{self._option}-url", words, "What was answered is kept; the same command goes on."
            )

    def _cost(self, request: dict, text: str, usage) -> int:
        if usage is not None and usage.total_tokens:
            return usage.total_tokens
        texts = [message["content"] for message in request["messages"]] + [text]
        return sum(len(each.encode()) for each in texts) // BYTES_PER_TOKEN


def _open_cache(path: Path, option: str) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        cache = sqlite3.connect(path)
        cache.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT, tokens INTEGER)")
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"{option}-cache", f"cannot be used: {path}: {error}") from None
    return cache
