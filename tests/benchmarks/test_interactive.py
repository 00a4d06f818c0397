"""The control of the experiment: the same pairs, in the same direction, as single turns."""

import json
from itertools import groupby, islice

import pytest
from conftest import DEMO, tiny_settings
from interactive.parallel_text import write_corpus

from benchmarks import interactive
from benchmarks.timing import KEYS
from fastling import dialogues
from fastling.config import Source
from fastling.errors import UserError, run_command


def type_of(row: str) -> str:
    return json.loads(row)["type"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    made = write_corpus(folder)
    arguments = [
        "--source",
        made.first,
        "--target",
        made.second,
        "--source-lang",
        "de",
        "--target-lang",
        "en",
    ]
    arguments += ["--out", folder / "dialogues.jsonl", "--workers", 1]
    assert run_command(dialogues.main, list(map(str, arguments))) == 0
    return made


@pytest.mark.slow
def test_every_line_of_every_dialogue_is_one_question_and_one_answer(corpus):
    source = Source(name="de-en", path=str(corpus.first.parent / "dialogues.jsonl"))
    dialogues = interactive.read_dialogues(source)
    sides = {
        language: path.read_text(encoding="utf-8").splitlines()
        for language, path in zip(corpus.languages, (corpus.first, corpus.second), strict=True)
    }
    rows = list(interactive.single_turns(dialogues, corpus.first.parent))
    wanted = [(row["pair"], line) for row in dialogues for line in row["lines"]]
    assert len(rows) == len(wanted) > 300 and len({pair for pair, _ in wanted}) == 2
    for row, (pair, line) in zip(rows, wanted, strict=True):
        question, answer = row["messages"]
        origin, target = pair.split("-")
        assert (row["pair"], row["id"]) == (pair, f"de-en-{line}")
        assert sides[origin][line - 1] in question["content"]
        assert sides[target][line - 1] == answer["content"]


def test_rows_that_fastling_dialogues_did_not_write(tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"messages": []}\n')
    with pytest.raises(UserError, match="other.jsonl:1: lacks id"):
        interactive.read_dialogues(Source(name="other", path=str(path)))


@pytest.mark.slow
def test_both_arms_train_and_are_judged_by_type(corpus, tmp_path):
    """A run of a few seconds for each arm; the table has a row for every type and for single turns."""
    folder = corpus.first.parent
    settings = tiny_settings(tmp_path / "run")
    few = tmp_path / "few.jsonl"
    with open(folder / "dialogues.jsonl", encoding="utf-8") as whole:
        by_type = groupby(sorted(whole, key=type_of), type_of)
    few.write_text("".join(row for _, rows in by_type for row in islice(rows, 8)), encoding="utf-8")
    source = {"name": "de-en", "path": str(few)}
    settings["data"] |= {
        "sequence_length": 512,
        "tokenizer": str(DEMO / "tokenizer.model"),
        "sources": [source],
        "validation": [source],
    }
    settings |= {"checkpoint": {"every_steps": 6}, "evaluate": {"every_steps": 6, "samples": 0}}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(settings))
    arguments = ["--config", str(config), "--text", str(folder), "--out", str(tmp_path / "out")]
    assert run_command(interactive.main, arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "table.jsonl").read_text().splitlines()]
    assert all(set(KEYS) <= row.keys() and row["case"] == row.get("held_out") for row in rows)
    names = {row["held_out"] for row in rows if "held_out" in row}
    types = {row["type"] for row in interactive.read_dialogues(Source(**source))}
    assert types == set(dialogues.MIX) and names == {f"de-en.{name}" for name in types | {"single"}}
    assert all(0 < row[arm] < 20 for row in rows if "held_out" in row for arm in interactive.ARMS)
    steps = [(tmp_path / "out" / arm / "metrics.jsonl").read_text().count("\n") for arm in interactive.ARMS]
    assert steps == [6, 6]
    trained_on = [row["trained_on"] for row in rows if "trained_on" in row]
    assert trained_on == ["tokens", "supervised_tokens"]
