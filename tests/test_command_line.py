"""The command line as a whole: verbs, help, versions, exit statuses, and which stream says what."""

import argparse
import importlib
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, run_python

import fastling
from fastling.__main__ import VERBS, dispatch, main
from fastling.command_line import Parser
from fastling.errors import run_command
from fastling.evaluate import KINDS
from fastling.export import main as export_main
from fastling.prepare import main as prepare_main

QUICK = [
    "--data.sources",
    '[{"name": "few", "path": "fastling:demo/held-out.jsonl"}]',
    "--data.validation",
    "[]",
]


@pytest.fixture
def fastling_(monkeypatch, capsys):
    """Run `fastling ...` as its entry point does; return (status, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastling", *arguments])
        try:
            status = main()
        except SystemExit as end:  # argparse, after it has printed the help
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=str)
def test_fastling_alone_shows_its_verbs(fastling_, arguments):
    status, out, err = fastling_(*arguments)
    assert (status, err) == (0, "")
    for verb, text in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(text)}$", out, re.MULTILINE)
    assert len(out.splitlines()) < 20


def test_a_current_folder_that_was_deleted(fastling_, tmp_path, monkeypatch):
    """PyTorch's libraries would end the process in words of their own."""
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    said = "error: current folder: was deleted\n  Change to one that exists.\n"
    assert fastling_("plan") == (2, "", said)


@pytest.mark.parametrize("command", [["fastling.prepare"], ["fastling", "prepare"]], ids=" ".join)
def test_the_keyboard_ends_a_verb_that_is_still_imported_without_a_traceback(command, tmp_path):
    (tmp_path / "yaml.py").write_text("raise KeyboardInterrupt", encoding="utf-8")  # as Ctrl-C does there
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode in (130, -signal.SIGINT)  # which a shell, too, calls 130
    assert ended.stderr == "stopped by the keyboard\n"


def test_version(fastling_):
    assert fastling_("--version") == (0, f"{fastling.__version__}\n", "")


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, "1000 None"), ({"GOMP_SPINCOUNT": "7"}, "7 None"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE")],
    ids=str,
)
def test_threads_that_wait_spin_for_a_moment_if_nothing_else_is_chosen(chosen, expected):
    """What it is worth is in benchmarks/LOG.md."""
    program = "import os, fastling; print(*map(os.environ.get, ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')))"
    inherited = {
        name: value for name, value in os.environ.items() if "GOMP" not in name and "POLICY" not in name
    }
    result = subprocess.run(
        [sys.executable, "-c", program], env={**inherited, **chosen}, cwd=ROOT, capture_output=True, text=True
    )
    assert result.stdout == expected + "\n"


@pytest.mark.parametrize("word", ["trian", "--verbose", "", "config"])
def test_a_word_that_is_no_verb(fastling_, word):
    """Not even if it is a file of the package."""
    status, out, err = fastling_(word)
    assert (status, out) == (2, "")
    assert err == f"error: fastling: unknown verb: {word}\n  The verbs are: {', '.join(VERBS)}.\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_begins_with_what_it_is_for(fastling_, verb):
    status, out, err = fastling_(verb, "--help")
    assert (status, err) == (0, "")
    usage, nothing, description, *_ = out.splitlines()
    assert usage.startswith(f"usage: fastling {verb} ")
    assert nothing == "" and re.match("[A-Z].*[.]", description)
    assert all(len(line) <= 100 for line in out.splitlines())
    assert "--json" in out
    assert "CONFIG" not in out and "==SUPPRESS==" not in out and "None" not in out


WITH_OPTIONS = [
    *([verb] for verb in VERBS if verb not in ("delta", "evaluate")),
    *(["delta", action] for action in ("make", "apply")),
    *(["evaluate", kind] for kind in KINDS),
]


@pytest.mark.parametrize("words", WITH_OPTIONS, ids=" ".join)
def test_help_shows_the_default_of_every_option_that_has_one(words, fastling_, monkeypatch):
    parsers = []
    monkeypatch.setattr(Parser, "print_help", lambda parser: parsers.append(parser))
    assert fastling_(*words, "--help")[0] == 0
    (parser,) = parsers
    given = [each for each in parser._actions if each.default not in (None, False, [], argparse.SUPPRESS)]
    assert [each.dest for each in given if "default" not in each.help] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_file_that_can_be_run(verb):
    module = importlib.import_module(f"fastling.{verb}")
    assert callable(module.main)
    assert module.__doc__.startswith(f"`fastling {verb}`")


def test_every_file_that_can_be_run_is_a_verb():
    files = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "fastling").glob("*.py")}
    runnable = {name for name, text in files.items() if 'if __name__ == "__main__"' in text}
    assert runnable - {"__main__"} == VERBS.keys()


def test_results_go_to_stdout_as_one_json_object_and_words_to_stderr(fastling_, tmp_path):
    status, out, err = fastling_("prepare", "--json", "--run_dir", str(tmp_path), *QUICK)
    assert status == 0
    assert json.loads(out)["sources"]["few"]["rows"] > 0
    assert out.count("\n") == 1
    assert "ledger" in err and "{" not in err


def test_preview_shows_one_json_object_a_row(fastling_, tmp_path):
    status, out, err = fastling_("preview", "--json", "--rows", "0-2", *QUICK)
    assert (status, err) == (0, "no --config: this is the demo, in runs/demo\n")
    assert [json.loads(line)["row"] for line in out.splitlines()] == [0, 1, 2]


def test_a_verb_is_the_same_under_both_names(tmp_path, capsys):
    arguments = ["--json", "--run_dir", str(tmp_path), *QUICK]
    assert run_command(prepare_main, arguments) == 0
    first = capsys.readouterr()
    assert run_command(dispatch, ["prepare", *arguments]) == 0
    assert capsys.readouterr() == first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["fastling", "--version"], 0),
        (["fastling.prepare", "--help"], 0),
        (["fastling", "prepare", "--seed", "x"], 2),
        (["fastling.preview", "--rows", "none"], 2),
    ],
    ids=str,
)
def test_the_status_is_the_process_s(arguments, status):
    """Once as a shell sees it."""
    result = run_python(*arguments, anew=True)
    assert result.returncode == status
    assert "Traceback" not in result.stderr
    assert bool(result.stdout) is (status == 0)
    assert bool(result.stderr) is (status == 2)


def test_the_arguments_of_export_are_refused_in_two_lines(capsys):
    assert run_command(export_main, ["--run"]) == 2
    assert capsys.readouterr().err == (
        "error: fastling export: argument --run: expected one argument\n  --help shows every option.\n"
    )
