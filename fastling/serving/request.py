"""A request for a chat completion, as OpenAI's clients send it -> a conversation, and how to answer it.

Unsupported parameters are refused, never ignored: otherwise a client that asks for JSON, tools or two choices
would take any answer for it.
"""

import secrets
from dataclasses import dataclass, field
from typing import Annotated, Any

import pydantic

from fastling.data.conversation import Conversation, Turn
from fastling.errors import UserError
from fastling.inference.chat_model import ChatModel
from fastling.model.decoding import LEAST_PENALTY, Decoding
from fastling.serving.gate import error_body

IGNORED = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key parallel_tool_calls".split()
)
"""Parameters that are accepted and ignored, since they do not change the answer."""
NEUTRAL = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
}
"""Unsupported parameters -> the values, besides null, that request nothing."""
MOST_STOP_STRINGS, LONGEST_STOP_STRING = 4, 200
STOP_STRINGS = (
    f"stop must be a text of 1 to {LONGEST_STOP_STRING} characters, or up to {MOST_STOP_STRINGS} of them"
)


@dataclass
class ApiError(Exception):
    """An error response: HTTP status, message and the other fields of OpenAI's format."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict:
        """The body of the response."""
        return error_body(self.message, self.kind, self.param, self.code)


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Part(_Strict):
    type: str
    text: str | None = None


class _Message(_Strict):
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(_Strict):
    include_usage: bool | None = None


_Stop = Annotated[str, pydantic.Field(min_length=1, max_length=LONGEST_STOP_STRING)]
_Stops = Annotated[list[_Stop], pydantic.Field(max_length=MOST_STOP_STRINGS)]


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions; `top_k` and `repetition_penalty` are vLLM's."""

    model: str
    messages: list[_Message]
    max_tokens: int | None = pydantic.Field(None, ge=1)
    max_completion_tokens: int | None = pydantic.Field(None, ge=1)
    temperature: float | None = pydantic.Field(None, ge=0, le=10)
    top_p: float | None = pydantic.Field(None, gt=0, le=1)
    top_k: int | None = pydantic.Field(None, ge=0)
    repetition_penalty: float | None = pydantic.Field(None, ge=LEAST_PENALTY, le=10)
    seed: int | None = pydantic.Field(None, ge=-(2**63), lt=2**63)
    stop: _Stop | _Stops | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def include_usage(self) -> bool:
        """Whether the stream should end with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


def read_request(body: bytes) -> ChatRequest:
    """Parse a body. Raises ApiError 400 for invalid JSON, wrong types, and values that are not supported."""
    try:
        request = ChatRequest.model_validate_json(body)
    except pydantic.ValidationError as problems:
        problem = problems.errors(include_url=False, include_input=False)[0]
        if problem["type"] == "json_invalid":
            raise ApiError(400, f"the body is not valid JSON: {problem['ctx']['error']}") from None
        words = STOP_STRINGS if problem["loc"][:1] == ("stop",) else problem["msg"]
        raise ApiError(400, words, param=_dotted(problem["loc"])) from None
    for name, value in (request.model_extra or {}).items():
        if name in IGNORED or value is None:
            continue
        if name not in NEUTRAL:
            raise ApiError(400, f"unrecognized argument: {name[:80]}", param=name[:80])
        if not _is_among(value, NEUTRAL[name]):
            raise ApiError(400, f"this server does not support that value of {name}", param=name)
    if request.stream_options and not request.stream:
        raise ApiError(400, "stream_options has no effect without stream", param="stream_options")
    return request


def _is_among(value: Any, neutral: tuple) -> bool:
    """Whether a value is one of the neutral ones. True is not 1 here, although they are equal in Python."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)


def _dotted(location: tuple[str | int, ...]) -> str | None:
    """("messages", 0, "content", "str") -> messages[0].content; the name of a union's type is left out."""
    shown = ""
    for part in location[:4]:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif part[:1].isalpha() and part not in ("str", "constrained-str"):
            shown += f".{part}" if shown else part
    return shown.partition(".list[")[0] or None


def to_conversation(request: ChatRequest) -> Conversation:
    """The messages as a conversation. Raises ApiError 400 for roles, orders or contents unlike training's."""
    system, turns = "", []
    for number, message in enumerate(request.messages):
        where = f"messages[{number}]"
        if message.role not in ("system", "developer", "user", "assistant"):
            what = f"unknown role: {message.role[:40]!r}; there are system, user and assistant"
            raise ApiError(400, what, param=f"{where}.role")
        text = _text(message, where)
        if message.role in ("system", "developer"):
            if number:
                raise ApiError(400, "a system message must come first", param=f"{where}.role")
            system = text
        else:
            expected = "assistant" if turns and turns[-1].role == "user" else "user"
            if message.role != expected:
                what = f"user and assistant must take turns: expected {expected}"
                raise ApiError(400, what, param=f"{where}.role")
            if message.role == "user" and not text.strip():
                raise ApiError(400, "a message of the user is empty", param=f"{where}.content")
            turns.append(Turn(message.role, text))
    if not turns or turns[-1].role != "user":
        raise ApiError(400, "the last message must be of the user", param="messages")
    return Conversation(tuple(turns), system.strip() and system)


def _text(message: _Message, where: str) -> str:
    for name, value in (message.model_extra or {}).items():
        if name != "name" and value not in (None, [], {}):
            raise ApiError(400, f"not supported in a message: {name[:80]}", param=f"{where}.{name[:80]}")
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        raise ApiError(400, "a message needs content", param=f"{where}.content")
    if any(part.type != "text" or part.text is None for part in message.content):
        raise ApiError(400, "only parts of type text are supported", param=f"{where}.content")
    return "".join(part.text for part in message.content)


def to_prompt(chat: ChatModel, request: ChatRequest) -> list[int]:
    """The ids that the model is given. Raises ApiError 400 for text that training would have refused."""
    try:
        return chat.prompt_ids(to_conversation(request))
    except UserError as error:
        raise ApiError(400, f"{error.where} {error.what}", param="messages") from None


def to_decoding(request: ChatRequest, defaults: Decoding, prompt_length: int, longest: int) -> Decoding:
    """The settings of an answer; `defaults`, with which the server was started, fill in what the request
    leaves open.

    `prompt_length` and `longest`, the model's longest sequence, are in tokens. Raises ApiError 400,
    context_length_exceeded, if prompt and answer together are longer than that.
    """
    asked = request.max_completion_tokens or request.max_tokens
    max_new_tokens = asked or min(defaults.max_new_tokens, max(1, longest - prompt_length))
    if prompt_length + max_new_tokens > longest:
        raise ApiError(
            400,
            f"This model's maximum context length is {longest} tokens. However, you requested "
            f"{prompt_length + max_new_tokens} tokens ({prompt_length} in the messages, {max_new_tokens} in "
            "the completion). Please reduce the length of the messages or completion.",
            param="messages",
            code="context_length_exceeded",
        )

    def given(name: str) -> Any:
        value = getattr(request, name)
        return getattr(defaults, name) if value is None else value

    drawn = {}
    if given("temperature"):  # at 0 nothing is sampled, and these have no effect
        seed = secrets.randbelow(2**31) if request.seed is None else request.seed % 2**62
        drawn = {"top_p": given("top_p"), "top_k": given("top_k"), "seed": seed}
    return Decoding(
        max_new_tokens=max_new_tokens,
        temperature=given("temperature"),
        repetition_penalty=given("repetition_penalty"),
        **drawn,
    )
