"""Training beside its peers: the same packs for all, and no time for who does other work."""

import contextlib
import dataclasses
import gc
import io
import json
import shlex
import shutil
import subprocess

import pytest
import torch
from benchmarks.page_rows import trained
from conftest import DEMO, ROOT

from benchmarks import room, train, trainers, worker
from benchmarks.timing import describe_machine, make_table_console
from benchmarks.train import Counts, Result
from benchmarks.training_case import Case, make_case, read_packs
from fastling.data.batches import Normaliser, make_batch
from fastling.errors import RunError, UserError, run_command
from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig
from fastling.terminal import make_console
from fastling.training.work import Work

DATA = {"data": str(DEMO / "train.jsonl"), "tokenizer": str(DEMO / "tokenizer.model")}
SMALL = Case("demo", **DATA, sequence_length=256, batch_tokens=512, micro_batch_tokens=512, steps=3)

SHAPE = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
)
MACHINE = dataclasses.replace(describe_machine(torch.device("cpu")), copy_gb_s=1.0, matrix_tflops=1e-6)


def told(*losses: float, seconds: float = 1.0) -> Result:
    parts = {"forward": seconds / 2}
    return Result(steps=[{"loss": loss, "seconds": seconds, "parts": parts} for loss in losses], peak_gib=1.0)


@pytest.fixture(scope="module")
def rows():
    """Of ours, of a peer that is half as fast, and of one whose loss is not ours."""
    results = {
        "fastling": told(8.0, 7.0, 6.0, 5.0),
        "slower": told(8.0, 7.1, 6.1, 5.05, seconds=2.0),
        "other": told(8.0, 7.0, 6.0, 5.2, seconds=0.1),
    }
    counts = Counts(tokens=500.0, supervised=200.0, squared=10_000.0)
    return list(train.make_rows(SMALL, counts, results.items(), Work(SHAPE), MACHINE))


def test_speed_is_tokens_of_a_step_over_the_median_step(rows):
    ours, slower, _ = rows
    assert (ours["supervised_tokens_per_s"], ours["tokens_per_s"]) == (200.0, 500.0)
    assert slower["supervised_tokens_per_s"] == 100.0
    assert ours["padded_tokens_per_s"] == 512.0
    assert ours["parts"] == {"forward": 500.0}


def test_work_is_a_share_of_what_the_machines_own_products_reach(rows):
    for row in rows[:2]:
        assert row["mfu"] == pytest.approx(row["tflop_per_s"] / 1e-6)
        assert row["mfu_usual_count"] > row["mfu"]  # it counts the head on all tokens, and all pairs of them


def test_a_trainer_with_another_loss_gets_no_time(rows):
    other = rows[2]
    assert other["status"] == "other work: its loss is 5.2000, the first one's 5.0000"
    assert "milliseconds" not in other and "supervised_tokens_per_s" not in other


def test_a_non_finite_loss_is_reported_and_is_no_reference():
    """NaN is not further from a number than is allowed, and no JSON, so that no page could be made of it."""
    results = [("broken", told(8.0, float("nan"), float("nan"))), ("fastling", told(8.0, 7.0, 6.0))]
    counts = Counts(tokens=500.0, supervised=200.0, squared=10_000.0)
    broken, ours = train.make_rows(SMALL, counts, results, Work(SHAPE), MACHINE)
    assert broken["status"] == "its loss became nan" and "milliseconds" not in broken
    assert ours["status"] == "measured"
    json.dumps([broken, ours], allow_nan=False)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "without a word"),
        ("Traceback:\nKeyError: 'x'\n", "KeyError: 'x'"),
        (
            "[rank0]: fastling.errors.RunError: cuda:0: CUDA out of memory. Tried to allocate 9 GiB\n"
            "[rank0]:   Lower train.micro_batch_tokens, or use more GPUs.\n",
            "fastling.errors.RunError: cuda:0: CUDA out of memory. Tried to allocate 9 GiB",
        ),
        (
            "torch.AcceleratorError: CUDA error: an illegal memory access was encountered\n"
            "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n\n",
            "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
        ),
        ("Segmentation fault\n", "Segmentation fault"),
    ],
)
def test_the_last_words_say_what_was_wrong_and_not_how_to_mend_it(log, words):
    assert worker.last_words(log) == words


def test_on_a_gpu_one_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(worker, "MOST_SILENT_MINUTES", 0.001)
    hangs = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    monkeypatch.setattr(worker.subprocess, "Popen", lambda *_, **__: hangs)
    with pytest.raises(RunError, match=r"was silent for 0.001 minutes: without a word"):
        worker.TrainerWorker("packed", tmp_path, processes=1).start()
    hangs.communicate()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a trainer closes no files
def test_a_full_disk_stops_no_trainer_since_nothing_is_saved(tmp_path, monkeypatch):
    """The largest models would want 110 GiB for checkpoints that are never made."""
    make_case(SMALL, tmp_path)
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    gate = ClosedGate()
    with pytest.raises(trainers.Finished):
        trainers.ours(SMALL, tmp_path, gate)
    assert gate.settings["micro_batches"] == 1
    gc.collect()  # here, where it may warn, and in no other test


class ClosedGate:
    """Lets no step begin."""

    def say(self, settings: dict, **_) -> None:
        self.settings = settings

    def begin(self) -> None:
        raise trainers.Finished


def test_the_first_steps_do_not_count():
    result = told(3.0, 2.0, 1.0)
    for step in result.steps[: train.WARM_UP]:
        step["seconds"] = 1e6
    results = [("fastling", result)]
    rows = train.make_rows(SMALL, Counts(10.0, 5.0, 1.0), results, Work(SHAPE), MACHINE)
    assert next(rows)["milliseconds"] == 1000.0


def test_a_table_in_a_pipe_shows_every_number_whole(capsys):
    shares = {"matrix_tflops": 1.0, "mfu": 0.1, "mfu_usual_count": 0.2}
    train.print_rows([trained("+ head on supervised rows", **shares)], make_table_console())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│ + head")]
    shown = [cell.strip() for cell in line.split("│")[2:-1]]
    assert shown == ["740", "1,937", "4,172 ± 289", "6.22", "1.00", "10.0% (20.0%)", "1.1047"]


@pytest.mark.slow
def test_peers_are_given_the_very_packs_that_fastling_takes(tmp_path):
    prepared = make_case(SMALL, tmp_path)
    packs = read_packs(tmp_path)
    assert len(packs) == SMALL.steps * SMALL.packs == len(prepared.plan)
    for number, pack in enumerate(packs):
        documents = [prepared.training.document(each) for each in prepared.plan.pack(number).tolist()]
        assert pack["input_ids"] == [token for tokens, _ in documents for token in tokens.tolist()]
        assert pack["seq_lengths"] == [len(tokens) for tokens, _ in documents]
        supervised = sum(int((spans[:, 1] - spans[:, 0]).sum()) for _, spans in documents)
        assert sum(label != -100 for label in pack["labels"]) == supervised
        pairs = zip(pack["input_ids"], pack["labels"], strict=True)
        assert all(label in (-100, token) for token, label in pairs)


def test_rows_of_the_padded_loop_hold_every_conversation_once():
    pack = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, 3, -100, 5], "seq_lengths": [3, 2]}
    rows = list(trainers.conversations(pack))
    assert rows == [([1, 2, 3], [-100, 2, 3]), ([4, 5], [-100, 5])]
    padded = trainers.pad(rows)
    assert padded["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert padded["labels"].tolist() == [[-100, 2, 3], [-100, 5, -100]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_a_trainer_that_cannot_run_here_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="trl cannot run here: trl is not installed"):
        train.choose("trl", trainers.PEERS)
    with pytest.raises(UserError, match="no such trainer: axolotl"):
        train.choose("axolotl", trainers.PEERS)
    assert train.choose(None, trainers.PEERS) == ["fastling"]
    with pytest.raises(UserError, match="plain loop, padded cannot run here: it runs in one process only"):
        train.choose("plain loop, padded", trainers.PEERS, processes=2)


# On a GPU -------------------------------------------------------------------------------------------

H100, H200 = (
    dataclasses.replace(MACHINE, device=name, gpu_gib=gib) for name, gib in (("H100", 79.1), ("H200", 139.8))
)


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "options"), [(MACHINE, ["--ladder"]), (H100, ["--ladder"]), (H100, [])])
def test_a_row_is_kept_before_the_next_trainer_begins(tmp_path, monkeypatch, machine, options):
    """Whatever ends the command, what was measured stays; on a GPU, too, where no two have room at once."""
    out, kept = tmp_path / "rows.jsonl", []

    def run_alone(name, folder, case):
        kept.append(len(out.read_text().splitlines()) if out.exists() else 0)
        return Result(error="ended early") if len(kept) == 2 else told(8.0, 7.0, 6.0)

    monkeypatch.setattr(train, "run_alone", run_alone)
    monkeypatch.setattr(train, "measure_machine", lambda: machine)
    monkeypatch.setattr(train, "missing", lambda *_: None)
    small = ["--size", "demo", "--sequence-length", "256", "--batch-tokens", "512", "--steps", "3"]
    assert train.main([*small, *options, "--out", str(out)]) == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    known = trainers.LADDER if options else trainers.PEERS
    assert [row["provider"] for row in rows] == list(known) and kept == list(range(len(known)))
    assert [row["status"] for row in rows] == ["measured", "ended early", *["measured"] * (len(known) - 2)]


def case_of(size: str, tokens: int = 16384) -> Case:
    return Case(size, **DATA, sequence_length=4096, batch_tokens=tokens, micro_batch_tokens=tokens)


@pytest.mark.parametrize(
    ("machine", "case", "name", "fits"),
    [
        (H100, case_of("1b"), "packed", True),
        (H100, case_of("1b", 32768), "packed", False),  # logits of every token
        (H100, case_of("1b", 32768), "+ kernels", True),
        (H100, case_of("1b"), "trl", True),
        (H100, case_of("7b"), "+ compile, full", False),
        (H200, case_of("7b"), "packed", False),
        (H200, case_of("7b"), "+ compile", False),
        (H200, case_of("7b"), "+ compile, full", True),
        (H200, case_of("8b"), "+ compile, full", True),
        (H100, case_of("8b"), "trl", False),
        (H200, case_of("8b"), "trl", True),
        (MACHINE, case_of("8b"), "packed", True),  # of a CPU nothing is known
    ],
    ids=lambda value: getattr(value, "device", None) or getattr(value, "size", None),
)
def test_trainers_too_large_for_the_gpu_are_known_beforehand(tmp_path, machine, case, name, fits):
    reason = room.lacks_room(trainers.TRAINERS[name], case, tmp_path, 0.4, machine.gpu_gib)
    assert reason is None if fits else reason.endswith(f" GiB of the GPU's {machine.gpu_gib:.0f}")


def test_a_trainer_too_large_for_the_gpu_is_skipped_and_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "run_alone", lambda *_: pytest.fail("started"))
    refused = train.one_by_one(["packed"], tmp_path, SMALL, make_console(quiet=True), lambda name: "no room")
    (row,) = train.make_rows(SMALL, Counts(1.0, 1.0, 1.0), refused, Work(SHAPE), MACHINE)
    assert (row["provider"], row["status"]) == ("packed", "no room") and "loss" not in row


def test_on_a_gpu_trl_has_flash_attention_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(trainers, "DEVICE", torch.device("cuda"))
    for found, attention in ((None, "sdpa"), (object(), "flash_attention_2")):
        monkeypatch.setattr(trainers, "find_spec", lambda name, found=found: found)
        assert trainers.trl_attention() == attention


def test_the_commands_of_the_makefile_can_be_parsed():
    """They run where minutes are dear."""
    shown = subprocess.run(["make", "-n", "gpu-train"], cwd=ROOT, capture_output=True, text=True, check=True)
    commands = [shlex.split(line) for line in shown.stdout.splitlines() if "benchmarks.train " in line]
    assert len(commands) >= 4
    for command in commands:
        options = train.parse(command[command.index("benchmarks.train") + 1 :])
        assert options.size in train.SIZES and options.batch_tokens % options.sequence_length == 0
        names = [name.strip() for name in (options.trainers or "").split(";") if name]
        assert set(names) <= (trainers.LADDER if options.ladder else trainers.PEERS).keys()


# Real ones ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trainer_that_dies_is_named_with_its_last_words(tmp_path):
    make_case(SMALL, tmp_path)
    (tmp_path / "packs.jsonl").write_text("{broken\n")
    process = worker.TrainerWorker("plain loop, padded", tmp_path, processes=1)
    process.start()
    try:
        with pytest.raises(RunError, match="plain loop, padded: ended early: json"):
            process.make_steps(1)
    finally:
        process.stop()


@pytest.mark.slow
def test_a_head_on_all_rows_gives_the_same_loss(tmp_path):
    prepared = make_case(SMALL, tmp_path)
    documents = prepared.plan.pack(0)
    normaliser = Normaliser(prepared.training, "token")
    batch = make_batch(prepared.training, documents, normaliser, normaliser.total(documents))
    wide = trainers.on_all_rows(batch)
    assert len(wide.loss_index) == len(batch.tokens) > len(batch.loss_index)
    model = Llama(SMALL.llama_config(tmp_path))
    with torch.no_grad():
        assert float(model.loss(wide)) == pytest.approx(float(model.loss(batch)), rel=1e-5)


@pytest.mark.slow
def test_a_rung_that_ends_early_holds_up_nobody(tmp_path):
    case = dataclasses.replace(SMALL, peers=False)
    make_case(case, tmp_path)
    broken, good = "trl + liger", "+ head on supervised rows"  # there are no weights for a peer
    results = dict(train.one_by_one([broken, good], tmp_path, case, make_console(quiet=True)))
    assert results[broken].error.startswith("ended early: ")
    assert len(results[good].steps) == case.steps
    # The parts are the whole step, but for where the machine did other work between them and its end.
    shares = [sum(step["parts"].values()) / step["seconds"] for step in results[good].steps]
    assert max(shares) <= 1 and max(shares) > 0.7


ALL = ["--size", "demo", "--sequence-length", "256", "--batch-tokens", "1024", "--steps", "4"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[list[dict], str]:
    """All trainers that are here, in one process each: their rows, and what was printed."""
    out, printed = tmp_path_factory.mktemp("alone") / "train.jsonl", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert run_command(train.main, [*ALL, "--out", str(out)]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()], printed.getvalue()


@pytest.mark.slow
def test_all_trainers_that_are_here_do_the_same_work(alone):
    """fastling, the padded loop and, where it is installed, TRL: the same loss after every step."""
    rows, printed = alone
    assert {"fastling", "plain loop, padded"} <= {row["provider"] for row in rows}
    ours = rows[0]
    for row in rows:
        assert row["loss_at_step_1"] == pytest.approx(ours["loss_at_step_1"], rel=2e-3)
        assert row["loss"] == pytest.approx(ours["loss"], rel=5e-3)
        assert row["milliseconds"] > 0 and row["memory_gib"] > 0.1
    assert set(ours["parts"]) == {"data wait", "forward", "backward and clipping", "optimizer"}
    assert all(milliseconds >= 0 for milliseconds in ours["parts"].values())
    assert "plain loop, padded" in printed


@pytest.mark.slow
def test_two_processes_do_the_work_of_one(alone, tmp_path):
    """And so does every peer that can run in two."""
    out = tmp_path / "train.jsonl"
    assert run_command(train.main, [*ALL, "--processes", "2", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    losses = {row["provider"]: row["loss"] for row in rows}
    assert "fastling" in losses and "plain loop, padded" not in losses
    assert losses == pytest.approx(
        {row["provider"]: row["loss"] for row in alone[0] if row["provider"] in losses}, rel=5e-3
    )
    assert "of these, communication" not in alone[0][0]["parts"]
    assert 0 < rows[0]["parts"]["of these, communication"] < 1e3 * rows[0]["milliseconds"]


@pytest.mark.slow
def test_the_rungs_of_the_ladder_do_the_same_work(tmp_path):
    out = tmp_path / "ladder.jsonl"
    arguments = ["--size", "demo", "--sequence-length", "256", "--batch-tokens", "512", "--steps", "3"]
    assert run_command(train.main, [*arguments, "--ladder", "--out", str(out)]) == 0
    first, second = [json.loads(line) for line in out.read_text().splitlines()][:2]
    assert (first["provider"], second["provider"]) == ("packed", "+ head on supervised rows")
    assert first["loss"] == pytest.approx(second["loss"], rel=5e-3)


def test_steps_shrink_as_a_model_grows_wider():
    rates = {
        size: Case(size, "rows.json", "llama.model").learning_rate for size in ("demo", "41m", "1b", "8b")
    }
    assert rates == {"demo": 1e-3, "41m": 1e-3, "1b": 2.5e-4, "8b": 1.25e-4}
