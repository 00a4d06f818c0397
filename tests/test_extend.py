"""`fastling extend`: exit statuses, words and JSON."""

import json

import pytest
import torch
from conftest import run_python
from surgery.models import make_model, tensors_of

from fastling import extend
from fastling.data import tokenizer_export
from fastling.data.tokenizer import load_tokenizer
from fastling.errors import UserError


@pytest.fixture(autouse=True)
def fewer_probing_strings(monkeypatch):
    every = tokenizer_export.probing_strings
    monkeypatch.setattr(tokenizer_export, "probing_strings", lambda tokenizer: every(tokenizer, 500))


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    make_model(tmp_path / "model")
    (tmp_path / "tokens.txt").write_text("舒舟\n舒舟艾\n", encoding="utf-8")
    return ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]


def test_tokens_from_a_file(arguments, tmp_path, capsys):
    extend.main([*arguments, "--tokens", str(tmp_path / "tokens.txt"), "--pad-to-multiple", "16", "--json"])
    shown = capsys.readouterr()
    done = json.loads(shown.out)
    assert (done["tokens"], done["first_id"], done["rows"], done["rows_before"]) == (2, 2000, 2016, 2000)
    assert done["pieces_per_token_before"] == 2.5 and done["init"] == "mean-of-pieces"
    assert "2 tokens from id 2000 on" in " ".join(shown.err.split())
    assert load_tokenizer(tmp_path / "out").encode(["我舒舟"])[0][-1] == 2000
    assert tensors_of(tmp_path / "out")["lm_head.weight"].shape == (2016, 16)
    assert tensors_of(tmp_path / "out")["lm_head.weight"].dtype == torch.float16


def test_a_word_list_is_taken_as_it_is(arguments, tmp_path, capsys):
    """With words that the vocabulary has, and words of more than two pieces; both are told."""
    (tmp_path / "tokens.txt").write_text("in\n舒舟艾\n龘\n舒舟艾\n", encoding="utf-8")
    extend.main([*arguments, "--tokens", str(tmp_path / "tokens.txt"), "--json"])
    shown = capsys.readouterr()
    done = json.loads(shown.out)
    assert (done["known"], done["helpers"], done["tokens"]) == (["in"], ["舒舟"], 3)
    assert "note: skipped, as the vocabulary has them (1): 'in'" in shown.err
    assert (
        "note: also added, letters and intermediate pieces that the others are merged from (1): '舒舟'"
        in shown.err
    )


def test_an_approximation_is_called_one(arguments, tmp_path, capsys):
    init = ["--init", "zip-tie-approximation"]
    extend.main([*arguments, "--tokens", str(tmp_path / "tokens.txt"), *init])
    assert "an approximation of Bailong's zip-tie" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "takes one of --tokens and --pieces"),
        (["--tokens", "nowhere"], "cannot be read"),
        (["--pieces", "nowhere"], "is not a SentencePiece model"),
        (["--tokens", "TOKENS", "--pieces", "x"], "takes one of --tokens and --pieces"),
        (["--tokens", "TOKENS", "--init", "random"], "is none of mean-of-pieces"),
        (["--tokens", "TOKENS", "--pad-to-multiple", "0"], "must be from 1 to 65536"),
    ],
)
def test_bad_arguments(arguments, tmp_path, more, said):
    more = [str(tmp_path / "tokens.txt") if each == "TOKENS" else each for each in more]
    with pytest.raises(UserError, match=said) as caught:
        extend.main([*arguments, *more])
    assert caught.value.exit_status == 2
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.tmp").exists()


@pytest.mark.slow
def test_as_a_program(arguments, tmp_path):
    done = run_python(
        "fastling.extend", "--model", tmp_path, "--out", tmp_path / "x", "--tokens", tmp_path / "tokens.txt"
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_help(capsys):
    with pytest.raises(SystemExit) as left:
        extend.main(["--help"])
    assert left.value.code == 0 and "was not available" in " ".join(capsys.readouterr().out.split())
