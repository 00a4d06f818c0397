"""Results are read whole or refused by file and line, and sorted into the runs they were measured in."""

import json

import pytest
from benchmarks.page_rows import compared, machine, rung, timed_kernel, trained
from conftest import ROOT

from benchmarks.rows import newest_and_older, read, runs_of
from benchmarks.timing import KEYS, add_rows
from fastling.errors import UserError


def names(run) -> list[str]:
    return [row["provider"] for row in run.rows]


# Reading --------------------------------------------------------------------------------------------


def test_all_rows_are_read_but_a_last_line_cut_short(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [*compared(), timed_kernel(), {"bench": "unheard of", **machine()}]
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("\n".join(lines) + lines[0][:40])
    assert read(path) == rows
    path.write_text("")
    assert read(path) == []


def test_every_row_has_every_key_and_those_without_a_value_are_not_shown(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"bench": "unheard of", **machine()}
    add_rows([row], path)
    assert set(KEYS) <= json.loads(path.read_text()).keys()
    assert read(path) == [row]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks/results").glob("*.jsonl")), ids=lambda path: path.stem
)
def test_kept_rows_have_every_key(path):
    of_training = {"supervised_tokens_per_s", "tokens_per_s", "mfu", "memory_gib"}
    for row in map(json.loads, path.read_text().splitlines()):
        assert set(KEYS) | (of_training if row["bench"] == "train" else set()) <= row.keys()


@pytest.mark.parametrize("line, words", [
    (b"{broken", "no JSON"),
    (b"\xff\xfe{}", "no JSON"),
    (b'"\\ud800"', "no JSON"),
    (b"[" * 100_000, "no JSON"),
    (b"[1, 2]", "no object"),
    (b"{}", "commit must be text: None"),
    (json.dumps(trained(date="yesterday")).encode(), "date must be a date: 'yesterday'"),
    (json.dumps(trained(milliseconds="4")).encode(), "milliseconds must be a number > 0: '4'"),
    (json.dumps(trained(milliseconds=0)).encode(), "milliseconds must be a number > 0: 0"),
    (json.dumps(trained(loss=float("nan"))).encode(), "loss must be a number: nan"),
    (json.dumps(trained(loss=10**400)).encode(), "loss must be a number: 1000"),
    (json.dumps(trained(memory_gib=True)).encode(), "memory_gib must be a number: True"),
    (json.dumps(trained(parts={"forward": []})).encode(), "parts must be an object of numbers"),
    (json.dumps(trained(run=None)).encode(), "run must be an object: None"),
    (json.dumps(timed_kernel(ratio_to_floor="inf")).encode(), "ratio_to_floor must be a number: 'inf'"),
    (json.dumps(timed_kernel(copy_gb_s=None)).encode(), "copy_gb_s must be a number > 0: None"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_a_line_that_is_no_row_is_named_and_refused(tmp_path, line, words):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(trained()).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError) as refused:
        read(path)
    assert refused.value.where == f"{path}:2"
    assert refused.value.what.startswith(words)


def test_an_unmeasured_row_needs_no_numbers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(compared()[2]) + "\n" + json.dumps(timed_kernel(milliseconds=None)) + "\n")
    assert len(read(path)) == 2


# Runs -----------------------------------------------------------------------------------------------


def test_trainers_that_were_measured_side_by_side_are_one_run():
    (run,) = runs_of(compared())
    assert names(run) == ["fastling", "trl", "plain loop, padded"]


@pytest.mark.parametrize("changes", [
    {"device": "NVIDIA H200"}, {"commit": "other"}, {"case": "1b"},
    {"run": {"size": "41m", "sequence_length": 512}}, {"torch": "2.14"},
], ids=str)  # fmt: skip
def test_rows_with_other_settings_are_another_run(changes):
    first, second, third = compared()
    assert sorted(map(len, map(names, runs_of([first, second | changes, third])))) == [1, 2]


def test_rows_measured_later_are_another_run():
    rows = [trained(), trained("trl", date="2026-11-21T02:11:00+00:00")]
    assert [names(run) for run in runs_of(rows)] == [["trl"], ["fastling"]]


def test_a_trainer_is_in_a_run_once():
    """Two runs of a minute each lie close together, and their ratios do not mix."""
    again = [row | {"date": "2026-11-21T02:01:00+00:00"} for row in compared()]
    assert [names(run)[0] for run in runs_of([*compared(), *again])] == ["fastling", "fastling"]


def test_the_newest_run_is_first_wherever_it_stands_and_in_whatever_zone():
    dates = [
        "2026-11-21T09:00:00+00:00",
        "2026-11-21T11:00:00+08:00",
        "2026-11-22",
        "2026-11-21T05:00:00+00:00",
    ]
    found = runs_of(trained(date=date) for date in dates)
    assert [run.rows[0]["date"] for run in found] == [dates[2], dates[0], dates[3], dates[1]]


def test_a_newer_run_takes_the_place_of_an_older_one_of_the_same_subject_only():
    earlier, later = {"date": "2026-11-20"}, {"date": "2026-11-22"}
    rows = [trained(**earlier), trained(**earlier, case="1b"), trained(**earlier, device="NVIDIA H200")]
    rows += [rung("packed", **earlier), trained(**later)]
    longer = trained(date="2026-11-23")
    longer["run"] = longer["run"] | {"steps": 40}
    newest, older = newest_and_older(runs_of([*rows, longer]))
    assert [run.rows[0] for run in newest] == [longer, *rows[1:4]]
    assert [run.rows[0] for run in older] == [rows[4], rows[0]]


def test_of_a_bench_that_nobody_knows_a_run_is_what_was_measured_within_minutes():
    rows = [{"bench": "odd", "value": number, **machine()} for number in range(3)]
    rows.append({"bench": "odd", "value": 3, **machine(date="2026-11-21T02:30:00+00:00")})
    assert [[row["value"] for row in run.rows] for run in runs_of(rows)] == [[3], [0, 1, 2]]


def test_a_line_measured_later_replaces_no_other_line():
    rows = [
        {"bench": "growth", "case": "demo", "line": line, **machine(date=date)}
        for line, date in (("length", "2026-11-20"), ("vocabulary", "2026-11-21"), ("length", "2026-11-22"))
    ]
    newest, older = newest_and_older(runs_of(rows))
    assert [run.rows[0] for run in newest] == [rows[2], rows[1]]
    assert [run.rows[0] for run in older] == [rows[0]]
