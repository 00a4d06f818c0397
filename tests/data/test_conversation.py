"""Rows of a file -> conversations: every format and every kind of file, and why a row is refused."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from fastling.data.conversation import KEYS, Conversation, Refused, Turn, parse_row, read_rows
from fastling.errors import UserError

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
                {"role": "user", "content": "Hi", "weight": 0},
                {"role": "assistant", "content": "你好"},
            ]
        },
        Conversation(HI, "Kurz."),
    ),
    "the same system text twice": (
        {"system": "Kurz.", "messages": [{"role": "system", "content": "Kurz."}, *messages("Hi", "你好")]},
        Conversation(HI, "Kurz."),
    ),
    "no tool is called": (
        {"messages": [{**each, "tool_calls": [], "function_call": None} for each in messages("Hi", "你好")]},
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
def test_formats_are_told_by_their_keys(name):
    record, expected = FORMATS[name]
    assert parse_row(record) == expected
    assert parse_row(json.dumps(record).encode()) == expected
    assert parse_row(json.dumps(record, ensure_ascii=False).encode()) == expected


REFUSED = [
    (b'{"a": ', "broken-json", "column 7"),
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
    ({"prompt": "a", "history": [["b", "c"]], "completion": "d"}, "unread-input", "history beside a prompt"),
    ({"messages": weighted({"weight": 0.5}, {})}, "unknown-weight", "message 2: weight must be 0 or 1: 0.5"),
    ({"messages": weighted({}, {"train": "no"})}, "unknown-weight", "message 4: train must be 0 or 1: 'no'"),
    ({"messages": weighted({"loss": "false"}, {})}, "unknown-weight", "message 2: loss must be 0 or 1: 'false'"),
    ({"messages": weighted({"weight": 0}, {"train": False})}, "nothing-to-train-on", "weight other than 0"),
    ({"messages": weighted({"tool_calls": [{"id": "1"}]}, {})}, "tool-call", "message 2: only its text"),
    ({"messages": weighted({}, {"function_call": {"name": "f"}})}, "tool-call", "message 4: only its text"),
    ({"instruction": "Hi", "output": "x", "history": 5}, "unknown-format", "history must be a list"),
    ({"instruction": "Hi", "input": 0, "output": "x"}, "not-text", "expected text: int"),
    ({"instruction": "Hi", "response": "x", "text": "y"}, "unknown-format", "has the keys instruction, resp"),
    ({"question": "Hi", "answer": "x", "text": "y"}, "unknown-format", "or text alone"),
    ({"text": "Hi", "role": "prompter", "parent_id": None}, "unknown-format", "or text alone"),
    ({"messages": messages("Hi", "x"), "tools": [{"type": "function"}]}, "tool-call", "tools beside"),
    ({"messages": messages("<image>", "x"), "image": "a.jpg"}, "not-text", "image beside the text"),
    ({"messages": messages("<video>", "x"), "video": "a.mp4"}, "not-text", "video beside the text"),
    ({"messages": [messages("Hi")[0] | {"images": ["a.jpg"]}, *messages("Hi", "x")[1:]]}, "not-text", "images in message 1"),
    ({"messages": messages("a", "b", "c"), "rejected": "x"}, "preference", "chosen and rejected"),
    ({"messages": messages("a"), "rejected": "x"}, "preference", "chosen and rejected"),
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


def test_content_parts_nested_without_end_are_refused_not_followed():
    text = "x"
    for _ in range(480):
        text = [{"type": "text", "text": text}]
    with pytest.raises(Refused, match="not-text"):
        parse_row({"messages": [{"role": "user", "content": text}]})


# Files --------------------------------------------------------------------------------------------

RECORDS = [{"prompt": f"Frage {number} 你好\u2028", "completion": "ä" * number} for number in range(1, 40)]
PARSED = [parse_row(record) for record in RECORDS]


def lines(**options) -> bytes:
    return b"".join(json.dumps(record, **options).encode() + b"\n" for record in RECORDS)


HALF = [b"".join(part) for part in (lines().splitlines(True)[:20], lines().splitlines(True)[20:])]


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def parquet() -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), sink, row_group_size=7)
    return sink.getvalue().to_pybytes()


FILES = {
    "rows.jsonl": lines(),
    "raw-unicode.jsonl": lines(ensure_ascii=False),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(),
    "windows.jsonl": lines().replace(b"\n", b"\r\n"),
    "blank-lines.jsonl": b"\n \n" + lines().replace(b"\n", b"\n\n\t\n"),
    "no-last-newline.jsonl": lines().rstrip(b"\n"),
    "lines.json": lines(),
    "array.json": json.dumps(RECORDS, indent=1).encode(),
    "array.jsonl": json.dumps(RECORDS).encode(),
    "bom-array.json": b"\xef\xbb\xbf \r\n" + json.dumps(RECORDS).encode(),
    "rows.jsonl.gz": gzip.compress(lines()),
    "UPPER.JSONL.GZ": gzip.compress(lines()),
    "members.jsonl.gz": gzip.compress(HALF[0]) + gzip.compress(HALF[1]),
    "array.json.gz": gzip.compress(json.dumps(RECORDS).encode()),
    "rows.jsonl.zst": zstd(lines()),
    "frames.jsonl.zst": zstd(HALF[0]) + zstd(HALF[1]),
    "array.json.zst": zstd(json.dumps(RECORDS).encode()),
    "rows.parquet": parquet(),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_rows(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    rows = list(read_rows(tmp_path / name))
    assert [row.index for row in rows] == list(range(len(RECORDS)))
    assert [parse_row(row.payload) for row in rows] == PARSED


def test_a_parquet_table_of_conversations(tmp_path):
    records = [
        {"messages": messages("Hi", "你好"), "text": None},
        {"messages": None, "text": "Es war einmal."},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "t.parquet")
    rows = list(read_rows(tmp_path / "t.parquet"))
    assert [parse_row(row.payload) for row in rows] == [
        Conversation(HI),
        Conversation((Turn("text", "Es war einmal."),)),
    ]
    assert rows[1].location == f"{tmp_path / 't.parquet'}:row 1"


COLUMNS = {  # that Python has no values for
    "nanoseconds": pyarrow.array([1700000000123456789], pyarrow.timestamp("ns")),
    "a day too late": pyarrow.array([10**15], pyarrow.timestamp("ms")),
    "a duration too long": pyarrow.array([2**62], pyarrow.duration("s")),
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=list(COLUMNS))
def test_columns_that_nobody_reads_do_no_harm(column, tmp_path):
    path = tmp_path / "t.parquet"
    table = pyarrow.Table.from_pylist([{"messages": messages("Hi", "你好")}]).append_column("made", column)
    pyarrow.parquet.write_table(table, path)
    (row,) = read_rows(path, KEYS)
    assert row.payload["made"] is None
    assert parse_row(row.payload) == Conversation(HI)
    pyarrow.parquet.write_table(table.select(["made"]), path)
    (row,) = read_rows(path, KEYS)
    with pytest.raises(Refused, match="has the keys made; expected messages"):
        parse_row(row.payload)
    with pytest.raises(UserError, match="t.parquet: cannot be read as parquet: "):
        list(read_rows(path))


def test_of_an_array_only_what_is_asked_for_is_kept(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"text": "a", "embedding": [0.5] * 9}, 7]))
    assert [row.payload for row in read_rows(path, KEYS)] == [{"text": "a", "embedding": None}, 7]
    assert [row.payload for row in read_rows(path)] == [{"text": "a", "embedding": [0.5] * 9}, 7]


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


def test_a_row_knows_its_line_and_its_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\n{"text": "a"}\n\n\n{broken\n')
    rows = list(read_rows(path))
    assert [(row.index, row.location) for row in rows] == [(0, f"{path}:2"), (1, f"{path}:5")]


def test_lines_are_read_one_at_a_time(tmp_path):
    """The first row is there although the file cannot be read to its end."""
    content = gzip.compress(lines() * 2000)
    (tmp_path / "cut.jsonl.gz").write_bytes(content[: len(content) // 2])
    rows = read_rows(tmp_path / "cut.jsonl.gz")
    assert next(rows).index == 0
    with pytest.raises(UserError, match="cannot be read"):
        list(rows)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz", "x.jsonl.zst"])
def test_an_empty_file_has_no_rows(name, tmp_path):
    for content in (b"", b" \n\n"):
        packed = {".gz": gzip.compress, ".zst": zstd}.get((tmp_path / name).suffix, bytes)(content)
        (tmp_path / name).write_bytes(packed)
        assert list(read_rows(tmp_path / name)) == []


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_a_file_cut_anywhere_is_refused_never_read_in_part(pack, tmp_path):
    path = tmp_path / {"compress": "x.jsonl.gz", "zstd": "x.jsonl.zst"}[pack.__name__]
    whole = pack(lines())
    for length in [*range(1, 30), *range(30, len(whole) - 30, 17), *range(len(whole) - 30, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cannot be read"):
            list(read_rows(path))


BROKEN = {
    "flipped.jsonl.gz": (
        gzip.compress(lines())[:100] + b"\xff" * 50 + gzip.compress(lines())[150:],
        "cannot be read",
    ),
    "checksum.jsonl.gz": (gzip.compress(lines())[:-8] + bytes(8), "cannot be read"),
    "plain.jsonl.gz": (lines(), "cannot be read"),
    "plain.jsonl.zst": (lines(), "cannot be read"),
    "cut.json": (b'[{"text": "a"},\n{"text": ', r"cut.json:2: broken JSON"),
    "latin.json": (b'[{"text": "a"},\n{"text": "\xfc"}]', r"latin.json:2: is not UTF-8 at byte 26"),
    "deep.json": (b"[" * 100_000, "broken JSON: .*recursion"),
    "digits.json": (b"[" + b"9" * 5000 + b"]", "broken JSON: .*4300 digits"),
    "twice.json": (
        b'[{"text": "a", "text": "b"}]',
        "broken JSON: a key is twice: 'text' in an object {'text': 'b'}",
    ),
    "two-arrays.json": (b"[]\n[]", "broken JSON: Extra data"),
    "text.parquet": (b"PAR1 but no parquet", "cannot be read as parquet"),
    "cut.parquet": (parquet()[:-20], "cannot be read as parquet"),
    "rows.csv": (b"a,b", "unknown kind of file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_an_error_in_words(name, tmp_path):
    content, what = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=what):
        list(read_rows(tmp_path / name))


def test_lines_of_lists_are_told_how_they_are_read(tmp_path):
    (tmp_path / "x.jsonl").write_text('[{"role": "user"}]\n[{"role": "user"}]\n')
    with pytest.raises(UserError) as refused:
        list(read_rows(tmp_path / "x.jsonl"))
    assert refused.value.fix == "A file that begins with [ is read as one list of rows."


def test_two_columns_of_one_name_are_an_error_in_words(tmp_path):
    arrays = [pyarrow.array([text]) for text in "abc"]
    table = pyarrow.table(arrays, names=["prompt", "prompt", "completion"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="cannot be read as parquet: two columns have one name: prompt"):
        list(read_rows(tmp_path / "x.parquet"))


def test_bytes_that_are_no_text_in_a_parquet_file_are_an_error_in_words(tmp_path):
    binary = pyarrow.array([b"good", b"\xff\xfe"], pyarrow.binary())
    strings = pyarrow.Array.from_buffers(pyarrow.string(), 2, binary.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": strings}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="cannot be read as parquet: .*utf-8"):
        list(read_rows(tmp_path / "x.parquet"))


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
def test_a_folder_or_nothing_in_place_of_a_file_is_an_error_in_words(name, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        list(read_rows(tmp_path / name))
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        list(read_rows(tmp_path / name))
