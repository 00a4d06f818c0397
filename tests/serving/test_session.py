"""A conversation as the terminal keeps it, and what may be typed."""

import io
import json
import os
import signal
import sys

import pytest
import torch
from rich.console import Console
from serving.talkers import Parrot

from fastling.data.conversation import Conversation, Turn, parse_row
from fastling.data.encoding import Encoded
from fastling.data.rows import read_rows
from fastling.errors import RunError, UserError
from fastling.model.decoding import Decoding
from fastling.serving.session import Session
from fastling.serving.terminal import Chat, write_to_stdout


class Typed:
    """A chat, and all that it wrote and said."""

    def __init__(self, model=None, decoding=None):
        self.model = model or Parrot()
        self.session = Session(self.model, decoding or Decoding(max_new_tokens=64))
        self.out, words = [], io.StringIO()
        self.chat = Chat(self.session, Console(file=words, width=200), self.out.append)
        self.words = words

    def enter(self, *entries: str) -> str:
        """The words that were said about the entries."""
        self.words.seek(0)
        self.words.truncate()
        self.left = [not self.chat.enter(entry) for entry in entries]
        return self.words.getvalue()

    @property
    def answers(self) -> list[str]:
        return [turn.content for turn in self.session.turns if turn.role == "assistant"]


@pytest.fixture
def typed():
    return Typed()


def test_questions_and_answers_in_turn(typed):
    assert typed.enter("早上好 😀", "  two spaces ") == ""
    assert "".join(typed.out) == "You said: 早上好 😀\nYou said:   two spaces\n"
    turns = (
        Turn("user", "早上好 😀"),
        Turn("assistant", "You said: 早上好 😀"),
        Turn("user", "  two spaces "),
    )
    assert typed.model.fed[1] == typed.model.prompt_ids(Conversation(turns))
    assert typed.session.finish_reasons == ["stop", "stop"]


def test_blank_questions_are_not_asked(typed):
    assert typed.enter("", "   ", "\n") == ""
    assert typed.model.fed == [] and typed.out == []


def test_reset_forgets_all_but_the_system_text(typed):
    typed.enter("/system Sei kurz.", "one", "/reset", "two")
    assert typed.session.messages() == [
        {"role": "system", "content": "Sei kurz."},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "You said: two"},
    ]
    assert typed.model.fed[1] == typed.model.prompt_ids(Conversation((Turn("user", "two"),), "Sei kurz."))
    assert "your system text is removed" in typed.enter("/system")
    assert typed.session.system == ""


def test_retry_samples_a_new_answer():
    typed = Typed(decoding=Decoding(max_new_tokens=64, temperature=0.5, seed=7))
    typed.enter("one", "two", "/retry")
    assert typed.model.fed[2] == typed.model.fed[1]
    assert [each.seed for each in typed.model.decodings] == [7, 8, 9]
    assert typed.answers == ["You said: one", "You said: two"]
    greedy = Typed()
    assert "greedy" in greedy.enter("one", "/retry")
    assert greedy.answers == ["You said: one"]


def test_a_retry_that_says_nothing_loses_nothing():
    said = iter(["first", "", "third"])
    typed = Typed(Parrot(lambda question: next(said)))
    assert "the conversation stays as it was" in typed.enter("x", "/retry")
    assert typed.answers == ["first"] and typed.session.finish_reasons == ["stop"]
    typed.enter("/retry")
    assert typed.answers == ["third"] and len(typed.session.turns) == 2


def test_an_empty_answer_takes_its_question_back():
    typed = Typed(Parrot(lambda question: ""))
    assert "the answer is empty" in typed.enter("x")
    assert typed.session.turns == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("/quiet", "/quiet: is no command"),
        ("/usr/bin is where?", "// sends a text"),
        ("/", "/: is no command"),
        ("/retry", "/retry: there is no question yet"),
        ("/reset all", "/reset: takes nothing after it: all"),
        ("/save", "/save: needs a file name"),
        ("/save x.jsonl", "/save: nothing was said yet"),
        ("\udce4", "is not UTF-8"),
        ("/system \udce4", "is not UTF-8"),
        ("wort " * 3000, "the question: has with the template"),
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_impossible_commands_are_explained_and_change_nothing(typed, entry, words):
    assert words in typed.enter(entry)
    assert typed.left == [False] and typed.chat.failures == 1
    assert typed.session.turns == [] and typed.model.fed == []
    assert typed.enter("fine") == "" and typed.answers == ["You said: fine"]


def test_help_and_quit(typed):
    words = typed.enter("/help")
    for command in ("/system", "/retry", "/reset", "/save", "/help", "/quit", "Ctrl-C", "Alt-Enter", "//"):
        assert command in words
    typed.enter("/quit")
    assert typed.left == [True]


def test_two_slashes_send_one(typed):
    typed.enter("//usr/bin")
    assert typed.answers == ["You said: /usr/bin"]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said():
    def interrupt(text):
        typed.out.append(text)
        if text.endswith("three"):
            os.kill(os.getpid(), signal.SIGINT)

    typed = Typed(Parrot(lambda question: "one two three four five six seven"))
    typed.chat.write = interrupt
    before = signal.getsignal(signal.SIGINT)
    assert "stopped" in typed.enter("x")
    [said] = typed.answers
    assert said.startswith("one two three") and "seven" not in said
    assert typed.session.finish_reasons == ["interrupted"] and typed.model.ended == 1
    assert signal.getsignal(signal.SIGINT) is before
    typed.chat.write = typed.out.append
    typed.enter("go on")
    assert len(typed.answers) == 2


def fill_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def fill_a_cpu():
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("fill", [fill_a_gpu, fill_a_cpu])
def test_out_of_memory_is_explained_and_the_conversation_continues(fill):
    def says(question):
        return fill() if question == "long" else "fine"

    typed = Typed(Parrot(says))
    said = typed.enter("x", "long", "y")
    assert "the answer: does not fit into the memory of the device" in said
    assert typed.answers == ["fine", "fine"] and typed.chat.failures == 1


def test_text_before_a_failure_stays_on_a_line_of_its_own():
    typed = Typed()

    def says(question):
        yield from typed.model.encoder.tokenizer.encode(["so far"])[0]
        raise RunError("the model", "gives scores that are no numbers")

    typed.model.stream_ids = lambda prompt, decoding: says(prompt)
    assert "no numbers" in typed.enter("x", "y")
    assert "".join(typed.out) == "so far\nso far\n" and typed.answers == ["so far", "so far"]
    assert typed.session.finish_reasons == ["interrupted", "interrupted"]


def test_a_full_context_drops_whole_oldest_turns_keeps_the_system_text_and_says_so_once():
    typed = Typed(Parrot(lambda question: "gut", context=200), Decoding(max_new_tokens=20))
    typed.enter("/system Sei kurz.")
    said = [typed.enter(f"question {number} " + "wort " * 5) for number in range(20)]
    assert sum("context is full" in words for words in said) == 1
    assert len(typed.session.turns) == 40  # for /save
    for prompt in typed.model.fed:
        assert len(prompt) + 20 <= 200
    last = typed.model.encoder.tokenizer.decode([typed.model.fed[-1]])[0]
    assert last.startswith("Sei kurz.") and "question 19" in last and "question 0" not in last
    assert last.index("### Instruction:") < last.index("### Response:")
    typed.enter("/reset")
    assert typed.enter("short") == "" and typed.session.dropped == 0


def test_a_question_that_is_taken_back_costs_the_model_no_turns():
    model = Parrot(lambda question: "" if "long" in question else "gut", context=200)
    typed = Typed(model, Decoding(max_new_tokens=20))
    typed.enter("eins", "zwei")
    assert "the conversation stays as it was" in typed.enter("long " * 60)
    typed.enter("drei")
    fed = [model.encoder.tokenizer.decode([prompt])[0] for prompt in model.fed]
    assert "eins" not in fed[2] and "eins" in fed[3]


def test_an_answer_that_was_cut_says_so():
    typed = Typed(Parrot(lambda question: "word " * 50), Decoding(max_new_tokens=5))
    assert "cut at 5 tokens" in typed.enter("x")
    assert typed.session.finish_reasons == ["length"]


# /save ----------------------------------------------------------------------------------------------


def test_a_saved_conversation_is_a_training_row(typed, tmp_path):
    path = tmp_path / "talk.jsonl"
    typed.enter("/system Sei 'kurz'.", "早上好 😀\nzweite Zeile", "</s> and on")
    assert "saved" in typed.enter(f"/save {path}")
    [row] = read_rows(path)
    conversation = parse_row(row.payload)
    assert conversation == Conversation(tuple(typed.session.turns), "Sei 'kurz'.")
    [encoded] = typed.model.encoder.encode([conversation])
    assert isinstance(encoded, Encoded) and len(encoded.spans) == 2
    assert typed.model.fed[1] == encoded.tokens[: encoded.spans[1][0]].tolist()  # P1


def test_a_file_is_written_again_by_its_own_session_only(typed, tmp_path):
    path = tmp_path / "talk.jsonl"
    typed.enter("one", f"/save {path}", "two")
    assert "saved" in typed.enter(f"/save {path}")
    assert len(json.loads(path.read_text())["messages"]) == 4
    another = Typed()
    assert "exists" in another.enter("one", f"/save {path}")
    assert len(json.loads(path.read_text())["messages"]) == 4


def test_a_conversation_that_was_saved_and_forgotten_is_not_written_over(typed, tmp_path):
    path = tmp_path / "talk.jsonl"
    typed.enter("one", f"/save {path}", "/reset", "two")
    assert "exists" in typed.enter(f"/save {path}")
    assert json.loads(path.read_text())["messages"][0]["content"] == "one"


@pytest.mark.parametrize(
    "name",
    ["talk.txt", "absent/talk.jsonl", "x" * 300 + ".jsonl", "\0.jsonl"],
    ids=["kind", "folder", "length", "nul"],
)
def test_saving_to_an_unwritable_place_is_explained(typed, tmp_path, name):
    assert "/save: " in typed.enter("one", f"/save {tmp_path / name}")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_home_folder_ends_no_conversation(typed):
    assert "/save: cannot be written: ~nobody-here/x.jsonl" in typed.enter(
        "one", "/save ~nobody-here/x.jsonl"
    )
    assert len(typed.session.turns) == 2


def test_blank_system_text_is_none_as_in_training(typed):
    typed.session.set_system("x")
    typed.session.set_system(" \n")
    typed.enter("one")
    typed.session.set_system("")
    typed.enter("/reset", "one")
    assert typed.model.fed[0] == typed.model.fed[1]


def test_a_session_s_system_text_needs_a_place(typed):
    typed.model.prompt_ids = lambda conversation: (_ for _ in ()).throw(
        UserError("the system text", "no place")
    )
    assert "no place" in typed.enter("/system x")
    assert typed.session.system == ""


def test_answers_cannot_control_the_terminal(monkeypatch, capsys):
    said = "\x1b]0;title\x07gut\r\x9b31m\u202e早上好 😀\n\té"
    write_to_stdout(said)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write_to_stdout(said)
    assert capsys.readouterr().out == said + r"\x1b]0;title\x07gut\x0d\x9b31m\u202e早上好 😀" + "\n\té"
