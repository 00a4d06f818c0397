"""Python's search for garbage waits for a verb's imports, and for nobody else's."""

import subprocess
import sys

from conftest import ROOT

LOOK = "import gc; print(gc.isenabled(), gc.get_freeze_count() > 1000)"


def said(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_it_waits_for_what_a_verb_imports_and_passes_over_it_from_then_on():
    code = f"""
import sys
sys.orig_argv = ["python", "-u", "-m", "fastling.plan"]
import fastling
{LOOK}
from fastling.errors import run_program
def main(arguments):
    {LOOK}
run_program(main)"""
    assert said(code) == ["False False", "True True"]


def test_it_goes_on_in_a_program_that_only_imports_fastling():
    assert said(f"import fastling; {LOOK}") == ["True False"]


def test_a_verb_found_by_its_name_runs_with_it():
    code = f"""
import sys, types
from fastling.__main__ import dispatch
def main(arguments):
    {LOOK}
sys.modules["fastling.plan"] = types.SimpleNamespace(main=main)
dispatch(["plan"])"""
    assert said(code) == ["True True"]
