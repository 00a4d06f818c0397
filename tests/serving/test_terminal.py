"""A real terminal: keys go in at one end of a pseudo-terminal, and what a person would see comes out."""

import codecs
import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time

import pytest
from conftest import ROOT

pytest.importorskip("prompt_toolkit")
pytestmark = pytest.mark.slow

LEFT, UP, BACKSPACE, ENTER, CTRL_C, CTRL_D, ALT_ENTER = (
    "\x1b[D",
    "\x1b[A",
    "\x7f",
    "\r",
    "\x03",
    "\x04",
    "\x1b\r",
)
STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>]|\r")


class Terminal:
    """A program in a terminal of 100 columns."""

    def __init__(self, *arguments: str):
        self.ours, theirs = pty.openpty()
        environment = {
            **os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", "PROMPT_TOOLKIT_NO_CPR": "1",
            "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{ROOT / 'tests'}", "PYTHONIOENCODING": "utf-8",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving.typing_program", *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
        )  # fmt: skip
        os.close(theirs)
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # reads may cut a character
        self.seen = ""

    def type(self, keys: str, *, at_prompt: bool = True) -> None:
        """Press keys; at the prompt, once it is there: before that the terminal itself would act on them."""
        if at_prompt:
            self.wait_for(">")
        os.write(self.ours, keys.encode())

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Everything shown until `text` comes; it and what is before it is not seen again."""
        deadline = time.monotonic() + seconds
        while text not in STEERING.sub("", self.seen):
            assert time.monotonic() < deadline, STEERING.sub("", self.seen)
            if select.select([self.ours], [], [], 0.1)[0]:
                try:
                    self.seen += self.decoder.decode(os.read(self.ours, 65536))
                except OSError:  # the program has ended
                    time.sleep(0.05)
        before, _, after = STEERING.sub("", self.seen).partition(text)
        self.seen = after
        return before

    def end(self) -> int:
        status = self.process.wait(60)
        os.close(self.ours)
        return status


@pytest.fixture
def terminal():
    opened = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(*arguments))
        opened[-1].wait_for("/help shows the rest.")
        return opened[-1]

    yield start
    for each in opened:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def test_chinese_is_typed_edited_and_answered(terminal):
    chat = terminal()
    chat.type("你好吗世界" + BACKSPACE + LEFT + LEFT + BACKSPACE + "！" + ENTER)
    chat.wait_for("[你！吗世]")
    chat.type("😀é" + BACKSPACE + ENTER)
    chat.wait_for("[😀]")
    chat.type(UP + UP + ENTER)  # the first question again
    chat.wait_for("[你！吗世]")
    chat.type(CTRL_D)
    chat.wait_for("turns: 6")
    assert chat.end() == 0


def test_several_lines_are_one_question(terminal):
    chat = terminal()
    chat.type("eins" + ALT_ENTER + "二" + ENTER)
    chat.wait_for("[eins")
    chat.wait_for("二]")
    chat.type("\x1b[200~pasted\nlines\x1b[201~" + ENTER)  # as a terminal hands on what is pasted
    chat.wait_for("[pasted")
    chat.wait_for("lines]")
    chat.type("/quit" + ENTER)
    chat.wait_for("turns: 4")
    assert chat.end() == 0


def test_ctrl_c_stops_an_answer_and_throws_away_a_line_and_ctrl_d_leaves(terminal):
    chat = terminal("slow")
    chat.type("long" + ENTER)
    chat.wait_for("tick tick tick")
    chat.type(CTRL_C, at_prompt=False)
    chat.wait_for("(stopped; the answer so far is kept)")
    chat.type("half a question" + CTRL_C)
    chat.type("again" + ENTER)
    chat.wait_for("[again]")
    chat.type("/nonsense" + ENTER)
    chat.wait_for("is no command")
    chat.type(CTRL_D)
    chat.wait_for("turns: 4")
    assert chat.end() == 0
