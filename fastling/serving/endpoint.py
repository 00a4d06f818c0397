"""The web application: OpenAI's models and chat completions for one model, and the page."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fastling.inference.chat_model import ChatModel, StreamedAnswer
from fastling.json_files import json_line
from fastling.model.decoding import Decoding
from fastling.serving.gate import error_body
from fastling.serving.request import ApiError, ChatRequest, read_request, to_decoding, to_prompt
from fastling.serving.worker import Busy, Ending, Failed, Job, Worker

PAGE = Path(__file__).parent / "page"
LARGEST_BODY = 4 * 2**20
"""Largest body of a request in bytes."""
LARGEST_DISCARDED, DISCARD_S = 8 * LARGEST_BODY, 1.0
"""How many bytes, and for how many seconds, the rest of a too large body is still read. Closing the
connection at once would reset it, and the client would not get the error response."""
BODY_TIMEOUT_S = 15.0
"""Seconds within which the whole body of a request must arrive."""
LOOK_FOR_CLIENT_S = 0.25
"""Seconds between checks whether the client is still waiting for a whole answer."""
RETRY_AFTER_S = 2


class Endpoint:
    """Answers requests to one model over HTTP."""

    def __init__(self, chat: ChatModel, defaults: Decoding, worker: Worker):
        self.chat, self.defaults, self.worker = chat, defaults, worker
        self.created = int(time.time())
        # Parsing and encoding a large body takes a second of one core: outside the event loop, one at a time.
        self._encoding = asyncio.Semaphore(1)

    def model(self) -> dict:
        """The model in the form of OpenAI's list, with its context length as vLLM adds it."""
        return {
            "id": self.chat.name,
            "object": "model",
            "created": self.created,
            "owned_by": "fastling",
            "max_model_len": self.chat.longest_sequence,
            "max_new_tokens": self.defaults.max_new_tokens,
        }

    def check_name(self, name: str) -> None:
        """Raise ApiError 404 for the name of another model."""
        if name != self.chat.name:
            message = f"there is no model {name[:80]!r}; this server has {self.chat.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def _read(self, body: bytes) -> tuple[ChatRequest, list[int]]:
        asked = read_request(body)
        self.check_name(asked.model)
        return asked, to_prompt(self.chat, asked)

    async def complete(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await read_body(request)
        async with self._encoding:
            asked, prompt = await asyncio.to_thread(self._read, body)
        decoding = to_decoding(asked, self.defaults, len(prompt), self.chat.longest_sequence)
        job = Job(StreamedAnswer(self.chat, prompt, decoding, asked.stop_strings))
        try:
            self.worker.submit(job)
        except Busy:
            raise ApiError(
                429,
                "too many requests wait for an answer; try again",
                "server_busy",
                code="server_busy",
                headers={"retry-after": str(RETRY_AFTER_S)},
            ) from None
        identifier = f"chatcmpl-{secrets.token_hex(12)}"
        head = {"id": identifier, "created": int(time.time()), "model": self.chat.name}
        if asked.stream:
            return _EventStream(job, _events(job, head, asked, len(prompt)))
        try:
            text = await _whole(job, request)
        finally:
            job.cancel()
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": job.answer.finish_reason}
        return JSONResponse(
            {
                **head,
                "object": "chat.completion",
                "choices": [choice],
                "usage": _usage(len(prompt), job.answer.num_tokens),
            }
        )


class _EventStream(StreamingResponse):
    """The server-sent events of a job, which is cancelled however the response ends."""

    def __init__(self, job: Job, events: AsyncIterator[str]):
        super().__init__(events, media_type="text/event-stream")
        self.job = job

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.cancel()


async def _events(job: Job, head: dict, asked: ChatRequest, prompt_length: int) -> AsyncIterator[str]:
    """Yield an answer's events: its role, its text as it comes, its end and, if asked for, its tokens."""
    usage = {"usage": None} if asked.include_usage else {}

    def chunk(choices: list[dict], usage: dict = usage) -> str:
        return _event({**head, "object": "chat.completion.chunk", "choices": choices, **usage})

    def choice(delta: dict, finish_reason: str | None = None) -> list[dict]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]

    yield chunk(choice({"role": "assistant", "content": ""}))
    try:
        async for piece in job.pieces():
            yield chunk(choice({"content": piece}))
    except (Failed, Ending) as error:
        yield _event(error_body(str(error), "server_error"))
        return
    yield chunk(choice({}, job.answer.finish_reason))
    if asked.include_usage:
        yield chunk([], {"usage": _usage(prompt_length, job.answer.num_tokens)})
    yield "data: [DONE]\n\n"


def _event(content: dict) -> str:
    return f"data: {json_line(content)}\n"


async def _whole(job: Job, request: Request) -> str:
    """The whole text of an answer. Raises ApiError if the model fails, the server ends, or nobody waits."""

    async def gather() -> str:
        return "".join([piece async for piece in job.pieces()])

    gathering = asyncio.ensure_future(gather())
    try:
        while not (await asyncio.wait({gathering}, timeout=LOOK_FOR_CLIENT_S))[0]:
            if await request.is_disconnected():
                raise ApiError(499, "the client has gone")
        return gathering.result()
    except (Failed, Ending) as error:
        raise ApiError(503 if isinstance(error, Ending) else 500, str(error), "server_error") from None
    finally:
        gathering.cancel()


def _usage(prompt_length: int, num_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_length,
        "completion_tokens": num_tokens,
        "total_tokens": prompt_length + num_tokens,
    }


async def read_body(request: Request) -> bytes:
    """Read a request's body, bounded in size and time.

    Raises ApiError: 413 if it is too large, 408 if it takes too long, and 400 if the client disconnects.
    """
    announced = request.headers.get("content-length", "0")
    too_large = ApiError(
        413,
        f"the body is larger than {LARGEST_BODY} bytes",
        code="request_too_large",
        headers={"connection": "close"},  # since the rest of the body is not read
    )
    parts = request.stream()
    if not announced.isdigit() or int(announced) > LARGEST_BODY:
        await _discard(parts)
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in parts:
                body += part
                if len(body) > LARGEST_BODY:
                    await _discard(parts)
                    raise too_large
    except TimeoutError:
        message = f"the body did not arrive within {BODY_TIMEOUT_S:g} s"
        raise ApiError(408, message, code="request_timeout", headers={"connection": "close"}) from None
    except ClientDisconnect:
        raise ApiError(400, "the body is not whole: the connection was closed") from None
    return bytes(body)


async def _discard(parts: AsyncIterator[bytes]) -> None:
    """Read the rest of a body, within LARGEST_DISCARDED and DISCARD_S, and discard it."""
    left = LARGEST_DISCARDED
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DISCARD_S):
            async for part in parts:
                left -= len(part)
                if left < 0:
                    return


def make_application(chat: ChatModel, defaults: Decoding, worker: Worker) -> FastAPI:
    """The application with its routes, without FastAPI's own pages, which load scripts from other sites."""
    endpoint = Endpoint(chat, defaults, worker)
    application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _handle_errors(application)

    @application.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [endpoint.model()]}

    @application.get("/v1/models/{name}")
    async def model(name: str) -> dict:
        endpoint.check_name(name)
        return endpoint.model()

    @application.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        return await endpoint.complete(request)

    for path, name in (("/", "index.html"), ("/chat.css", "chat.css"), ("/chat.js", "chat.js")):
        application.add_api_route(path, _file_route(PAGE / name), methods=["GET"])
    return application


def _file_route(path: Path):
    async def send_file() -> FileResponse:
        return FileResponse(path)

    return send_file


def _handle_errors(application: FastAPI) -> None:
    """Send every error in OpenAI's format. For an error in this code, say only that there was one."""

    @application.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @application.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> JSONResponse:
        message = f"there is no {request.method} {request.url.path[:80]}"
        # The headers say what there is: Allow, with 405.
        return JSONResponse(error_body(message, code="not_found"), error.status_code, error.headers)

    @application.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body("the server failed; its log says how", "server_error"), 500)
