"""Rows -> conversations: every format, and why a row is refused."""

import json
import math
import time
from decimal import Decimal

import pytest

from fastling.data.conversation import KEYS, Conversation, Refused, Turn, parse_row

HI = (Turn("user", "Hi"), Turn("assistant", "你好"))
BYE = (Turn("user", "Bye"), Turn("assistant", "再见"))


ANSWER_FIRST = ("assistant", "user")


def messages(*texts: str, roles=("user", "assistant")) -> list[dict]:
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def weighted(first: dict, second: dict) -> list[dict]:
    """Two rounds whose answers say how they weigh."""
    said = messages("Hi", "你好", "Bye", "再见")
    return [said[0], said[1] | first, said[2], said[3] | second]


# Formats ------------------------------------------------------------------------------------------

FORMATS = {
    "messages": ({"messages": messages("Hi", "你好")}, Conversation(HI)),
    "messages, system first": (
        {"messages": [{"role": "system", "content": "Kurz."}, *messages("Hi", "你好")]},
        Conversation(HI, "Kurz."),
    ),
    "messages, system beside": (
        {"system": "Kurz.", "messages": messages("Hi", "你好")},
        Conversation(HI, "Kurz."),
    ),
    "messages, system beside an empty one": (
        {"system": "Kurz.", "messages": [{"role": "system", "content": ""}, *messages("Hi", "你好")]},
        Conversation(HI, "Kurz."),
    ),
    "messages, content parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "你好"}]},
            ]
        },
        Conversation(HI),
    ),
    "messages, more keys": (
        {"id": 7, "pair": "en-zh", "messages": messages("Hi", "你好")},
        Conversation(HI, pair="en-zh"),
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "你好"}]},
        Conversation(HI),
    ),
    "ShareGPT, other names": (
        {
            "conversations": [
                {"from": "System", "value": "Kurz."},
                {"from": "USER", "value": "Hi"},
                {"from": "chatgpt", "value": "你好"},
                {"from": "Human", "value": "Bye"},
                {"from": "model", "value": "再见"},
            ]
        },
        Conversation(HI + BYE, "Kurz."),
    ),
    "ShareGPT in messages' spelling": ({"conversations": messages("Hi", "你好")}, Conversation(HI)),
    "messages in ShareGPT's spelling": (
        {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "你好"}]},
        Conversation(HI),
    ),
    "Alpaca": ({"instruction": "Hi", "input": "", "output": "你好"}, Conversation(HI)),
    "Alpaca, a blank input": ({"instruction": "Hi", "input": " \n", "output": "你好"}, Conversation(HI)),
    "Alpaca, no context": (
        {"instruction": "Hi", "context": math.nan, "output": "你好", "weight": math.nan},
        Conversation(HI),
    ),
    "Alpaca, no input, as a table has it": (
        {"instruction": "Hi", "input": math.nan, "output": "你好", "history": math.nan, "system": math.nan},
        Conversation(HI),
    ),
    "messages with weights, one of them missing in a table": (
        {"messages": weighted({"weight": 0}, {"weight": math.nan, "loss": math.nan})},
        Conversation(HI + BYE, read_only=frozenset({1})),
    ),
    "Alpaca with input": (
        {"instruction": "Translate:", "input": "Hi", "output": "你好"},
        Conversation((Turn("user", "Translate:\nHi"), HI[1])),
    ),
    "Alpaca whose question is all in the input": (
        {"instruction": "", "input": "Hi", "output": "你好"},
        Conversation(HI),
    ),
    "Alpaca with history": (
        {"instruction": "Bye", "output": "再见", "history": [["Hi", "你好"]], "system": "Kurz."},
        Conversation(HI + BYE, "Kurz."),
    ),
    "prompt and completion": ({"prompt": "Hi", "completion": "你好"}, Conversation(HI)),
    "prompt and completion, system beside": (
        {"prompt": "Hi", "completion": "你好", "system": "Kurz."},
        Conversation(HI, "Kurz."),
    ),
    "messages with weights": (
        {"messages": weighted({"weight": 0}, {"weight": 1})},
        Conversation(HI + BYE, read_only=frozenset({1})),
    ),
    "messages that say what to train on": (
        {"messages": weighted({"train": True, "weight": None}, {"train": False, "weight": 1})},
        Conversation(HI + BYE, read_only=frozenset({3})),
    ),
    "weights of what nobody trains on": (
        {
            "messages": [
                {"role": "system", "content": "Kurz.", "weight": 0},
                {"role": "user", "content": "Hi", "weight": 0, "train": math.nan},
                {"role": "assistant", "content": "你好"},
            ]
        },
        Conversation(HI, "Kurz."),
    ),
    "the same system text twice, but for blanks": (
        {"system": "Kurz.", "messages": [{"role": "system", "content": " Kurz.\n"}, *messages("Hi", "你好")]},
        Conversation(HI, " Kurz.\n"),
    ),
    "no tool is called": (
        {
            "messages": [
                {**each, "tool_calls": [], "functions": "[]", "function_call": None}
                for each in messages("Hi", "你好")
            ]
        },
        Conversation(HI),
    ),
    "prompt and completion of messages": (
        {"prompt": messages("Hi", "你好", "Bye"), "completion": messages("再见", roles=("assistant",) * 2)},
        Conversation(HI + BYE, read_only=frozenset({1})),  # a prompt is not trained on
    ),
    "what other trainers write of answers that are trained on": (
        {"messages": weighted({"loss": True, "masked": False}, {"train_detail": None, "reasoning": ""})},
        Conversation(HI + BYE),
    ),
    "and of those that are not": (
        {"messages": weighted({"loss": False}, {})},
        Conversation(HI + BYE, read_only=frozenset({1})),
    ),
    "in numbers, as a table has them": (
        {"messages": weighted({"loss": 0}, {"loss": 1.0, "masked": 0})},
        Conversation(HI + BYE, read_only=frozenset({1})),
    ),
    "by a fourth name": (
        {"messages": weighted({"mask": True}, {"mask": False})},
        Conversation(HI + BYE, read_only=frozenset({1})),
    ),
    "by a third name": (
        {"messages": weighted({"masked": True}, {"training": True})},
        Conversation(HI + BYE, read_only=frozenset({1})),
    ),
    "system text by its other name": (
        {"system_prompt": "Kurz.", "messages": messages("Hi", "你好")},
        Conversation(HI, "Kurz."),
    ),
    "beside it, what changes nothing": (
        {"messages": messages("Hi", "你好"), "tools": "[]", "images": [], "label": 0, "rejected": "x"},
        Conversation(HI),
    ),
    "null columns of a table of every form": (
        {"instruction": None, "output": None, "prompt": None, "completion": None, "text": "Es war einmal."},
        Conversation((Turn("text", "Es war einmal."),)),
    ),
    "null fields of a table of both spellings": (
        {
            "messages": [
                {"role": None, "content": None, "from": "human", "value": "Hi"},
                {"role": "assistant", "content": "你好", "from": None, "value": None},
            ]
        },
        Conversation(HI),
    ),
    "columns that the question was made of": (
        {
            "prompt": "Q: Is it wet?\nRain.",
            "completion": "Yes",
            "input": "Rain.\n",
            "context": "",
            "question": "Is it wet?",
        },
        Conversation((Turn("user", "Q: Is it wet?\nRain."), Turn("assistant", "Yes"))),
    ),
    "the same conversation in both lists": (
        {
            "messages": messages("Hi", "你好"),
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "你好"}],
        },
        Conversation(HI),
    ),
    "an empty list beside the conversation": (
        {"messages": [], "conversations": messages("Hi", "你好")},
        Conversation(HI),
    ),
    "system text beside a blank one": (
        {"system": " ", "system_prompt": "Kurz.", "messages": messages("Hi", "你好")},
        Conversation(HI, "Kurz."),
    ),
    "system text by both of its names": (
        {"system": "Kurz.", "system_prompt": "Kurz.", "messages": messages("Hi", "你好")},
        Conversation(HI, "Kurz."),
    ),
    "thoughts in the answer, and in a column": (
        {"prompt": "1 + 1", "completion": "Add. 2", "reasoning": "Add.", "thinking": True},
        Conversation((Turn("user", "1 + 1"), Turn("assistant", "Add. 2"))),
    ),
    "history that is in the turns": (
        {"messages": messages("Hi", "你好", "Bye"), "history": [["Hi", "你好"]], "train": "true"},
        Conversation(HI + BYE[:1]),
    ),
    "text": ({"text": " Es war einmal. "}, Conversation((Turn("text", " Es war einmal. "),))),
    "null columns of a table": (
        {"conversations": None, "system": None, "messages": messages("Hi", "你好")},
        Conversation(HI),
    ),
    "ends with a question": ({"messages": messages("Hi", "你好", "Bye")}, Conversation(HI + BYE[:1])),
    "blanks around stay": (
        {"messages": messages(" Hi\n", "\t你好 ")},
        Conversation((Turn("user", " Hi\n"), Turn("assistant", "\t你好 "))),
    ),
    "a system text of blanks is none": (
        {"system": " \n", "messages": messages("Hi", "你好")},
        Conversation(HI),
    ),
    "a pair that is no text is none": ({"pair": 7, "messages": messages("Hi", "你好")}, Conversation(HI)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_recognised_by_their_keys(name):
    record, expected = FORMATS[name]
    assert parse_row(record) == expected
    assert parse_row(json.dumps(record).encode()) == expected
    assert parse_row(json.dumps(record, ensure_ascii=False).encode()) == expected


REFUSED = [
    (b'{"a": ', "broken-json", "column 7"),
    (b'{"a": \r\n', "broken-json", "column 7"),
    (b"not json", "broken-json", "column 1"),
    (b"{\r\n", "broken-json", "over several lines: write a row a line"),
    (b'{"a":' * 100_000, "broken-json", "recursion"),
    (b'{"text": ' + b"9" * 5000 + b"}", "broken-json", "4300 digits"),
    (b'{"text": "\xff"}', "invalid-utf8", "byte 10 of the line"),
    (b'{"text": "a\\ud83d"}', "invalid-utf8", "text: a lone surrogate at character 1"),
    (b'{"text": "a", "text": "b"}', "broken-json", "a key is twice: 'text'"),
    (b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "broken-json", "twice: 'content' in an object {'role'"),
    (b"[1, 2]", "unknown-format", "a row must be an object: list"),
    (b"null", "unknown-format", "NoneType"),
    ({}, "unknown-format", "has no keys; expected messages"),
    ({"question": "Hi", "answer": "x"}, "unknown-format", "has the keys answer, question; expected messages"),
    ({"messages": "Hi"}, "unknown-format", "must be a list of objects"),
    ({"messages": ["Hi"]}, "unknown-format", "must be a list of objects"),
    ({"instruction": "Hi", "output": "x", "history": ["Hi"]}, "unknown-format", "history must be a list"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "unknown-role", "message 1: 'tool'"),
    ({"messages": [{"content": "x"}]}, "unknown-role", "message 1: None"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown-role", "message 1"),
    ({"messages": messages("Hi", None)}, "not-text", "message 2: expected text: NoneType"),
    ({"prompt": "Hi", "completion": 7}, "not-text", "completion: expected text: int"),
    ({"instruction": "Hi", "output": "x", "history": [["a", 1]]}, "not-text", "history: expected text: int"),
    ({"system": {}, "system_prompt": {"a": 1}, "messages": []}, "not-text", "system_prompt: expected text"),
    ({"instruction": "Hi", "output": None}, "not-text", "NoneType"),
    ({"instruction": "Hi", "output": math.nan}, "not-text", "output: expected text: NoneType"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not-text", "expected text: list"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}, "not-text", "list"),
    ({"messages": messages("Hi", " \n\t")}, "empty-turn", "turn 2 (assistant)"),
    ({"messages": messages("", "x")}, "empty-turn", "turn 1 (user)"),
    ({"text": ""}, "empty-turn", "turn 1 (text)"),
    ({"messages": []}, "no-assistant-turn", ""),
    ({"messages": messages("Hi")}, "no-assistant-turn", ""),
    ({"messages": messages("x", "Hi", "y", roles=ANSWER_FIRST)}, "starts-with-assistant", "nothing is known"),
    ({"messages": messages("a") + messages("b", "c")}, "turns-do-not-alternate", "turns 1 and 2: user"),
    (
        {"messages": messages("a", "b") + messages("c", "d", roles=ANSWER_FIRST)},
        "turns-do-not-alternate",
        "turns 2 and 3: assistant",
    ),
    ({"messages": messages("a", "b", roles=("user", "system"))}, "misplaced-system", "message 2 of 2"),
    ({"text": "Es war einmal.", "system": "Kurz."}, "misplaced-system", "beside plain text"),
    (
        {"system": "Kurz.", "messages": [{"role": "system", "content": "Lang."}, *messages("Hi", "x")]},
        "two-system-texts",
        "one beside the messages, another in the first",
    ),
    (
        {"system": "Kurz.", "system_prompt": "Lang.", "messages": messages("Hi", "x")},
        "two-system-texts",
        "one as system, another as system_prompt",
    ),
    (
        {"messages": messages("Hi", "x"), "conversations": messages("Hi", "x", "Bye", "y")},
        "two-conversations",
        "messages and conversations say different things",
    ),
    ({"instruction": "Sum up.", "context": "Rain.", "output": "x"}, "unread-input", "context is in no turn"),
    ({"prompt": "Sum up.", "input": "Rain.", "completion": "x"}, "unread-input", "input is in no turn"),
    ({"instruction": "Where?", "context": ["Here.", "There."], "output": "x"}, "unread-input", "context is in no"),
    ({"prompt": "Where?", "input": {"passage": "Here."}, "completion": "x"}, "unread-input", "input is in no turn"),
    ({"messages": messages("Sum up.", "x"), "context": "Rain."}, "unread-input", "context is in no turn"),
    ({"messages": messages("Rain.", "x"), "instruction": "Sum up."}, "unread-input", "instruction is in no turn"),
    ({"conversations": messages("Sum up.", "x"), "input": "Rain."}, "unread-input", "input is in no turn"),
    ({"instruction": "1 + 1", "output": "2", "reasoning": "Add."}, "reasoning-apart", "reasoning is in no turn"),
    ({"text": "2", "thinking": "Add."}, "reasoning-apart", "thinking is in no turn"),
    ({"instruction": "Hi", "output": "x", "train": False}, "nothing-to-train-on", "train of the row is False"),
    ({"instruction": "Hi", "output": "x", "train": "False"}, "nothing-to-train-on", "train of the row is 'False'"),
    ({"messages": messages("Hi", "x"), "mask": "true"}, "nothing-to-train-on", "mask of the row is 'true'"),
    ({"prompt": "Hi", "completion": "x", "weight": 0}, "nothing-to-train-on", "weight of the row is 0"),
    ({"prompt": "Hi", "completion": "x", "weight": 0.5}, "unknown-weight", "weight of the row must be 0 or 1: 0.5"),
    ({"messages": messages("Hi", "x"), "masked": True}, "nothing-to-train-on", "masked of the row is True"),
    ({"prompt": "Hi", "completion": "x", "weight": Decimal("0.0")}, "nothing-to-train-on", "weight of the row is"),
    ({"messages": messages("Hi", "x"), "weight": Decimal("0.5")}, "unknown-weight", "weight of the row must be 0 or 1"),
    ({"prompt": "a", "history": [["b", "c"]], "completion": "d"}, "unread-input", "history is in no turn"),
    ({"messages": messages("a", "d"), "history": [["b", "c"]]}, "unread-input", "history is in no turn"),
    ({"messages": messages("a", "d"), "history": ["a", ["d", ["b"]]]}, "unread-input", "history is in no turn"),
    ({"messages": weighted({"weight": 0.5}, {})}, "unknown-weight", "message 2: weight must be 0 or 1: 0.5"),
    ({"messages": weighted({}, {"train": "no"})}, "unknown-weight", "message 4: train must be 0 or 1: 'no'"),
    ({"messages": weighted({"loss": "false"}, {})}, "unknown-weight", "message 2: loss must be 0 or 1: 'false'"),
    ({"messages": [messages("Hi")[0] | {"train": True}, *messages("Hi", "x")[1:]]}, "unknown-weight", "message 1: train is True, and only answers"),
    ({"messages": [messages("Hi")[0] | {"masked": False}, *messages("Hi", "x")[1:]]}, "unknown-weight", "message 1: masked is False"),
    ({"messages": [{"role": "system", "content": "Kurz.", "weight": 1}, *messages("Hi", "x")]}, "unknown-weight", "message 1: weight is 1"),
    ({"messages": weighted({"weight": 0}, {"train": False})}, "nothing-to-train-on", "weight other than 0"),
    ({"messages": weighted({"tool_calls": [{"id": "1"}]}, {})}, "tool-call", "tool_calls in message 2: only the text"),
    ({"messages": weighted({}, {"function_call": {"name": "f"}})}, "tool-call", "function_call in message 4: only"),
    ({"messages": weighted({"function_calls": "f(1)"}, {})}, "tool-call", "function_calls in message 2: only"),
    ({"messages": [{"role": "system", "content": "Kurz.", "functions": "[{}]"}, *messages("Hi", "x")]}, "tool-call", "functions in message 1"),
    ({"instruction": "Hi", "output": "x", "history": 5}, "unknown-format", "history must be a list"),
    ({"instruction": "Hi", "output": "x", "history": [["a", "b", "c"]]}, "unknown-format", "history must be a list"),
    ({"instruction": "Hi", "input": 0, "output": "x"}, "not-text", "expected text: int"),
    ({"instruction": "Hi", "response": "x", "text": "y"}, "unknown-format", "has the keys instruction, resp"),
    ({"question": "Hi", "answer": "x", "text": "y"}, "unknown-format", "or text alone"),
    ({"text": "A long story.", "summary": "A story."}, "unknown-format", "or text alone"),
    ({"text": "Regen", "target": "rain"}, "unknown-format", "has the keys target, text"),
    ({"text": "Regen", "translation": "rain"}, "unknown-format", "or text alone"),
    ({"text": "Sum up.", "input": "Rain."}, "unknown-format", "or text alone"),
    ({"text": "Hi", "role": "prompter", "parent_id": None}, "unknown-format", "or text alone"),
    ({"messages": messages("Hi", "x"), "tools": [{"type": "function"}]}, "tool-call", "tools beside"),
    ({"messages": messages("<image>", "x"), "image": "a.jpg"}, "not-text", "image beside the text"),
    ({"messages": messages("<video>", "x"), "video": "a.mp4"}, "not-text", "video beside the text"),
    ({"messages": [messages("Hi")[0] | {"images": ["a.jpg"]}, *messages("Hi", "x")[1:]]}, "not-text", "images in message 1"),
    ({"messages": messages("a", "b", "c"), "rejected": "x"}, "preference", "chosen and rejected"),
    ({"messages": messages("a"), "rejected": "x"}, "preference", "chosen and rejected"),
    ({"messages": messages("a", "b", "c"), "response": "x"}, "unread-answer", "response is beside the messages"),
    ({"messages": messages("a"), "chosen": messages("b", "c")}, "unread-answer", "chosen is beside the messages"),
    ({"prompt": "Hi", "completion": "x", "label": False}, "preference", "label is false"),
    ({"messages": weighted({"train_detail": [{"train": False}]}, {})}, "unknown-weight", "as a whole"),
    ({"messages": weighted({"reasoning_content": "Hm."}, {})}, "reasoning-apart", "message 2: reasoning_con"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "detail"), REFUSED)
def test_a_row_that_cannot_be_trained_on_is_refused_with_its_reason(row, reason, detail):
    with pytest.raises(Refused) as refused:
        parse_row(row)
    assert refused.value.reason == reason
    assert detail in refused.value.detail


def test_endlessly_nested_content_parts_are_refused():
    text = "x"
    for _ in range(480):
        text = [{"type": "text", "text": text}]
    with pytest.raises(Refused, match="not-text"):
        parse_row({"messages": [{"role": "user", "content": text}]})


def test_a_key_twice_among_very_many_is_found_at_once():
    row = "{" + ",".join(f'"{number}": 1' for number in range(30_000)) + ', "7": 2}'
    began = time.process_time()
    with pytest.raises(Refused, match="a key is twice: '7'"):
        parse_row(row.encode())
    assert time.process_time() - began < 5  # 10 s and more, when each was counted in all


# Files --------------------------------------------------------------------------------------------


def test_every_key_that_a_format_has_is_read():
    """Else `read_rows` would leave its values out."""
    asked = set()

    class Spy(dict):
        def get(self, key, default=None):
            asked.add(key)
            return super().get(key, default)

        def __getitem__(self, key):
            asked.add(key)
            return super().__getitem__(key)

    for record, _ in FORMATS.values():
        parse_row(Spy(record))
    assert asked <= KEYS
    for key in KEYS - asked:  # those by which a row is refused
        with pytest.raises(Refused):
            parse_row({"text": "a"} | {key: False if key in ("label", "kto_tag") else "x"})


def test_a_refusal_can_be_written_anywhere():
    with pytest.raises(Refused) as refused:
        parse_row(b'{"\\ud800": 1}')
    assert "has the keys \\ud800;" in refused.value.detail
