"""The report says met where a target is met, missed where it is missed, and unmeasured otherwise."""

import json
from io import StringIO

import pytest
from conftest import run_python
from rich.console import Console

from benchmarks import kernel_report, report
from benchmarks.kernel_report import Judgement
from benchmarks.providers import ALL_ROWS, OURS, PRODUCTS
from benchmarks.workloads import SHAPES, Workload
from fastling.errors import run_command

pytestmark = pytest.mark.slow  # servers, processes or compilers: many seconds in all

SHAPE = SHAPES[0]
NORM = Workload("rms_norm", SHAPE)
HEAD = Workload("linear_cross_entropy", SHAPE, 45)
DENSE = Workload("linear_cross_entropy", SHAPE)


def row(
    workload: Workload, passed: str, provider: str = OURS, milliseconds: float | None = 1.0, **changes
) -> dict:
    found = {
        "op": workload.op_name, "case": workload.case, "pass": passed, "provider": provider,
        "milliseconds": milliseconds, "spread": 0.01, "floor_milliseconds": 1.0, "ratio_to_floor": milliseconds,
        "max_error": 2e-3, "verdict": "ok", "why": "", "device": "NVIDIA H200", "driver": "580", "torch": "2.11",
        "triton": "3.6", "commit": "0123456789abcdef", "dirty": False, "date": "2026-11-20", "copy_gb_s": 4300.0,
        "matrix_tflops": 780.0,
    }  # fmt: skip
    return found | changes


def judged(workload: Workload, passed: str, *rows: dict) -> dict[str, Judgement]:
    (found,) = kernel_report.by_device(rows or [row(NORM, "update")]).values()
    judgements = kernel_report.judge(found, (workload.op_name, workload.case, passed), workload)
    return {judgement.what: judgement for judgement in judgements}


def printed(rows: list[dict]) -> str:
    console = Console(width=250, file=StringIO())
    console.print(kernel_report.render(rows))
    return console.file.getvalue()


def line_of(text: str, *words: str) -> str:
    (line,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return line


# Targets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio, verdict", [(1.12, "met"), (1.121, "missed")])
def test_a_ratio_to_the_floor_is_judged(ratio, verdict):
    found = judged(NORM, "forward", row(NORM, "forward", milliseconds=ratio))
    assert found["<= 1.12 x floor:"] == ("<= 1.12 x floor:", verdict, f"{ratio:.3f}")


def test_a_target_without_a_measurement_is_unmeasured():
    assert judged(NORM, "forward")["<= 1.12 x floor:"].verdict == "unmeasured"
    assert judged(NORM, "forward+backward")[""].verdict == "unmeasured"


@pytest.mark.parametrize("milliseconds, verdict", [(None, "wrong"), (1.0, "inexact")])
def test_an_inexact_result_meets_no_target(milliseconds, verdict):
    ours = row(NORM, "forward", milliseconds=milliseconds, verdict=verdict, why="output off")
    found = judged(NORM, "forward", ours)
    assert found["<= 1.12 x floor:"].verdict == "unmeasured"
    assert found["exact:"] == ("exact:", "missed", f"{verdict}: output off")


@pytest.mark.parametrize("milliseconds, verdict", [(0.49, "met"), (0.51, "missed")])
def test_supervised_rows_are_judged_beside_all_rows(milliseconds, verdict):
    rows = [row(HEAD, "forward+backward", milliseconds=milliseconds), row(HEAD, "forward+backward", ALL_ROWS)]
    found = judged(HEAD, "forward+backward", *rows)
    assert list(found) == [f"<= 0.50 x {ALL_ROWS}:", "exact:"]  # of 3686 rows no ratio to the floor is asked
    assert found[f"<= 0.50 x {ALL_ROWS}:"].verdict == verdict


def test_the_dense_head_is_judged_beside_its_products():
    rows = [row(DENSE, "forward+backward", milliseconds=1.11), row(DENSE, "forward+backward", PRODUCTS)]
    found = judged(DENSE, "forward+backward", *rows)
    assert found["<= 1.10 x floor:"].verdict == "missed"
    assert "peers:" not in found  # the products are a floor, and no peer


@pytest.mark.parametrize("op, passed, words", [
    ("rms_norm", "backward", "<= 1.20 x floor:"), ("add_rms_norm", "forward", "<= 1.10 x floor:"),
    ("add_rms_norm", "backward", "<= 1.20 x floor:"), ("rotary_qkv", "forward", "<= 1.15 x floor:"),
    ("rotary", "backward", "<= 1.15 x floor:"), ("swiglu", "forward", "<= 1.08 x floor:"),
    ("swiglu", "backward", "<= 1.10 x floor:"), ("cross_entropy", "forward+backward", "<= 1.25 x floor:"),
])  # fmt: skip
def test_every_op_has_its_targets(op, passed, words):
    assert judged(Workload(op, SHAPE), passed)[words].verdict == "unmeasured"


def test_a_small_vocabulary_has_no_target():
    (small,) = [shape for shape in SHAPES if shape.vocab < 100_000 and shape.tokens == 8192]
    assert list(judged(Workload("cross_entropy", small), "forward+backward")) == [""]


# Peers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "milliseconds, verdict", [(0.97, "met"), (1.0, "met"), (1.005, "met"), (1.02, "missed")]
)
def test_ours_is_judged_beside_the_best_peer_within_the_spread(milliseconds, verdict):
    rows = [
        row(NORM, "forward", milliseconds=milliseconds),
        row(NORM, "forward", "slow peer", 3.0),
        row(NORM, "forward", "best peer", 1.0),
        row(NORM, "forward", "wrong peer", None, verdict="wrong"),
    ]
    found = judged(NORM, "forward", *rows)["peers:"]
    assert found.verdict == verdict and found.detail == f"{milliseconds:.2f} x best peer"


def test_our_other_ways_are_no_peers():
    rows = [row(HEAD, "forward+backward", milliseconds=2.0), row(HEAD, "forward+backward", ALL_ROWS)]
    assert "peers:" not in judged(HEAD, "forward+backward", *rows)


# The table ------------------------------------------------------------------------------------------


def test_a_line_shows_every_provider_and_its_verdicts():
    text = printed([
        row(NORM, "forward", milliseconds=1.5),
        row(NORM, "forward", "a peer", 2.0, verdict="inexact"),
        row(NORM, "forward", "another", None, verdict="wrong"),
    ])  # fmt: skip
    line = line_of(text, NORM.case, "1.5 (1.50x)")
    assert "exact: " not in line  # unless it is not
    assert "2 (2.00x) inexact" in line and "wrong" in line and "2.0e-03" in line
    assert "<= 1.12 x floor: missed 1.500; peers: met 0.75 x a peer" in line
    assert (
        "copy 4300 GB/s, products 780 TFLOP/s; driver 580, torch 2.11, triton 3.6; commit 0123456789ab"
        in text
    )
    assert " 2 met, 1 missed, " in text


def test_the_later_of_two_measurements_counts():
    text = printed([row(NORM, "forward", milliseconds=1.5), row(NORM, "forward", milliseconds=1.1)])
    assert "1.1 (1.10x)" in text and "1.5 (1.50x)" not in text


def test_targets_are_not_judged_on_another_device():
    text = printed([row(NORM, "forward", milliseconds=1.5, device="NVIDIA A100")])
    other, target = text.split("H200: nothing was measured")
    assert "1.5 (1.50x)" in other and "met" not in other and "missed" not in other
    assert "<= 1.12 x floor: unmeasured" in target and "0 met, 0 missed" in target


def test_remarks_follow_the_tables():
    text = printed([
        row(NORM, "far offsets", milliseconds=None),
        row(NORM, "absent", "a peer", None, verdict="absent", why="No module named 'peer'"),
        row(NORM, "case", "a peer", None, verdict="failed", why="out of memory"),
        row(NORM, "forward", milliseconds=None, max_error="inf", verdict="wrong", why="output off"),
    ])  # fmt: skip
    assert f"rows beyond 2^31 values: rms_norm, {NORM.case}, fastling: ok" in text
    assert f"absent: rms_norm, {NORM.case}, a peer: absent No module named 'peer'" in text
    assert f"failed: rms_norm, {NORM.case}, a peer: failed out of memory" in text
    assert "inf" in line_of(text, NORM.case, "exact: missed")


# Files ----------------------------------------------------------------------------------------------


def test_the_command_prints_tables_and_writes_plots(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [row(NORM, passed, name) for passed in NORM.passes for name in (OURS, "a peer")]
    rows += [row(Workload("rms_norm of heads", SHAPE), "forward"), row(NORM, "absent", "b", None)]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    done = run_python("benchmarks.report", path, "--out", tmp_path / "plots")
    assert done.returncode == 0, done.stderr
    assert "NVIDIA H200: copy 4300 GB/s" in done.stdout
    names = {f"rms_norm{more}.{suffix}" for more in ("", "_of_heads") for suffix in ("svg", "png")}
    written = list((tmp_path / "plots").iterdir())
    assert {each.name for each in written} == names | {"report.html"}
    assert all(each.stat().st_size > 5000 for each in written)


def test_a_missing_file_is_said_in_words(tmp_path, capsys):
    assert run_command(report.main, [str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl: No such file or directory" in capsys.readouterr().err
