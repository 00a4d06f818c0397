"""Answers of a model: kept as they come, never asked twice, and none lost to a kill -9."""

import argparse
import json
import shutil
import subprocess
import sys

import pytest
import torch

from fastling import evaluate
from fastling.command_line import Parser
from fastling.data.conversation import Conversation, Turn
from fastling.errors import RunError, UserError
from fastling.evaluation.answering import (
    Answer,
    Question,
    add_model_options,
    answer_questions,
    check_source,
    failures_of,
)
from fastling.evaluation.kept_answers import KeptAnswers
from fastling.inference.chat_model import load_chat_model
from fastling.model.decoding import Decoding
from fastling.model.generation import generate
from fastling.terminal import make_console

pytestmark = pytest.mark.slow  # seconds in all; `make check` does without

QUESTIONS = [
    Question(("Hello there!",)),
    Question(("提供这句话的英语翻译：你好。", "再短一些")),
    Question(("x " * 20, "And again?", "Once more 🙂")),
    Question(("And in French?",), history=(Turn("user", "Say it."), Turn("assistant", "It."))),
    Question(("Hello?",), system="You are brief."),
]


@pytest.fixture
def options(tmp_path, tiny_export):
    """Options of a command line, as parsed."""

    def parse(*arguments, model=True) -> argparse.Namespace:
        parser = Parser("test", "")
        parser.add_argument("--given")
        add_model_options(parser)
        ours = ["--model", str(tiny_export), "--keep-answers", str(tmp_path / "kept.jsonl")] if model else []
        parsed = parser.parse_args([*ours, *(["--max-new-tokens", "12"] if model else []), *arguments])
        parsed.kind, parsed.out = "translation", None
        return parsed

    return parse


def ask(options, questions=QUESTIONS):
    return answer_questions(options, questions, make_console(quiet=True))


def test_every_turn_is_answered_with_earlier_answers_as_history(options, tiny_export):
    answers = ask(options())
    chat = load_chat_model(tiny_export)
    assert [len(turns) for turns in answers] == [1, 2, 3, 1, 1]
    for question, given in zip(QUESTIONS, answers, strict=True):
        turns = list(question.history)
        for text, answer in zip(question.turns, given, strict=True):
            turns.append(Turn("user", text))
            prompt = chat.prompt_ids(Conversation(tuple(turns), question.system))
            [alone] = generate(chat.model, [prompt], Decoding(max_new_tokens=12), stop_ids=chat.stop_ids)
            assert answer.text == chat.text(alone) and answer.finish_reason in ("stop", "length")
            turns.append(Turn("assistant", answer.text))


def test_kept_answers_are_not_asked_for_again(options, tmp_path, monkeypatch):
    first = ask(options())
    monkeypatch.setattr("fastling.model.generation._Generation._step", None)  # no token can be made
    assert ask(options()) == first


def test_a_cut_last_line_is_dropped_and_asked_again(options, tmp_path):
    first, path = ask(options()), tmp_path / "kept.jsonl"
    whole = path.read_bytes()
    for cut in (1, 20, len(whole.split(b"\n")[-2]) + 1, len(whole) - 5, len(whole)):
        path.write_bytes(whole[:-cut])
        assert ask(options()) == first
        assert sorted(path.read_bytes().split(b"\n")) == sorted(whole.split(b"\n"))


def test_a_resumed_run_samples_what_an_uninterrupted_one_does(options, tmp_path):
    """Each answer has random numbers of its own, however many others are asked with it."""
    sampling, path = ("--temperature", "1", "--seed", "3"), tmp_path / "kept.jsonl"
    first = ask(options(*sampling))
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        path.write_bytes(b"".join(lines[:kept]))
        assert ask(options(*sampling)) == first


@pytest.mark.parametrize(
    ("arguments", "questions", "named"),
    [
        (["--beams", "2"], QUESTIONS, "decoding.beams"),
        (["--temperature", "1", "--seed", "3"], QUESTIONS, "decoding.temperature, decoding.seed"),
        ([], QUESTIONS[:-1], "questions"),
        (["--template", "vicuna"], QUESTIONS, "template or tokenizer"),
    ],
)
def test_answers_to_something_else_are_refused_by_name(options, arguments, questions, named):
    ask(options())
    with pytest.raises(UserError, match=named) as caught:
        ask(options(*arguments), questions)
    assert "--keep-answers" in caught.value.fix


def test_answers_of_another_model_are_refused(options, tmp_path, tiny_export):
    ask(options())
    path = tmp_path / "kept.jsonl"
    first, *rest = path.read_text().splitlines()
    row = json.loads(first)
    row["fingerprint"]["model"] = "0" * 64
    path.write_text("\n".join([json.dumps(row), *rest]) + "\n")
    with pytest.raises(UserError, match="what differs: model"):
        ask(options())


@pytest.mark.parametrize(
    ("name", "old", "new", "named"),
    [
        ("config.json", '"rope_theta": 10000.0', '"rope_theta": 20000.0', "configuration of the model"),
        ("template.yaml", "stop: []", "stop: ['<unk>']", "template or tokenizer"),
        ("template.yaml", "{eos}\n", "{eos}\n\n", "template or tokenizer"),
    ],
)
def test_answers_of_the_same_weights_with_another_config_or_tokenizer_are_refused(
    options, tiny_export, tmp_path, name, old, new, named
):
    """Other positions, another end, another space between turns: the first prompts are the same."""
    folder = shutil.copytree(tiny_export, tmp_path / "copy")
    ask(options("--model", str(folder)), QUESTIONS[:3])
    content = (folder / name).read_text()
    assert old in content
    (folder / name).write_text(content.replace(old, new))
    with pytest.raises(UserError, match=f"what differs: {named}"):
        ask(options("--model", str(folder)), QUESTIONS[:3])


@pytest.mark.parametrize(
    "content",
    [
        b"not ours\n",
        b"[]\n",
        b"{}\n",
        b"\xff\xfe\n",
        b"no end",
        b'{"fingerprint": 3}\n',
        b"[" * 10**5 + b"\n",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_file_of_something_else_is_refused_and_left_alone(options, tmp_path, content):
    path = tmp_path / "kept.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"kept\.jsonl"):
        ask(options())
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "line", [b"[]", b'{"question": 99, "turn": 0}', b'{"question": true}', b"\xff", b"x"]
)
def test_a_broken_line_in_the_middle_is_named(options, tmp_path, line):
    ask(options())
    path = tmp_path / "kept.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    number = path.read_bytes().count(b"\n")
    with pytest.raises(UserError, match=rf"kept\.jsonl:{number}: "):
        ask(options())


def test_a_question_beyond_the_context_is_counted_and_the_others_answered(options):
    long = Question(("word " * 400, "And then?"))
    answers = ask(options(), [QUESTIONS[0], long, QUESTIONS[1]])
    assert answers[1] == [Answer("", "too-long")] * 2
    assert all(answer.finish_reason != "too-long" for turns in (answers[0], answers[2]) for answer in turns)
    counts, notes = failures_of(answers)
    assert counts["too_long"] == 2 and "2 of 5" in notes[0]


def test_a_prompt_that_leaves_room_for_one_token_is_asked(options, tiny_export):
    chat = load_chat_model(tiny_export)
    texts = ["!?" * number + "." * rest for number in range(20, 120) for rest in (0, 1)]
    lengths = {len(chat.prompt_ids(Conversation((Turn("user", text),)))): text for text in texts}
    longest = max(length for length in lengths if length < chat.longest_sequence)
    assert longest > chat.longest_sequence - 4
    [[answer]] = ask(options(), [Question((lengths[longest],))])
    assert answer.finish_reason != "too-long"


def test_an_unaskable_question_is_named_before_any_is_asked(options, tmp_path):
    path = tmp_path / "plain.yaml"  # a template without a place for system text
    path.write_text('user: "Q: {content}\\n"\nassistant: "A: {content}{eos}"\n')
    with pytest.raises(UserError, match="question 2"):
        ask(options("--template", str(path)), [QUESTIONS[0], QUESTIONS[-1]])
    assert not (tmp_path / "kept.jsonl").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--beams", "2"], ["--limit", "3"], ["--seed", "1"], ["--keep-answers", "x"], ["--template", "vicuna"]],
    ids=" ".join,
)
def test_an_option_of_the_model_without_a_model_is_an_error(options, arguments):
    with pytest.raises(UserError, match=f"{arguments[0]}: has no effect without --model"):
        check_source(options("--given", "x", *arguments, model=False), "given")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--beams", "0"], "--beams"), (["--beams", "2", "--temperature", "1"], "--beams"),
        (["--top-p", "0.5"], "--top-p"), (["--seed", "4"], "--seed"), (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--temperature", "nan"], "--temperature"), (["--limit", "0"], "--limit"), (["--cache-gib", "0"], "--cache-gib"),
        (["--cache-gib", "inf"], "--cache-gib"), (["--given", "x"], "--given"),
    ],
)  # fmt: skip
def test_meaningless_options_are_named(options, arguments, named):
    with pytest.raises(UserError, match=f"^{named}: "):
        check_source(options(*arguments), "given")


def test_given_outputs_or_a_model_is_needed(options):
    with pytest.raises(UserError, match="--given: is needed, or --model"):
        check_source(options(model=False), "given")


# `fastling evaluate` that has ten answers, and never gets the eleventh.
STUCK = """
import sys, time
from fastling import evaluate
from fastling.evaluation.kept_answers import KeptAnswers

def add(self, *answer, add=KeptAnswers.add):
    add(self, *answer)
    if len(self) == 10:
        print("ten", flush=True)
        time.sleep(600)

KeptAnswers.add = add
evaluate.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_after_kill_9_the_same_command_continues_and_asks_nothing_twice(tmp_path, tiny_export, capsys):
    sources, kept = tmp_path / "s.txt", tmp_path / "kept.jsonl"
    lines = [f"This is sentence {number}, 第{number}句。" for number in range(120)]
    sources.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    command = ["translation", "--model", tiny_export, "--sources", sources, "--references", sources]
    command += ["--target-lang", "en", "--max-new-tokens", 20, "--keep-answers", kept, "--json"]
    command = list(map(str, command))
    python = [sys.executable, "-c", STUCK]
    with subprocess.Popen([*python, *command], stdout=subprocess.PIPE) as running:
        assert running.stdout.readline() == b"ten\n"
        running.kill()
    before = kept.read_bytes()
    assert before.count(b"\n") == 11
    evaluate.main(command)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["sentences"] == 120
    after = kept.read_bytes()
    assert after.startswith(before)
    rows = [json.loads(line) for line in after.splitlines()[1:]]
    assert sorted(row["question"] for row in rows) == list(range(120))


def test_a_full_disk_names_the_file_and_keeps_earlier_answers(tmp_path, quota):
    path, answers = tmp_path / "kept.jsonl", [Answer("short", "stop"), Answer("x" * 5000, "stop")]
    kept = KeptAnswers(path, {}, [1, 1])
    with pytest.raises(OSError, match="File too large: '.*kept.jsonl'"):
        for number, answer in enumerate(answers):
            kept.add(number, 0, answer)
    with pytest.raises(OSError, match="File too large: '.*kept.jsonl'"):
        kept.close()
    again = KeptAnswers(path, {}, [1, 1])
    assert (again.get(0, 0), again.get(1, 0)) == (answers[0], None)
    again.close()


def test_out_of_memory_is_explained_with_what_helps(options, monkeypatch):
    def fill(*_, **__):
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr("fastling.model.generation.generate", fill)
    with pytest.raises(RunError, match="--model: the memory of the device is full\n  Lower --cache-gib"):
        ask(options())


def test_two_processes_do_not_keep_answers_in_one_file(tmp_path):
    """Each would cut off what the other has added, or begin the file a second time, which nobody takes up."""
    path = tmp_path / "kept.jsonl"
    kept = KeptAnswers(path, {}, [1])
    kept.add(0, 0, Answer("whole", "stop"))
    before = path.read_bytes()
    with pytest.raises(UserError, match="kept.jsonl: is being written by another process"):
        KeptAnswers(path, {}, [1])
    assert path.read_bytes() == before
    kept.close()
    again = KeptAnswers(path, {}, [1])
    assert again.get(0, 0) == Answer("whole", "stop")
    again.close()


def test_each_answer_is_written_as_soon_as_it_is_complete(tmp_path):
    path = tmp_path / "kept.jsonl"
    kept = KeptAnswers(path, {"questions": "x"}, [1])
    kept.add(0, 0, Answer("你好", "stop"))
    assert "你好" in path.read_text(encoding="utf-8")
    kept.close()
