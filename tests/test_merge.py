"""`fastling merge`: exit statuses, words and JSON."""

import json

import pytest
import torch
from conftest import run_python
from surgery.models import make_model, tensors_of, tuned

from fastling import merge
from fastling.errors import UserError


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")
    base = make_model(folder / "base")
    for seed, name in enumerate("abc"):
        tuned(base, folder / name, seed=seed)
    return folder


def paths(family, *names: str) -> list[str]:
    return [str(family / name) for name in names]


def test_an_average_of_three(family, tmp_path, capsys):
    models = paths(family, "a", "b", "c")
    merge.main(["--models", *models, "--out", str(tmp_path / "out"), "--json"])
    done = json.loads(capsys.readouterr().out)
    assert done == {
        "out": str(tmp_path / "out"), "models": models, "weights": [1.0, 1.0, 1.0], "method": "average",
    }  # fmt: skip
    each = [tensors_of(family / name)["lm_head.weight"].double() for name in "abc"]
    found = tensors_of(tmp_path / "out")["lm_head.weight"]
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), sum(each) / 3, rtol=2**-11, atol=1e-7)


def test_ties_of_two(family, tmp_path, capsys):
    arguments = ["--models", *paths(family, "a", "b"), "--method", "ties", "--base", str(family / "base")]
    merge.main([*arguments, "--weights", "1", "1", "--out", str(tmp_path / "out"), "--json"])
    done = json.loads(capsys.readouterr().out)
    assert (done["method"], done["density"], done["scale"]) == ("ties", 0.2, 1.0)
    base, found = tensors_of(family / "base"), tensors_of(tmp_path / "out")
    moved = (base["lm_head.weight"] != found["lm_head.weight"]).double().mean()
    assert 0.2 <= moved <= 0.4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "a"], "one model cannot be merged"),
        (["--models", "a", "b", "--weights", "1"], "there are 1 for 2 models"),
        (["--models", "a", "b", "--weights", "1", "-0.5"], "must be 0 or from"),
        (["--models", "a", "b", "--weights", "0", "0"], "not all 0"),
        (["--models", "a", "b", "--weights", "1", "nan"], "must be 0 or from"),
        (["--models", "a", "b", "--weights", "1e308", "1e308"], "must be 0 or from"),
        (["--models", "a", "b", "--weights", "1e-46", "1e-46"], "must be 0 or from"),
        (["--models", "a", "b", "--weights", "1", "x"], "invalid float"),
        (["--models", "a", "b", "--density", "0.5"], "--density: has no effect on an average"),
        (["--models", "a", "b", "--method", "ties"], "is needed by TIES"),
        (["--models", "a", "b", "--method", "ties", "--base", "base", "--density", "0"], "must be above 0"),
        (["--models", "a", "b", "--method", "ties", "--base", "base", "--scale", "inf"], "must be a number"),
        (["--models", "a", "nowhere"], "holds no model"),
        (["--models", "a", "b", "--method", "dare"], "invalid choice"),
    ],
)
def test_bad_arguments(family, tmp_path, arguments, said):
    named = [str(family / each) if each in ("a", "b", "base", "nowhere") else each for each in arguments]
    with pytest.raises(UserError) as caught:
        merge.main([*named, "--out", str(tmp_path / "out")])
    assert said in str(caught.value) and caught.value.exit_status == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_as_a_program(family, tmp_path):
    done = run_python("fastling.merge", "--models", *paths(family, "a", "b"), "--out", family / "c")
    assert done.returncode == 2 and "exists already" in done.stderr and "Traceback" not in done.stderr


def test_help(capsys):
    with pytest.raises(SystemExit) as left:
        merge.main(["--help"])
    assert left.value.code == 0 and "elects a sign" in " ".join(capsys.readouterr().out.split())
