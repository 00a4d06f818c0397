"""How cost grows: steps of random tokens that are steps of training, and rows that say what they are of."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import growth
from benchmarks.growth import Point
from benchmarks.train import Result
from fastling.data.batches import IGNORED
from fastling.errors import UserError, run_command
from fastling.terminal import make_console

TINY = Point("demo", "documents in a pack", 2, 32, 2, micro_batches=2, vocab_size=64)


def told(*seconds: float) -> Result:
    return Result(steps=[{"seconds": each, "loss": 1.0, "parts": {}} for each in seconds], peak_gib=0.5)


class Pretended(growth.Child):
    """A point whose every step takes so many seconds, without a process."""

    def __init__(self, point, folder):
        self.point, self.result = point, Result()

    def start(self):
        pass

    def make_steps(self, number):
        self.result.steps += [{"seconds": float(self.point.value)} for _ in range(number)]

    def end(self):
        self.result.peak_gib = 1.0

    stop = start


@pytest.mark.slow
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 4))
def test_a_random_step_is_supervised_at_the_end_of_every_document(lengths, micro_batches, ranks):
    if not sum(map(growth.supervised_of, lengths)):
        lengths = [*lengths, 10]
    step = growth.random_step(lengths, micro_batches, 50, ranks)
    assert step.tokens == ranks * micro_batches * sum(lengths)
    assert step.squared_tokens == ranks * micro_batches * sum(length**2 for length in lengths)
    assert len(step.batches) == micro_batches
    for batch in step.batches:
        assert batch.cu_seqlens.tolist() == [0, *torch.tensor(lengths).cumsum(0).tolist()]
        wanted, positions = [], []
        for start, length in zip(batch.cu_seqlens.tolist(), lengths, strict=False):
            positions += range(length)
            document = batch.tokens[start : start + length].tolist()
            first = length - 1 - growth.supervised_of(length)
            wanted += [document[i + 1] if first <= i < length - 1 else IGNORED for i in range(length)]
        assert batch.labels.tolist() == wanted
        assert batch.positions.tolist() == positions
        assert batch.labels[batch.loss_index].tolist() == [label for label in wanted if label != IGNORED]
    supervised = ranks * sum(len(batch.loss_index) for batch in step.batches)
    assert supervised == step.supervised_tokens
    assert ranks * sum(float(batch.weights.sum()) for batch in step.batches) == pytest.approx(1)


def test_two_of_five_tokens_are_supervised():
    step = growth.random_step([1000, 500], 1, 50)
    assert step.supervised_tokens == 600


def test_along_a_line_only_what_it_is_named_after_grows():
    lengths, documents, vocabularies = growth.make_points("demo", 32768)
    assert [point.document_tokens for point in lengths] == growth.LENGTHS
    assert {sum(point.lengths) * point.micro_batches for point in lengths} == {32768}
    assert [point.documents for point in documents] == growth.DOCUMENTS
    assert {sum(point.lengths) for point in documents} == {8192}
    assert [point.shape.vocab_size for point in vocabularies] == growth.VOCABULARIES
    for line in (documents, vocabularies):
        assert {point.micro_batches for point in line} == {4}
        assert len({dataclasses.replace(each, value=0, vocab_size=0) for each in vocabularies}) == 1


def test_where_a_document_is_longer_than_a_step_the_step_is_the_document():
    lengths, *_ = growth.make_points("demo", 8192)
    tokens = [sum(point.lengths) * point.micro_batches for point in lengths]
    assert tokens == [8192] * 5 + [16384, 32768]


def test_a_row_is_of_the_timed_steps_and_of_the_work_by_exact_count():
    row = growth.make_row(TINY, told(99.0, 2.0, 4.0, 3.0))
    assert (row["milliseconds"], row["steps"], row["tokens"]) == (3000.0, 3, 128)
    assert row["spread"] == 1000.0 and row["tokens_per_s"] == pytest.approx(128 / 3)
    hidden, layers, ffn = 192, 3, 512
    weights = layers * (3 * hidden * hidden + hidden * hidden + 3 * hidden * ffn)
    attention = 12 * layers * hidden * (4 * 32**2) / 2
    last = hidden * hidden + 3 * hidden * ffn  # after the last attention, for supervised tokens only
    needed = 6 * (weights - last) * 128 + 6 * (64 * hidden + last) * (4 * 13) + attention
    assert row["needed_tflop"] == pytest.approx(needed / 1e12)
    assert row["tflop_per_s"] == pytest.approx(needed / 3e12)


def test_a_point_that_failed_says_so_and_has_no_time():
    row = growth.make_row(TINY, Result(error="ended early: out of memory"))
    assert row["status"] == "ended early: out of memory" and "milliseconds" not in row


def test_time_over_work_is_one_at_the_first_point_of_each_line(capsys):
    rows = [
        growth.make_row(dataclasses.replace(TINY, line=line), told(0.0, seconds))
        for line in ("first", "second")
        for seconds in (2.0, 6.0)
    ]
    rows.append(growth.make_row(dataclasses.replace(TINY, line="second"), Result(error="ended early")))
    growth.print_rows(rows, growth.Console(width=140))
    lines = capsys.readouterr().out.splitlines()
    last_columns = [line.split("│")[-2].strip() for line in lines if " ± " in line]
    assert last_columns == ["1.00", "3.00", "1.00", "3.00"]
    assert any("ended early" in line for line in lines)


@pytest.mark.parametrize("options", [["--size", "900b"], ["--steps", "0"]])
def test_impossible_options_are_refused(options, capsys):
    assert run_command(growth.main, options) == 2
    assert options[0] in capsys.readouterr().err


@pytest.mark.slow
def test_points_take_turns_and_one_that_dies_holds_up_nobody(tmp_path, monkeypatch, capsys):
    """Real processes; a document of no tokens is what the second dies of."""
    broken = dataclasses.replace(TINY, value=3, document_tokens=0)
    monkeypatch.setattr(growth, "make_points", lambda size, tokens: [[TINY, broken]])
    out = tmp_path / "rows.jsonl"
    assert run_command(growth.main, ["--steps", "2", "--out", str(out)]) == 1
    good, bad = map(json.loads, out.read_text().splitlines())
    assert good["status"] == "measured" and good["steps"] == 2 and good["milliseconds"] > 0
    assert 0.05 < good["memory_gib"] < 20
    assert bad["status"].startswith("ended early") and bad["milliseconds"] is None


@pytest.mark.slow
def test_a_step_trains(tmp_path):
    """The loss of the same random tokens falls, which it does only where the optimizer moves the weights."""
    child = growth.Child(TINY, tmp_path)
    try:
        child.start()
        child.make_steps(8)
        child.end()
    finally:
        child.stop()
    losses = [step["loss"] for step in child.result.steps]
    assert len(losses) == 8 and losses[-1] < losses[0] == pytest.approx(4.16, abs=0.3)  # ln 64


def test_alone_is_one_after_another(monkeypatch):
    together = []
    monkeypatch.setattr(
        growth,
        "measure_together",
        lambda points, *_: together.append(len(points)) or [told(0, 1)] * len(points),
    )
    for alone in (False, True):
        list(growth.measure([[TINY, TINY]], 1, alone, make_console(quiet=True)))
    assert together == [2, 1, 1]


def test_a_size_is_one_of_the_tables():
    with pytest.raises(UserError, match="--size"):
        growth.parse(["--size", "3b"])


def test_a_slow_point_leaves_the_rounds_to_the_others(monkeypatch, tmp_path):
    monkeypatch.setattr(growth, "Child", Pretended)
    points = [dataclasses.replace(TINY, value=seconds) for seconds in (1, 10, 100)]
    results = growth.measure_together(points, 5, tmp_path)
    assert [len(result.steps) - growth.WARM_UP for result in results] == [5, 2, 1]
