"""The program that a test of a real terminal runs in it: `python -m serving.typing_program`, from tests/."""

import sys

from rich.console import Console
from serving.talkers import Parrot

from fastling.model.decoding import Decoding
from fastling.serving.session import Session
from fastling.serving.terminal import Chat, make_prompt, talk_in_terminal, write_to_stdout


def says(question: str) -> str:
    return "tick " * 400 if question == "long" else f"[{question}]"


if __name__ == "__main__":
    parrot = Parrot(says, pause_s=0.02 if "slow" in sys.argv else 0.0)
    session = Session(parrot, Decoding(max_new_tokens=1000))
    talk_in_terminal(Chat(session, Console(stderr=True), write_to_stdout), make_prompt())
    print(f"turns: {len(session.turns)}")
