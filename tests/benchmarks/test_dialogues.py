"""The benchmark of dialogues measures what a user would run."""

import json

import pytest
from conftest import run_python
from interactive.parallel_text import write_corpus

from benchmarks import dialogues
from fastling.errors import UserError


@pytest.mark.slow
def test_a_row_with_speed_and_memory(tmp_path):
    corpus = write_corpus(tmp_path)
    arguments = ["--source", corpus.first, "--target", corpus.second, "--source-lang", corpus.first_language]
    arguments += ["--target-lang", corpus.second_language, "--pairs", 900, "--count", 100, "--workers", 1]
    result = run_python("benchmarks.dialogues", *arguments)
    assert result.returncode == 0, result.stderr
    row = json.loads(result.stdout)
    assert row["pairs"] == 900 and row["dialogues"] == 100
    assert row["dialogues_per_s"] > 0 and row["seconds"] > 0
    assert 20 < row["peak_mib"] < 5000


@pytest.mark.parametrize("option", ["--pairs", "--count", "--workers"])
def test_numbers_that_leave_nothing_to_measure_are_refused(option):
    files = ["--source", "a", "--target", "b", "--source-lang", "de", "--target-lang", "en"]
    with pytest.raises(UserError, match=f"^{option}: must be > 0: -1$"):
        dialogues.main([*files, option, "-1"])


@pytest.mark.slow
def test_a_file_that_cannot_be_used_is_named(tmp_path):
    corpus = write_corpus(tmp_path)
    (tmp_path / "empty").write_text("")
    languages = ["--source-lang", corpus.first_language, "--target-lang", corpus.second_language]
    result = run_python(
        "benchmarks.dialogues", "--source", tmp_path / "empty", "--target", corpus.second, *languages
    )
    assert result.returncode == 2 and "empty: is empty" in result.stderr
