"""A result is JSON, whole, and reads back."""

import json

from fastling.evaluation.report_page import read_result
from fastling.evaluation.result import Result, TableData


def test_a_result_reads_back_from_json_as_it_was(tmp_path):
    table = TableData("title", ("name", "score"), (("a", "1.0"), ("中", "2.0")))
    kept = Result("exam", {"accuracy": 50.0}, (table,), ("a note",)).as_json()
    path = tmp_path / "r.json"
    path.write_text(json.dumps(kept), encoding="utf-8")
    back = read_result(path)
    assert back["accuracy"] == 50 and back["kind"] == "exam" and back["notes"] == ["a note"]
    [read] = back["tables"]
    assert TableData(read["title"], tuple(read["columns"]), tuple(map(tuple, read["rows"]))) == table
