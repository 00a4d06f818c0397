"""From command to first step: every second lies in a part, and a rank reads its own rows only."""

import json
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import startup
from fastling.errors import RunError, run_command
from fastling.model.huggingface import load_pretrained
from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig
from fastling.model.safetensors_folder import SafetensorsFolder

# 67 rows do not divide by 4, nor 44.
SMALL = LlamaConfig(
    vocab_size=67,
    hidden_size=32,
    intermediate_size=44,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.fixture(params=["one file", "shards"])
def zeros(request, tmp_path, monkeypatch):
    """A folder of a small model."""
    if request.param == "shards":
        monkeypatch.setattr(startup, "SHARD_BYTES", 10_000)
    startup.write_zeros(SMALL, tmp_path / "model")
    assert (
        len(list((tmp_path / "model").glob("*.safetensors"))) == {"one file": 1, "shards": 6}[request.param]
    )
    return tmp_path / "model"


# Parts ----------------------------------------------------------------------------------------------


def test_parts_add_up_to_the_time_from_the_start_to_the_end_of_the_last_part():
    began = time.monotonic()
    clock = startup.Clock(began - 1.0)
    time.sleep(0.02)
    with clock.part("first"):
        time.sleep(0.05)
    with clock.part("second"):
        pass
    with clock.part("first"):
        time.sleep(0.05)
    least = time.monotonic()
    time.sleep(0.05)
    parts = clock.parts()
    assert 1.12 <= sum(parts.values()) <= least - began + 1.0
    assert 0.1 <= parts["first"] < parts["first"] + parts["second"] < least - began
    assert parts["rest"] >= 1.02


def test_a_wrapped_call_returns_and_raises_what_it_did_and_is_timed_in_both():
    class Owner:
        def half(self, number: int, *, of: int) -> float:
            return of / number

    clock = startup.Clock(time.monotonic())
    clock.wrap("halves", Owner, "half")
    assert Owner().half(2, of=5) == 2.5
    once = clock.seconds["halves"]
    with pytest.raises(ZeroDivisionError):
        Owner().half(0, of=5)
    assert clock.seconds["halves"] > once > 0


def test_medians_are_of_the_whole_and_of_every_part_apart():
    runs = [{"a": 1.0, "b": 9.0}, {"a": 2.0, "b": 1.0}, {"a": 6.0, "b": 2.0}]
    told = startup.timed(runs)
    assert told["parts"] == {"a": 2000.0, "b": 2000.0}
    assert told["milliseconds"] == 8000.0  # of 10, 3 and 8 seconds
    assert told["spread"] == 3500.0


@pytest.mark.slow
def test_a_run_from_its_command_to_its_first_step(tiny_run, tmp_path, capsys, monkeypatch):
    out, stores, hear = tmp_path / "startup.jsonl", [], startup.hear

    def watched(*command):
        stores.append((command[-1], Path(command[-1]).exists()))
        return hear(*command)

    monkeypatch.setattr(startup, "hear", watched)
    began = time.monotonic()
    config = tiny_run()
    assert run_command(startup.main, ["--config", str(config), "--rounds", "1", "--out", str(out)]) == 0
    passed = time.monotonic() - began
    made, found = map(json.loads, out.read_text().splitlines())
    assert (made["case"], found["case"]) == ("store made", "store found")
    for row in (made, found):
        assert list(row["parts"]) == [startup.IMPORTS, *startup.PARTS, startup.REST]
        assert sum(row["parts"].values()) == pytest.approx(row["milliseconds"], rel=1e-6)
        assert all(milliseconds > 0 for milliseconds in row["parts"].values())
        assert row["parts"][startup.REST] < row["milliseconds"] / 2
        assert (row["bench"], row["config"]) == ("startup", "config.yaml")
        assert str(tmp_path) not in json.dumps(row)
    assert made["milliseconds"] + found["milliseconds"] < 1e3 * passed
    (store, *before), (same, *then) = stores
    assert (before, then) == ([False], [True]) and store == same
    assert not (tmp_path / "run").exists()  # what the config names is left alone
    shown = capsys.readouterr().out
    assert all(name.split()[0] in shown for name in (*startup.PARTS, "whole"))


@pytest.mark.slow
def test_a_run_that_cannot_start_says_why_in_its_own_words(tiny_run, tmp_path, capsys):
    config = tiny_run(optimizer={"learning": 1})
    assert run_command(startup.main, ["--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert f"{config}:1: unknown setting: optimizer.learning" in said
    assert "Traceback" not in said


# Loads ----------------------------------------------------------------------------------------------


def test_the_real_loader_finds_zeros(zeros):
    model = load_pretrained(zeros)
    for name, parameter in model.named_parameters():
        assert not parameter.count_nonzero(), name
    assert sum(parameter.numel() for parameter in model.parameters()) == 26_400


def test_zeros_take_no_room_on_the_disk(tmp_path):
    shape = LlamaConfig(num_hidden_layers=1)  # LLaMA-7B's, one layer of it
    total = startup.write_zeros(shape, tmp_path / "model")
    (file,) = (tmp_path / "model").glob("*.safetensors")
    assert 0 < file.stat().st_size - total < 10_000
    assert total > 900e6
    assert 512 * file.stat().st_blocks < 100_000


def share_of(rank: int, ranks: int) -> int:
    """Weights that torch.chunk gives a rank, parameter by parameter."""
    with torch.device("meta"):
        model = Llama(SMALL)
    chunks = [(parameter.chunk(ranks)[rank:] or [None])[0] for parameter in model.parameters()]
    return sum(0 if chunk is None else chunk.numel() for chunk in chunks)


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 4), (1, 4), (3, 4)])
def test_a_rank_asks_for_its_own_rows_and_no_others(zeros, rank, ranks):
    before = SafetensorsFolder.read, SafetensorsFolder.close
    told = startup.load_share(zeros, rank, ranks)
    assert told["asked_bytes"] == 2 * share_of(rank, ranks)
    assert told["share_bytes"] == 4 * share_of(rank, ranks)
    assert told["weights"] == share_of(0, 1)
    assert set(told["seconds"]) == {"laying out", "loading"}
    assert 0 <= told["own_seconds"] + told["kernel_seconds"] < 10
    assert 0 < told["before_bytes"] <= told["peak_bytes"]
    assert before == (SafetensorsFolder.read, SafetensorsFolder.close)


def test_files_are_mapped_only_where_they_are_read(tmp_path):
    """By the kernel's count, not the reader's."""
    shape = LlamaConfig(vocab_size=64_000, hidden_size=512, intermediate_size=512, num_hidden_layers=1)
    total = startup.write_zeros(shape, tmp_path / "model")
    told = startup.load_share(tmp_path / "model", 0, 8)
    assert told["asked_bytes"] == pytest.approx(total / 8, rel=0.01)
    assert 0.9 * told["asked_bytes"] < told["mapped_bytes"] < total / 4


@pytest.mark.slow
def test_a_load_in_a_process_of_its_own(tmp_path, capsys):
    out = tmp_path / "startup.jsonl"
    arguments = ["--load", "demo", "--ranks", "8", "--rounds", "1", "--out", str(out)]
    assert run_command(startup.main, arguments) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["case"], row["rank"], row["ranks"]) == ("load demo", 0, 8)
    assert row["asked_share"] == pytest.approx(1 / 8, rel=0.01)
    assert row["whole_bytes"] == 2 * row["weights"]
    assert row["milliseconds"] == pytest.approx(sum(row["parts"].values()), rel=1e-6)
    assert "zeros" in row["files"] and "no disk" in row["files"]
    assert "rank 0 of 8" in capsys.readouterr().out


def test_the_table_of_a_load(capsys):
    counts = {f"{name}_bytes": 2**30 for name in ("asked", "mapped", "share", "before", "peak")}
    row = {"case": "load 8b", "device": "cpu", "rank": 0, "ranks": 8, "whole_bytes": 8 * 2**30, **counts}
    row |= {"own_seconds": 0.5, "kernel_seconds": 0.25}
    row |= {"asked_share": 0.125, "parts": {"laying out": 250.0, "loading": 1500.0}}
    startup.print_load([row], Console(width=200))
    shown = capsys.readouterr().out
    assert "1.50 s" in shown and "1.000 GiB of 8.000, 1/8.00" in shown


# Words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--load", "9b"], "argument --load: invalid choice"),
        (["--ranks", "8"], "--ranks: has no effect without --load: 8"),
        (["--load", "8b", "--config", "a.yaml"], "--config: has no effect beside --load: a.yaml"),
        (["--load", "8b", "--ranks", "0"], "--ranks: must be > 0: 0"),
        (["--rounds", "0"], "--rounds: must be > 0: 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_impossible_options_are_refused(arguments, words, capsys):
    assert run_command(startup.main, arguments) == 2
    assert words in capsys.readouterr().err


def test_a_childs_mistake_is_told_as_it_told_it():
    told = startup.refusal(2, "ledger\nerror: a.yaml:3: lr: must be > 0: -1\n  Give more.\n")
    assert (told.where, told.what, told.fix) == ("a.yaml:3", "lr: must be > 0: -1", "Give more.")
    assert told.exit_status == 2
    told = startup.refusal(1, "Traceback (most recent call last):\n  File x\nValueError: what it was\n")
    assert isinstance(told, RunError) and told.what == "ended early: ValueError: what it was"
    assert startup.refusal(1, "error: disk: is full").exit_status == 1
    assert startup.refusal(-9, "").what == "ended early: without a word"
