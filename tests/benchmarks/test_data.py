"""Data before training: rows that differ, times of whole commands, and what they are of."""

import json
import sys

import numpy
import pytest
from conftest import DEMO

from benchmarks import data
from benchmarks.timing import KEYS
from fastling.data.conversation import parse_row
from fastling.data.rows import read_rows
from fastling.errors import RunError, UserError, run_command


def test_repeated_rows_are_all_made_different(tmp_path):
    out = tmp_path / "rows.jsonl"
    data.write_rows(DEMO / "held-out.jsonl", out, 100)
    rows = [parse_row(row.payload) for row in read_rows(out)]
    assert len(rows) == 100 == len({row.turns for row in rows})
    own = list(data.read_conversations(DEMO / "held-out.jsonl"))
    assert [row.turns for row in rows[: len(own)]] == [row.turns for row in own]
    assert rows[len(own)].turns[0].content == f"1. {own[0].turns[0].content}"


def test_a_file_without_conversations(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no conversation"):
        data.write_rows(tmp_path / "empty.jsonl", tmp_path / "out.jsonl", 3)


def test_a_command_is_timed_as_a_whole_with_the_peak_of_its_largest_process():
    held = "import time; x = bytearray(300 * 2**20); time.sleep(0.3); print('said')"
    told = data.timed([sys.executable, "-c", held])
    assert told["stdout"] == "said\n"
    assert 0.3 < told["seconds"] < 60
    assert 300 < told["peak_mib"] < 400


def test_a_command_that_fails_is_named_with_its_last_words():
    with pytest.raises(RunError, match="ended with status 3: last words"):
        data.timed([sys.executable, "-c", "import sys; print('last words', file=sys.stderr); sys.exit(3)"])


def test_a_failed_command_is_named_with_what_was_wrong():
    said = "import sys; sys.exit('error: --lang: unknown: xx\\n  Known are: en.')"
    with pytest.raises(RunError, match="ended with status 1: error: --lang: unknown: xx$"):
        data.timed([sys.executable, "-c", said])


@pytest.mark.parametrize(
    "given", [["--rows", "9"], ["--rows", "-1"], ["--rounds", "0"], ["--sequence-length", "0"]]
)
def test_numbers_that_leave_nothing_to_measure_are_refused(given):
    with pytest.raises(UserError, match=f"^{given[0]}: .*: {given[1]}$"):
        data.parse(given)


def test_rows_tell_the_command_with_files_by_their_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "measure", lambda options, folder: [{"case": "packing", "provider": "fastling",
        "rows": 1, "milliseconds": 1.0}])  # fmt: skip
    own = tmp_path / "own.jsonl"
    given = ["--data", str(own), "--tokenizer", "fastling:demo/tokenizer.model", "--rows", "40"]
    assert run_command(data.main, [*given, "--out", str(tmp_path / "rows.jsonl")]) == 0
    assert "trl is left out" in capsys.readouterr().out
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    more = "--tokenizer fastling:demo/tokenizer.model --rows 40 --out rows.jsonl"
    assert row["command"] == f"python -m benchmarks.data --data own.jsonl {more}"


def test_the_demos_data_are_found_from_every_folder(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise RunError("rows", "are written")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "make_weights", stop)
    monkeypatch.setattr(data, "prepare", stop)
    with pytest.raises(RunError, match="are written"):
        next(data.measure(data.parse(["--rows", "40"]), tmp_path))
    with pytest.raises(UserError, match="^--data: no such file or folder: nowhere.jsonl"):
        next(data.measure(data.parse(["--data", "nowhere.jsonl"]), tmp_path))


def test_packing_says_how_full_packs_are(monkeypatch):
    monkeypatch.setattr(data, "CONVERSATIONS_TO_PACK", 1000)
    assert data.packing_row(numpy.array([5]), capacity=10)["fill"] == 1.0
    assert data.packing_row(numpy.array([6]), capacity=10)["fill"] == 0.6


@pytest.mark.slow
def test_the_whole_on_the_demos_data(tmp_path, capsys):
    out = tmp_path / "data.jsonl"
    options = ["--rows", "400", "--rounds", "1", "--sequence-length", "512", "--template", "vicuna"]
    options += ["--data", str(DEMO / "train.jsonl"), "--out", str(out)]
    assert run_command(data.main, options) == 0
    rows = {(row["case"], row["provider"]): row for row in map(json.loads, out.read_text().splitlines())}
    assert all(set(KEYS) <= row.keys() for row in rows.values())
    whole, few = rows["prepare", "one process"], rows["prepare", "a tenth of the rows"]
    assert whole["tokens"] == rows["prepare", "all cores"]["tokens"] > 5 * few["tokens"]
    assert ("prepare", "trl") not in rows  # it is compared with another template only
    assert rows["loader", "fastling"]["batches_per_s"] > 0
    assert "prepare" in capsys.readouterr().out


def test_the_spread_is_from_quartile_to_quartile_as_in_every_row():
    runs = [
        {"seconds": seconds, "tokens": 10, "supervised_tokens": 5, "peak_mib": 1} for seconds in (9, 1, 2)
    ]
    row = data.prepare_row("one process", runs, 100)
    assert (row["milliseconds"], row["spread"], row["tokens_per_s"]) == (2000, 4000, 5)
