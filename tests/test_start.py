"""Programs that tests start with PyTorch already imported are like those that users start."""

import pytest
from conftest import run_python

PROGRAM = """
import atexit, os, sys, threading, time

atexit.register(lambda: print("at its end"))
print(__name__, __file__, sys.argv, os.getcwd(), os.environ.get("OF_ITS_OWN"), repr(sys.stdin.read()), sys.path[0])
print(os.isatty(0), os.isatty(1), sys.stderr.encoding, file=sys.stderr)
threading.Thread(target=lambda: time.sleep(0.2) or print("a thread of it")).start()
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
sys.exit({"done": None, "failed": 3, "told": "in words"}[sys.argv[1]])
"""


@pytest.mark.parametrize("how", ["done", "failed", "told", "killed", "wrong"])
@pytest.mark.parametrize("program", ["module", "file"])
def test_a_forked_program_does_what_one_that_starts_anew_does(program, how, tmp_path):
    file = tmp_path / "its_program.py"
    file.write_text(PROGRAM)
    told = {"cwd": tmp_path, "input": "first\n第二\n", "environment": {"OF_ITS_OWN": "é"}}
    forked, anew = (
        run_python(file if program == "file" else file.stem, how, "--more", "", **told, anew=anew)
        for anew in (False, True)
    )
    assert (forked.returncode, forked.stdout) == (anew.returncode, anew.stdout)
    assert forked.stderr.splitlines()[-1:] == anew.stderr.splitlines()[-1:] != []


@pytest.mark.parametrize("anew", [False, True])
def test_only_a_forked_program_has_pytorch_already(anew, tmp_path):
    (tmp_path / "its_program.py").write_text("import sys; print('torch' in sys.modules)")
    assert run_python("its_program", cwd=tmp_path, anew=anew).stdout == f"{not anew}\n"
