"""Files to rows: every kind of file gives the same ones, and what cannot be read is said in words."""

import gzip
import json
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from fastling.data import rows as rows_module
from fastling.data.conversation import KEYS, Conversation, Refused, Turn, parse_row
from fastling.data.rows import read_rows
from fastling.errors import UserError

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你好"}]
CONVERSATION = Conversation((Turn("user", "Hi"), Turn("assistant", "你好")))
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
        {"messages": MESSAGES, "text": None},
        {"messages": None, "text": "Es war einmal."},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "t.parquet")
    rows = list(read_rows(tmp_path / "t.parquet"))
    assert [parse_row(row.payload) for row in rows] == [
        CONVERSATION,
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
    table = pyarrow.Table.from_pylist([{"messages": MESSAGES}]).append_column("made", column)
    pyarrow.parquet.write_table(table, path)
    (row,) = read_rows(path, KEYS)
    assert row.payload["made"] is None
    assert parse_row(row.payload) == CONVERSATION
    pyarrow.parquet.write_table(table.select(["made"]), path)
    (row,) = read_rows(path, KEYS)
    with pytest.raises(Refused, match="has the keys made; expected messages"):
        parse_row(row.payload)
    with pytest.raises(UserError, match="t.parquet: cannot be read as parquet: "):
        list(read_rows(path))


def test_unread_keys_of_an_array_are_dropped(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"text": "a", "embedding": [0.5] * 9}, 7]))
    assert [row.payload for row in read_rows(path, KEYS)] == [{"text": "a", "embedding": None}, 7]
    assert [row.payload for row in read_rows(path)] == [{"text": "a", "embedding": [0.5] * 9}, 7]


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


def test_an_array_is_read_item_by_item_and_never_held_whole(tmp_path):
    path = tmp_path / "x.json"
    record = {"text": "你好 ä " * 1000}
    with open(path, "w", encoding="utf-8") as file:
        file.write("[" + ",\n".join([json.dumps(record, ensure_ascii=False)] * 1500) + ", {broken]")
    assert path.stat().st_size > 12 * rows_module.BYTES_AT_ONCE
    tracemalloc.start()
    try:
        rows = read_rows(path)
        assert all(next(rows).payload == record for _ in range(1500))
        assert tracemalloc.get_traced_memory()[1] < 8 * rows_module.BYTES_AT_ONCE
    finally:
        tracemalloc.stop()
    with pytest.raises(UserError, match="x.json:1500: broken JSON: "):
        next(rows)


WHOLE = (
    "[]",
    " [ ] \n",
    "[1]",
    "[12345, -0.5e3, null, true, [[], {}], {}]",
    '["]", "\\"", "\\ud83d\\ude00", "ä你😀"]',
)
BROKEN = (
    *("[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1]]", "[1],", "[1}", "[tru", "[\n1,\n\n]"),
    *('["a', '["\\u12'),
)


@pytest.mark.parametrize("text", WHOLE + BROKEN)
def test_an_array_read_in_parts_of_any_size_is_the_same_or_as_broken(text, tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    for size in (1, 2, 3, 5, 1000):
        monkeypatch.setattr(rows_module, "BYTES_AT_ONCE", size)
        try:
            expected = json.loads(text)
        except json.JSONDecodeError as error:
            with pytest.raises(UserError, match=f"x.json:{error.lineno}: broken JSON: "):
                list(read_rows(path))
        else:
            assert [row.payload for row in read_rows(path)] == expected


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_invalid_utf_8_is_found_across_chunks_of_an_array(size, tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "BYTES_AT_ONCE", size)
    content = '[\n"ä你",\n"'.encode()
    for broken in (b'\xe4"]', b"\xe4\xbd", b'\xff"]'):
        (tmp_path / "x.json").write_bytes(content + broken)
        with pytest.raises(UserError, match=f"x.json:3: is not UTF-8 at byte {len(content)}$"):
            list(read_rows(tmp_path / "x.json"))


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


def checked_parquet() -> bytes:
    """Plain text with checksums, as Spark writes them."""
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": ["Once upon a time"]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pyarrow.parquet.write_table(table, sink, write_page_checksum=True, **plain)
    return sink.getvalue().to_pybytes()


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
    "flipped.parquet": (checked_parquet().replace(b"Once", b"Nonc"), "parquet: .*CRC checksum"),
    "rows.csv": (b"a,b", "unknown kind of file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_an_error_in_words(name, tmp_path):
    content, what = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=what):
        list(read_rows(tmp_path / name))


def test_lines_of_lists_are_explained(tmp_path):
    (tmp_path / "x.jsonl").write_text('[{"role": "user"}]\n[{"role": "user"}]\n')
    with pytest.raises(UserError) as refused:
        list(read_rows(tmp_path / "x.jsonl"))
    assert refused.value.fix == "A file that begins with [ is read as one list of rows."


def test_two_columns_of_one_name_are_an_error(tmp_path):
    arrays = [pyarrow.array([text]) for text in "abc"]
    table = pyarrow.table(arrays, names=["prompt", "prompt", "completion"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="cannot be read as parquet: two columns have one name: prompt"):
        list(read_rows(tmp_path / "x.parquet"))


def test_invalid_utf_8_in_a_parquet_file_is_an_error(tmp_path):
    binary = pyarrow.array([b"good", b"\xff\xfe"], pyarrow.binary())
    strings = pyarrow.Array.from_buffers(pyarrow.string(), 2, binary.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": strings}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="cannot be read as parquet: .*utf-8"):
        list(read_rows(tmp_path / "x.parquet"))


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
def test_a_folder_or_a_missing_file_is_an_error(name, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        list(read_rows(tmp_path / name))
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        list(read_rows(tmp_path / name))
