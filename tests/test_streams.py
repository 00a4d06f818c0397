"""Standard streams that are closed, full, read by nobody, or in another encoding: no work is lost to them."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow  # a process each


def run_in_shell(redirection: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `python -m ...` with streams redirected as a user's shell does it."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", *arguments],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
        timeout=300,
    )


@pytest.fixture
def preview(tmp_path):
    """Arguments that show one row with Chinese and German in it."""
    row = {"messages": [{"role": "user", "content": "你好, Grüße"}, {"role": "assistant", "content": "好"}]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    config = str(ROOT / "configs" / "demo.yaml")
    return (
        "fastling.preview",
        "--config",
        config,
        "--data.sources",
        f'[{{"name": "few", "path": "{path}"}}]',
    )


def test_training_goes_on_when_nobody_reads_its_words(tiny_run, tmp_path):
    """As with `2>&1 | head -1`, or a `tee` that was killed."""
    command = [sys.executable, "-m", "fastling.train", "--config", str(tiny_run()), "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as training:
        training.stderr.readline()
        training.stderr.close()
        done = json.loads(training.stdout.read())
    assert (training.returncode, done["steps"]) == (0, 6)
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "<&-", "<&- 2>&-"])
def test_verbs_finish_wherever_their_output_goes(preview, redirection):
    result = run_in_shell(redirection, *preview, "--json")
    assert (result.returncode, result.stderr) == (0, b"")
    assert json.loads(result.stdout)["status"] == "kept"


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_a_mistake_keeps_its_status_with_stderr_closed(redirection):
    assert run_in_shell(redirection, "fastling.preview", "--rows", "none").returncode == 2


def test_a_result_that_finds_no_room_is_a_failure_in_words(preview):
    result = run_in_shell(">/dev/full", *preview, "--json")
    assert result.returncode == 1
    assert result.stderr.decode() == "error: while writing: No space left on device\n"


def test_a_closed_stdout_is_nowhere(preview):
    result = run_in_shell(">&-", *preview)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["words", "json"])
def test_results_are_utf_8_whatever_the_locale(preview, arguments):
    result = run_in_shell("", *preview, *arguments, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, b"")
    assert "好" in result.stdout.decode()


def test_a_row_is_one_line_whatever_ends_a_line_in_it(preview):
    arguments = [each.replace("few", "\u2028") for each in preview]
    [line] = run_in_shell("", *arguments, "--json").stdout.decode().splitlines()
    assert json.loads(line)["source"] == "\u2028"


def test_output_before_a_failure_is_kept(tmp_path):
    """Only where stdout itself takes no more is the rest let go."""
    script = tmp_path / "fails.py"
    script.write_text(
        "from fastling.errors import run_command\n"
        "def main(arguments):\n"
        "    print('first')\n"
        "    open('/nowhere/at/all')\n"
        "raise SystemExit(run_command(main, []))\n"
    )
    environment = os.environ | {"PYTHONUNBUFFERED": ""}  # so that it is held back
    done = subprocess.run([sys.executable, script], capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (1, b"first\n")
    assert done.stderr == b"error: /nowhere/at/all: No such file or directory\n"
