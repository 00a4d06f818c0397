"""JSON that every reader takes for what it is, and what is read of a broken file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastling.json_files import json_line, json_text, read_json_lines


@given(st.text(st.characters(exclude_categories=())))
def test_json_is_one_line_for_every_reader_and_its_text_comes_back(text):
    r"""Also where it holds what `str.splitlines` breaks at, or half a surrogate pair, of a file's name."""
    line = json_line({"text": text})
    assert line.splitlines() == [line[:-1]]
    assert json.loads(line.encode()) == {"text": text}
    assert json.loads(json_text({"text": text}).encode()) == {"text": text}


def test_text_stays_readable_in_json():
    assert json_line("你好 😀\u2028") == '"你好 😀\\u2028"\n'


@pytest.mark.parametrize("rest", [b'{"step": 2, "lo', b'{"step": 2, "q": "\xe8\xaf', b"\0\0\0", b"[2]", b""])
def test_lines_spoilt_by_a_kill_are_skipped(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + rest + b'\n{"step": 3}\n')
    assert read_json_lines(path) == [{"step": 1, "loss": 2.0}, {"step": 3}]
    assert read_json_lines(tmp_path / "none.jsonl") == []
