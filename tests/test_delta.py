"""`fastling delta`: exit statuses, words and JSON; what a kill leaves behind."""

import json
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, run_python
from surgery.models import logits_of, make_model, tensors_of, tuned

from fastling import delta
from fastling.errors import UserError

pytestmark = pytest.mark.slow  # seconds in all; `make check` does without


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verb")
    tuned(make_model(folder / "base"), folder / "target")
    return folder


@pytest.mark.parametrize("named", ["--delta", "--target"])
def test_there_and_back(folder, tmp_path, capsys, named):
    base, target = str(folder / "base"), str(folder / "target")
    made, back = str(tmp_path / "delta"), str(tmp_path / "back")
    delta.main(["make", "--base", base, "--target", target, "--out", made, "--dtype", "fp16", "--json"])
    shown = capsys.readouterr()
    facts = json.loads(shown.out)
    assert facts["out"] == made and facts["exact"] is True and facts["largest_difference"] == 0
    assert "bit for bit" in shown.err and "Traceback" not in shown.err
    delta.main(["apply", "--base", base, named, made, "--out", back, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["base_checked"] is True and facts["result_dtype"] == "float16"
    found, wanted = tensors_of(tmp_path / "back"), tensors_of(folder / "target")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert torch.equal(logits_of(tmp_path / "back", [1, 2, 3]), logits_of(folder / "target", [1, 2, 3]))


def test_added_rows_and_inexact_weights_are_reported(folder, tmp_path, capsys):
    other = make_model(tmp_path / "other", seed=7, vocab_size=2001)
    arguments = ["--base", str(folder / "base"), "--target", str(other), "--out", str(tmp_path / "out")]
    delta.main(["make", *arguments, "--dtype", "bf16"])
    said = capsys.readouterr().err
    assert "lm_head.weight: 1 rows beyond the base's are stored as they are" in said
    assert "weights differ from the target's, by at most" in " ".join(said.split())


def test_nothing_is_overwritten(folder):
    arguments = ["--base", str(folder / "base"), "--target", str(folder / "target")]
    before = (folder / "target/model.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        delta.main(["make", *arguments, "--out", str(folder / "target")])
    assert (folder / "target/model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["unmake"], "neither make nor apply: unmake"),
        (["make", "--base", "nowhere"], "--out"),
        (
            ["apply", "--base", "nowhere", "--delta", "one", "--target", "other", "--out", "x"],
            "not allowed with",
        ),
        (["make", "--base", "nowhere", "--target", "nowhere", "--out", "x"], "holds no model"),
        (
            ["apply", "--base", "nowhere", "--delta", "nowhere", "--out", "x", "--dtype", "fp16"],
            "unknown setting",
        ),
        (
            ["make", "--base", "nowhere", "--target", "nowhere", "--out", "x", "--dtype", "int4"],
            "invalid choice",
        ),
    ],
)
def test_bad_arguments(arguments, said):
    with pytest.raises(UserError) as caught:
        delta.main(arguments)
    assert said in str(caught.value) and caught.value.exit_status == 2


@pytest.mark.slow
def test_as_a_program(tmp_path):
    places = ["--base", tmp_path, "--target", tmp_path, "--out", tmp_path / "out"]
    done = run_python("fastling.delta", "make", *places)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "holds no model" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_help(capsys):
    delta.main([])
    assert "fastling delta apply" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        delta.main(["apply", "--help"])
    assert left.value.code == 0 and "FastChat" in capsys.readouterr().out


def test_killed_half_way_it_leaves_nothing_at_its_place_and_runs_again(folder, tmp_path):
    code = (
        "import sys, time\n"
        "from fastling import delta\n"
        "from fastling.surgery import delta_weights\n"
        "real = delta_weights._sum\n"
        "def slow(name, *rest):\n"
        "    if name.endswith('down_proj.weight'): print('half', flush=True); time.sleep(600)\n"
        "    return real(name, *rest)\n"
        "delta_weights._sum = slow\n"
        "delta.main(sys.argv[1:])\n"
    )
    arguments = ["make", "--base", folder / "base", "--target", folder / "target", "--out", tmp_path / "out"]
    arguments = list(map(str, arguments))
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"half\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "out").exists() and (tmp_path / "out.tmp").exists()
    started = time.monotonic()
    delta.main(arguments)
    assert time.monotonic() - started < 30
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "delta.json" in {path.name for path in (tmp_path / "out").iterdir()}
