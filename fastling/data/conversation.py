"""A row -> a conversation, or the reason why it is refused.

The keys of a row tell whether it is ShareGPT, OpenAI messages, Alpaca, prompt/completion or plain text. A row
with content that none of these formats would read is refused, since that content was put there on purpose.
"""

import json
from dataclasses import dataclass, replace
from itertools import cycle
from numbers import Number
from typing import Any, NamedTuple

from fastling.data.strict_json import parse_json
from fastling.errors import first_line

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
TOOLS = ("tools", "functions", "tool_calls", "function_call", "function_calls")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
TRAINED = {"weight": 1, "train": 1, "loss": 1, "training": 1, "masked": 0, "mask": 0}
"""Keys by which various tools mark whether a message is trained on, and the value that means yes."""
SIDES = frozenset(
    "role prompt completion question answer response input output target summary translation "
    "chosen rejected".split()
)
"""A row with `text` and one of these keys is not plain text but a dialogue or task in an unknown format."""
LISTS = {"messages": ("role", "content"), "conversations": ("from", "value")}
"""Keys of lists of messages, and the keys of role and text in each message."""
INPUTS = ("instruction", "input", "context", "question")
"""Keys that, beside a conversation, hold a further part of the question."""
ANSWERS = ("response", "answer", "output", "completion", "chosen")
"""Keys that, beside messages that end with a question, hold its answer."""
KEYS = frozenset(
    "messages conversations instruction input output history prompt completion text system system_prompt "
    "pair rejected label kto_tag".split()
).union(TOOLS, MEDIA, SIDES, INPUTS, THOUGHTS, TRAINED)
"""All keys of a row that `parse_row` looks at, in any of the formats."""


class Refused(Exception):
    """A row that is not trained on: a short reason to count it under, and the detail for its author."""

    def __init__(self, reason: str, detail: str = ""):
        # A lone surrogate, in a key or a role, cannot be encoded for output.
        self.reason, self.detail = reason, detail.encode("utf-8", "backslashreplace").decode()
        super().__init__(reason, self.detail)


class Turn(NamedTuple):
    """One message. `role` is "user" or "assistant", or "text" for a row of plain text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that alternate user, assistant, user, ...; or one turn of plain text."""

    turns: tuple[Turn, ...]
    system: str = ""
    pair: str | None = None
    read_only: frozenset[int] = frozenset()
    """Indices of assistant turns that the model reads but is not trained on, because the row says so."""


def parse_row(payload: Any) -> Conversation:
    """JSON bytes or a record -> a conversation whose turns can be trained on.

    Raises Refused: broken-json, invalid-utf8, unknown-format, unknown-role, unknown-weight, not-text,
    tool-call, reasoning-apart, preference, empty-turn, no-assistant-turn, nothing-to-train-on,
    starts-with-assistant, turns-do-not-alternate, misplaced-system, two-system-texts, two-conversations,
    unread-input, unread-answer.
    """
    record = _parse_json(payload) if isinstance(payload, bytes) else payload
    if not isinstance(record, dict):
        raise Refused("unknown-format", f"a row must be an object: {type(record).__name__}")
    record = _with_nulls(record)
    _check_beside(record)
    found = _read_turns(record)
    _check_all_said(record, found)
    if not found.turns or found.turns[-1].role == "user":
        _check_no_answer(record)
    _check_turns(found)
    pair = record.get("pair")
    system = found.system if found.system.strip() else ""
    return replace(found, system=system, pair=pair if isinstance(pair, str) else None)


def _parse_json(line: bytes) -> Any:
    try:
        return parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refused("invalid-utf8", f"byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        if line.strip() == b"{":
            raise Refused("broken-json", "object over several lines: write a row a line, or a list") from None
        column = min(error.pos, len(error.doc.rstrip("\r\n"))) + 1  # a final newline starts no other line
        raise Refused("broken-json", f"column {column}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise Refused("broken-json", first_line(error)) from None


def _with_nulls(fields: dict) -> dict:
    """A row or message with null instead of NaN, which tables write for a missing value."""
    missing = {key: None for key, value in fields.items() if value != value}
    return fields | missing if missing else fields


def _check_beside(record: dict) -> None:
    """Raise Refused if other keys of the row say that its text must not be trained on, or not alone."""
    _check_is_text(record, "beside the text")
    for key, trained in TRAINED.items():
        if _as_number(record.get(key)) == 1 - trained:
            raise Refused("nothing-to-train-on", f"{key} of the row is {record[key]!r}")
    weight = record.get("weight")
    if isinstance(weight, Number) and weight not in (0, 1):
        raise Refused("unknown-weight", f"weight of the row must be 0 or 1: {weight!r:.40}")
    for key in ("label", "kto_tag"):
        if record.get(key) is False:
            raise Refused("preference", f"{key} is false: its answer is an example of what not to say")


def _as_number(value: Any) -> Number | None:
    """A row's mark as a number (tables may have Decimals); None if it has no meaning.

    Tables made from CSV hold truth values as text, and Python treats every non-empty text as true.
    """
    if isinstance(value, str):
        return {"false": 0, "0": 0, "true": 1, "1": 1}.get(value.strip().lower())
    return value if isinstance(value, Number) else None


def _check_is_text(holder: dict, where: str) -> None:
    """Raise Refused if a row or a message has tools, pictures, sound or video."""
    for reason, keys in (("tool-call", TOOLS), ("not-text", MEDIA)):
        for key in keys:
            if holder.get(key) not in (None, "", "[]", [], {}):
                raise Refused(reason, f"{key} {where}: only the text could be trained on")


def _check_no_answer(record: dict) -> None:
    """Raise Refused if the answer to the last question is not in the messages, but in a key beside them."""
    if record.get("rejected"):
        raise Refused("preference", "its answers are chosen and rejected: put the chosen one in its place")
    for key in ANSWERS:
        if record.get(key):
            raise Refused("unread-answer", f"{key} is beside the messages: make it the last of them")


def _read_turns(record: dict) -> Conversation:
    """Tell the format of a row by its keys, ignoring those whose value is null, and read it."""
    lists = [name for name in LISTS if record.get(name) is not None]
    lists = [name for name in lists if record[name] != []] or lists[:1]
    found = [_messages(record, record[name], *LISTS[name]) for name in lists]
    if any(each != found[0] for each in found):
        raise Refused("two-conversations", "messages and conversations say different things: leave one out")
    if found:
        return found[0]
    instructed = record.get("instruction") is not None
    if instructed and "output" in record:
        return _alpaca(record)
    if record.get("prompt") is not None and "completion" in record:
        return _prompt_completion(record)
    sides = any(record.get(key) is not None for key in SIDES)
    if record.get("text") is not None and not instructed and not sides:
        if _system(record).strip():
            raise Refused("misplaced-system", "beside plain text, which has no place for it")
        return Conversation((Turn("text", _text(record["text"], "text")),))
    keys = "the keys " + ", ".join(sorted(map(str, record))[:8]) if record else "no keys"
    raise Refused(
        "unknown-format",
        f"has {keys}; expected messages, conversations, instruction and output, "
        "prompt and completion, or text alone",
    )


def _check_all_said(record: dict, found: Conversation) -> None:
    """Raise Refused if a key beside the conversation holds a question or reasoning that no turn has."""
    said = [found.system, *(turn.content for turn in found.turns)]
    is_text = bool(found.turns) and found.turns[0].role == "text"
    for key in THOUGHTS if is_text else (*INPUTS, "history", *THOUGHTS):
        value = record.get(key)
        if not isinstance(value, str | list | dict) or not value:
            continue
        # Alpaca's history is a list of pairs.
        parts = [part for each in _as_list(value) for part in _as_list(each)]
        if not all(isinstance(part, str) and any(part.strip() in text for text in said) for part in parts):
            reason = "reasoning-apart" if key in THOUGHTS else "unread-input"
            raise Refused(reason, f"{key} is in no turn: put it into one, or leave it out")


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _system(record: dict) -> str:
    texts = [_text(record.get(key) or "", key) for key in ("system", "system_prompt")]
    if all(text.strip() for text in texts) and texts[0].strip() != texts[1].strip():
        raise Refused("two-system-texts", "one as system, another as system_prompt")
    return next((text for text in texts if text.strip()), "")


def _messages(record: dict, messages: Any, role_key: str, text_key: str) -> Conversation:
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        raise Refused("unknown-format", "the messages must be a list of objects")
    system, turns, read_only = _system(record), [], set()
    for number, message in enumerate(map(_with_nulls, messages), start=1):
        if message.get(role_key) is None or text_key not in message:  # some files mix the two spellings
            from_value = message.get("from") is not None
            role_key, text_key = ("from", "value") if from_value else ("role", "content")
        name = message.get(role_key)
        role = ROLES.get(name.lower()) if isinstance(name, str) else None
        if role is None:
            raise Refused("unknown-role", f"message {number}: {name!r:.60}")
        _check_is_text(message, f"in message {number}")
        content = _text(message.get(text_key), f"message {number}")
        if role != "assistant":
            _check_not_trained(message, number)
        if role == "system":
            if number > 1:
                raise Refused("misplaced-system", f"message {number} of {len(messages)}")
            if content.strip() and system.strip() not in ("", content.strip()):
                raise Refused("two-system-texts", "one beside the messages, another in the first of them")
            system = content if content.strip() else system
            continue
        if role == "assistant":
            for key in THOUGHTS:
                if message.get(key):
                    raise Refused("reasoning-apart", f"message {number}: {key} is not in its text")
            if not _is_trained(message, number):
                read_only.add(len(turns))
        turns.append(Turn(role, content))
    return Conversation(tuple(turns), system, read_only=frozenset(read_only))


def _is_trained(message: dict, number: int) -> bool:
    """Whether an answer is to be trained on."""
    for key in ("train_detail", "training_detail"):
        if message.get(key):
            raise Refused("unknown-weight", f"message {number}: {key}: an answer is trained on as a whole")
    for key in TRAINED:
        if message.get(key) not in (0, 1, None):  # False and True among them
            raise Refused("unknown-weight", f"message {number}: {key} must be 0 or 1: {message[key]!r:.40}")
    return all(message.get(key) in (trained, None) for key, trained in TRAINED.items())


def _check_not_trained(message: dict, number: int) -> None:
    """Raise Refused if a message that is not an answer is marked to be trained on."""
    for key, trained in TRAINED.items():
        if message.get(key) not in (1 - trained, None):
            detail = f"message {number}: {key} is {message[key]!r:.40}, and only answers are trained on"
            raise Refused("unknown-weight", detail)


def _alpaca(record: dict) -> Conversation:
    question, history = _text(record["instruction"], "instruction"), record.get("history") or []
    if record.get("input") is not None:
        question = "\n".join(part for part in (question, _text(record["input"], "input")) if part.strip())
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        raise Refused("unknown-format", "history must be a list of [question, answer]")
    said = [_text(text, "history") for pair in history for text in pair]
    said += [question, _text(record.get("output"), "output")]
    return Conversation(tuple(map(Turn, cycle(("user", "assistant")), said)), _system(record))


def _prompt_completion(record: dict) -> Conversation:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        given = [each | {"train": False} if isinstance(each, dict) else each for each in prompt]
        return _messages(record, given + completion, "role", "content")
    turns = (Turn("user", _text(prompt, "prompt")), Turn("assistant", _text(completion, "completion")))
    return Conversation(turns, _system(record))


def _text(value: Any, where: str) -> str:
    if isinstance(value, list):  # OpenAI's content parts
        parts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) == len(value) and all(isinstance(part, str) for part in parts):
            value = "".join(parts)
    if not isinstance(value, str):
        raise Refused("not-text", f"{where}: expected text: {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refused("invalid-utf8", f"{where}: a lone surrogate at character {error.start}") from None
    return value


def _check_turns(conversation: Conversation) -> None:
    turns = conversation.turns
    for number, turn in enumerate(turns, start=1):
        if not turn.content.strip():
            raise Refused("empty-turn", f"turn {number} ({turn.role})")
    answers = {number for number, turn in enumerate(turns) if turn.role in ("assistant", "text")}
    if not answers:
        raise Refused("no-assistant-turn")
    if answers == conversation.read_only:
        raise Refused("nothing-to-train-on", "no assistant turn has a weight other than 0")
    if turns[0].role == "assistant":
        raise Refused("starts-with-assistant", "nothing is known of what it answers")
    for number, (first, second) in enumerate(zip(turns, turns[1:], strict=False), start=1):
        if first.role == second.role:
            raise Refused("turns-do-not-alternate", f"turns {number} and {number + 1}: {first.role}")
