"""`fastling evaluate` as a user runs it: kinds, files, JSON, the page, and what is left when COMET fails."""

import importlib.util
import io
import json
import sys
from argparse import Namespace

import pytest
from conftest import run_python
from rich.console import Console

from fastling import evaluate
from fastling.errors import RunError, UserError
from fastling.evaluation.result import Result, TableData


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("hypotheses", "references", "sources"):
        (tmp_path / name).write_text("Das ist gut so.\nUnd das auch.\n")
    return "translation --hypotheses hypotheses --references references --target-lang de".split()


def test_every_kind_has_a_file_with_the_three_things_it_needs():
    for name in evaluate.KINDS.keys() - {"report"}:
        assert importlib.util.find_spec(f"fastling.evaluation.{name}"), name
        module = importlib.import_module(f"fastling.evaluation.{name}")
        assert module.DESCRIPTION.strip() and callable(module.add_options) and callable(module.evaluate)


@pytest.mark.parametrize("name", evaluate.KINDS)
def test_help_of_every_kind_fits_and_shows_its_options(name, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main([name, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and shown.startswith(f"usage: fastling evaluate {name} ")
    assert "--report" in shown
    assert all(len(line) <= 100 for line in shown.splitlines()[1:])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=str)
def test_without_a_kind_the_kinds_are_shown(arguments, capsys):
    evaluate.main(arguments)
    shown = capsys.readouterr().out
    assert all(name in shown for name in evaluate.KINDS) and max(map(len, shown.splitlines())) <= 100


def test_an_unknown_kind_is_an_error_that_lists_them():
    with pytest.raises(UserError, match="unknown kind: translate") as caught:
        evaluate.main(["translate"])
    assert "translation" in caught.value.fix


def test_a_package_that_is_missing_is_named_with_its_extra(files, monkeypatch):
    for module in [name for name in sys.modules if name.startswith(("sacrebleu", "fastling.evaluation."))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match="needs the package sacrebleu") as caught:
        evaluate.main(files)
    assert caught.value.fix == "pip install 'fastling[eval]'"


@pytest.mark.slow
def test_the_command_prints_words_to_stderr_and_one_json_object_to_stdout(files, tmp_path):
    done = run_python(
        "fastling.evaluate", *files, "--json", "--out", "r.json", "--report", "r.html", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    scores = json.loads(line)
    assert scores["kind"] == "translation" and scores["bleu"] == 100
    assert "chrF2++" in done.stderr and "written: r.html" in done.stderr
    kept = json.loads((tmp_path / "r.json").read_text())
    assert {name: kept[name] for name in scores} == scores and kept["tables"]
    assert "<svg" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("columns", [80, 60, 44])
def test_a_terminal_of_any_width_shows_whole_numbers_and_signatures(columns, monkeypatch, files, capsys):
    """10… may be 100.0."""
    console = Console(width=columns, file=io.StringIO())
    monkeypatch.setattr(evaluate, "make_console", lambda: console)
    evaluate.main([*files, "--bootstrap", "10"])
    said = console.file.getvalue()
    assert "…" not in said and "BLEU" in said
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if "│" in line]
    read = ["".join(column) for column in zip(*cells, strict=True)]
    assert "100.00" * 3 == read[1] and "nrefs:1|bs:10|seed:12345|case:mixed|eff:no|tok:13a" in read[3]


def test_escape_sequences_are_shown_and_not_obeyed():
    """Of a file that came from elsewhere, a category's name."""
    console = Console(width=80, file=io.StringIO())
    console.print(evaluate._as_rich(TableData("t\x1b[2J", ("\x07", "n"), (("x\x1b[31m", "1"),))))
    said = console.file.getvalue()
    assert "\x1b" not in said and all(each in said for each in (r"t\x1b[2J", r"\x07", r"x\x1b[31m"))


def test_several_results_become_one_page(files, tmp_path):
    for name in ("one.json", "two.json"):
        evaluate.main([*files, "--out", name])
    evaluate.main(["report", "--results", "one.json", "two.json", "--report", "page.html"])
    page = (tmp_path / "page.html").read_text()
    assert "1. one" in page and "2. two" in page
    with pytest.raises(UserError, match=r"page\.html: is no JSON"):
        evaluate.main(["report", "--results", "page.html", "--report", "page.html"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--out", "r.txt"], "--out: must end in .json"), (["--report", "r.pdf"], "--report: must end in .html"),
        (["--out", "no/r.json"], "--out: no such folder"), (["--report", "no/r.html"], "--report: no such folder"),
        (["--bootstraps", "3"], "unknown setting: bootstraps"), (["--out", "d.json"], "--out: is a folder"),
    ],
)  # fmt: skip
def test_an_unwritable_place_is_reported_before_the_work(files, tmp_path, arguments, named):
    (tmp_path / "d.json").mkdir()
    with pytest.raises(UserError, match=named):
        evaluate.main([*files, *arguments])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("exam --questions q.json p.json --predictions a b --out ./q.json", "--out: is also --questions"),
        ("exam --questions q --predictions p.json --out p.json", "--out: is also --predictions"),
        ("exam --questions q --model m --keep-answers k.json --out k.json", "--out: is also --keep-answers"),
        ("exam --questions q.html --predictions p --report q.html", "--report: is also --questions"),
    ],
)
def test_a_result_never_overwrites_its_inputs(arguments, named):
    with pytest.raises(UserError, match=named):
        evaluate.main(arguments.split())


def test_a_result_with_a_lone_surrogate_is_kept(tmp_path):
    """As in the name of a file that is no UTF-8."""
    result, out = Result("exam", {"file": "caf\udce9"}), tmp_path / "r.json"
    evaluate._deliver(result, Namespace(out=out, report=None, json=False), Console(file=io.StringIO()))
    assert json.loads(out.read_text(encoding="utf-8"))["file"] == "caf\udce9"


def test_a_comet_that_fails_ends_with_status_1_after_the_scores_are_delivered(files, tmp_path, capsys):
    script = tmp_path / "comet"
    script.write_text(f"#!{sys.executable}\nimport sys; sys.exit('no such model')")
    script.chmod(0o755)
    comet = ["--comet-command", str(script), "--sources", "sources", "--json", "--out", "r.json"]
    with pytest.raises(RunError, match="no such model"):
        evaluate.main([*files, *comet])
    scores = json.loads(capsys.readouterr().out)
    assert scores["bleu"] == 100 and scores["comet"] is None
    assert json.loads((tmp_path / "r.json").read_text())["bleu"] == 100
