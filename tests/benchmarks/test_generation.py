"""The benchmark of generation times both sides on the same tokens, or says nothing."""

import json

import pytest
import torch
from conftest import run_python

from benchmarks import generation
from benchmarks.timing import KEYS
from fastling.errors import RunError, UserError


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    generation.write_model(folder, small=True)
    return folder


@pytest.mark.slow
def test_a_row_for_each_side_with_speed_spread_and_memory(tmp_path):
    more = ["--batch-sizes", 1, "--out", tmp_path / "rows.jsonl"]
    result = run_python("benchmarks.generation", "--rehearse", "--cases", "one", "--rounds", 2, *more)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["provider"] for row in rows] == ["fastling", "transformers, batches of 1"]
    for row in rows:
        assert row["bench"] == "generation" and row["case"] == "one" and row["new_tokens"] == 4
        assert row["torch"] == torch.__version__ and row["commit"] and row["date"] and row["device"]
        assert row["tokens_per_s"] == pytest.approx(4000 / row["milliseconds"], rel=0.01)
        assert set(KEYS) <= row.keys() and row["spread"] >= 0 and 50 < row["peak_mib"] < 5000
    assert "tokens/s" in result.stdout


def test_unmeasurable_settings_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for given in ("--rounds 0", "--threads -1", "--batch-sizes 4 0", "--device cuda"):
        option, *_, value = given.split()
        with pytest.raises(UserError, match=f"^{option}: .*: {value}"):
            generation._options(given.split())


def test_without_its_peer_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(generation, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package transformers"):
        generation._options([])


def test_every_case_has_a_rehearsal():
    assert [case.name for case in generation.REHEARSAL] == [case.name for case in generation.CASES]


def test_answers_of_the_mixed_case_end_at_different_times(model_folder):
    options = generation._options(["--rehearse", "--batch-sizes", "2"])
    mixed = generation.REHEARSAL[0]
    jobs = generation.providers(mixed, model_folder, options)
    said = [job() for job in jobs.values()]
    assert len(said) == 2 and said[0] == said[1]
    assert len({len(answer) for answer in said[0]}) > 2


def test_nothing_is_reported_where_the_tokens_differ(model_folder, monkeypatch):
    options = generation._options(["--rehearse", "--rounds", "1"])
    case = generation.REHEARSAL[-1]
    right = generation._theirs
    monkeypatch.setattr(
        generation, "_theirs", lambda *job: lambda: [[*ids[:-1], ids[-1] + 1] for ids in right(*job)()]
    )
    with pytest.raises(RunError, match=r"other tokens than ours for prompts \[0\]"):
        generation.measure(case, model_folder, options)
