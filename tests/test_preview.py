"""`fastling preview`: what it shows is what training sees, and nothing of it is left out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from conftest import DEMO, ROOT, config_of

from fastling import prepare, preview
from fastling.data.rows import read_rows
from fastling.errors import run_command
from fastling.prepare import prepare_data

MIXED = [("user", "Say it in Chinese, with an emoji: good morning! "), ("assistant", " 早上好！😀👩‍👩‍👧\n")]
TWO_TURNS = [*MIXED, ("user", "龘 𠮷?"), ("assistant", "No idea.")]


def messages(turns) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


ROWS = [
    messages(TWO_TURNS),
    messages([*MIXED, ("user", "And thanks!")]),
    messages([*MIXED, ("user", "Again. " * 60), ("assistant", "Again. " * 60)]),
    messages([("user", "Long. " * 300), ("assistant", "Yes.")]),
    messages([("user", "A question without answer")]),
    {"instruction": "Echo </s> to me.", "output": "Here: </s> <s>"},
]
STATUS = ["kept", "cut", "cut", "refused", "refused", "kept"]


@pytest.fixture
def config(tiny_run, tmp_path):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, "{broken"]), encoding="utf-8")
    sources = [
        {"name": "mine", "path": str(tmp_path / "rows.jsonl")},
        {"name": "demo", "path": "fastling:demo/train.jsonl"},
    ]
    return tiny_run(data={"sources": sources, "max_refused_share": 0.9})


@pytest.fixture
def show(config, capsys):
    """Run preview; return what it wrote on stdout."""

    def run(*arguments: str) -> str:
        assert run_command(preview.main, ["--config", str(config), *arguments]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


@pytest.fixture
def rows(show):
    """Rows as JSON objects."""
    return lambda *arguments: [json.loads(line) for line in show("--json", *arguments).splitlines()]


@pytest.fixture(scope="module")
def processor():
    return sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))


# What is shown --------------------------------------------------------------------------------------


def test_a_row_is_an_object_of_five_keys(rows, processor):
    for number, row in enumerate(rows("--rows", "0-6", "--source", "mine")):
        assert list(row) == ["row", "source", "status", "reason", "tokens"]
        assert (row["row"], row["source"]) == (number, "mine")
        for token, piece, supervised, turn in row["tokens"]:
            assert processor.id_to_piece(token) == piece
            assert supervised is (turn >= 0)


def test_each_row_says_what_became_of_it_and_why(rows):
    found = rows("--rows", "0-6", "--source", "mine")
    assert [row["status"] for row in found] == [*STATUS, "refused"]
    reasons = [row["reason"] for row in found]
    assert reasons[0] is None and reasons[5] is None
    assert re.fullmatch(r"after-last-answer: \d+ tokens dropped", reasons[1])
    assert re.fullmatch(r"over-length: \d+ tokens dropped", reasons[2])
    assert re.fullmatch(r"too-long: its first answer ends at token \d+, beyond 256", reasons[3])
    assert reasons[4] == "no-assistant-turn"
    assert reasons[6].startswith("broken-json: column 2")
    for row in found:
        assert bool(row["tokens"]) is (row["status"] != "refused")


@pytest.mark.parametrize("number", [row for row, status in enumerate(STATUS) if status != "refused"])
def test_supervised_tokens_are_the_answers_and_their_end_tokens(rows, processor, number):
    (row,) = rows("--rows", str(number), "--source", "mine")
    source = ROWS[number]
    answers = [each["content"] for each in source.get("messages", ()) if each["role"] == "assistant"]
    answers = answers or [source["output"]]
    num_turns = 1 + max(turn for *_, turn in row["tokens"])
    assert num_turns == (1 if row["status"] == "cut" else len(answers))
    for number in range(num_turns):
        ids = [token for token, *_, turn in row["tokens"] if turn == number]
        assert ids[-1] == processor.eos_id()
        assert processor.eos_id() not in ids[:-1]
        before = next(i for i, (*_, turn) in enumerate(row["tokens"]) if turn == number)
        start = max(
            i for i in range(before) if row["tokens"][i][0] in (processor.bos_id(), processor.eos_id())
        )
        prompt = [token for token, *_ in row["tokens"][start + 1 : before]]
        text = processor.decode(prompt + ids[:-1])
        assert text == processor.decode(prompt) + answers[number]
    if row["status"] == "cut":
        assert row["tokens"][-1][0] == processor.eos_id()


def test_an_answer_keeps_its_number_beside_one_that_is_read_only(rows, processor, tmp_path):
    said = messages([("user", "q"), ("assistant", "no"), ("user", "again"), ("assistant", "yes")] * 2)
    for number in (1, 5):
        said["messages"][number]["weight"] = 0
    (tmp_path / "read.jsonl").write_text(json.dumps(said))
    (row,) = rows("--data.sources", json.dumps([{"name": "read", "path": str(tmp_path / "read.jsonl")}]))
    assert {turn for *_, turn in row["tokens"]} == {-1, 1, 3}
    for number in (1, 3):
        assert processor.decode([token for token, *_, turn in row["tokens"] if turn == number]) == "yes"


def test_dropped_tokens_are_those_that_are_not_shown(rows, config):
    """The same rows without the limit have as many tokens more as the reason says."""
    (cut,) = rows("--rows", "2", "--source", "mine")
    (whole,) = rows("--rows", "2", "--source", "mine", "--data.sequence_length", "4096")
    (dropped,) = re.findall(r"\d+", cut["reason"])
    assert whole["status"] == "kept"
    assert len(whole["tokens"]) - len(cut["tokens"]) == int(dropped)
    assert whole["tokens"][: len(cut["tokens"])] == cut["tokens"]


def test_the_kept_rows_are_what_training_reads(rows, config):
    found = config_of("--config", config)
    store = prepare_data(found).training
    shown = [row for row in rows("--rows", "0-99") if row["tokens"]]
    documents = {}
    for number in range(len(store)):
        source = store.source_names[store.sources[number]]
        documents[source, int(store.rows[number])] = store.document(number)
    for row in shown:
        tokens, spans = documents[row["source"], row["row"]]
        assert [token for token, *_ in row["tokens"]] == tokens.tolist()
        supervised = [i for start, stop in spans for i in range(start, stop)]
        assert [i for i, (_, _, is_supervised, _) in enumerate(row["tokens"]) if is_supervised] == supervised


# Which rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"), [(None, [0, 1, 2, 3, 4]), ("3", [3]), ("2-4", [2, 3, 4]), ("5-900", [5, 6])]
)
def test_rows_are_counted_from_0_and_the_last_is_shown(rows, asked, expected):
    arguments = ["--rows", asked] if asked else []
    assert [row["row"] for row in rows(*arguments, "--source", "mine")] == expected


def test_without_a_source_the_rows_of_every_training_source_are_shown(rows):
    found = [(row["source"], row["row"]) for row in rows("--rows", "1-2")]
    assert found == [("mine", 1), ("mine", 2), ("demo", 1), ("demo", 2)]


def test_held_out_rows_are_shown_when_named(rows, processor):
    (row,) = rows("--source", "held-out", "--rows", "7")
    line = (DEMO / "held-out.jsonl").read_text(encoding="utf-8").splitlines()[7]
    answer = next(each["content"] for each in json.loads(line)["messages"] if each["role"] == "assistant")
    assert (row["source"], row["status"]) == ("held-out", "kept")
    assert processor.decode([token for token, _, _, turn in row["tokens"] if turn == 0]) == answer


def test_rows_are_shown_as_they_are_read(config, capsys, monkeypatch):
    """Of a range of thousands the first come at once."""
    read = 0

    def counted(path, keys):
        nonlocal read
        for row in read_rows(path, keys):
            read += 1
            yield row

    monkeypatch.setattr(preview, "read_rows", counted)
    monkeypatch.setattr(preview, "ROWS_PER_TASK", 2)
    found = config_of("--config", config)
    sources = prepare.source_files(found.data.sources)
    shown = preview.preview_rows(prepare.make_encoder(found), sources, 1, 400)
    assert [next(shown).row, read] == [1, 3]
    assert [next(shown).row for _ in range(7)][-2:] == [1, 2]


def test_a_refused_key_of_half_a_surrogate_pair_can_be_shown(show, config, tmp_path):
    with open(tmp_path / "rows.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"\\ud800": 1}\n{"messages": [{"role": "\\udfff", "content": "x"}]}\n')
    for arguments in ((), ("--json",)):
        out = show("--rows", "7-8", "--source", "mine", *arguments)
        assert "ud800" in out and "udfff" in out


@pytest.mark.parametrize("blanks", [1, 2, 3, 8])
def test_every_space_that_an_answer_begins_with_is_shown(blanks, show, tmp_path):
    with open(tmp_path / "rows.jsonl", "a", encoding="utf-8") as file:
        row = messages([("user", "q"), ("assistant", " " * blanks + "b ")])
        file.write(f"\n{json.dumps(row)}")
    assert f"[[{' ' * blanks}b </s>]]" in show("--rows", "7", "--source", "mine")


def test_escape_sequences_are_shown_and_not_obeyed(show, config, tmp_path):
    with open(tmp_path / "rows.jsonl", "a", encoding="utf-8") as file:
        row = messages([("user", "a\x1b[2Jb\r\n\tc"), ("assistant", "d\x07\x9b31m")])
        file.write(f'\n{json.dumps(row)}\n{{"\\u001b[31m": 1}}')
    out = show("--rows", "7-8", "--source", "mine")
    assert r"a\x1b[2Jb\x0d" in out and r"d\x07\x9b31m" in out and r"the keys \x1b[31m;" in out
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", out)


def test_bidirectional_controls_are_shown_as_escapes(show, config, tmp_path):
    """Else an answer could stand where its question does. Marks of Hebrew and Arabic stay."""
    with open(tmp_path / "rows.jsonl", "a", encoding="utf-8") as file:
        row = messages([("user", "a\u202eb"), ("assistant", "\u2067c\u2069 \u200fשלום")])
        file.write(f"\n{json.dumps(row)}")
    page = tmp_path / "preview.html"
    out = show("--rows", "7", "--source", "mine", "--html", str(page))
    for shown in (out, page.read_text(encoding="utf-8")):
        assert r"a\u202eb" in shown and "\\u2067c\\u2069 \u200fשלום" in shown
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", shown)


def test_rows_that_are_held_out_are_shown_as_such(show, rows):
    split = ("--data.validation", "[]", "--data.held_out_share", "0.4", "--rows", "0-9", "--source", "demo")
    found, every = rows(*split), rows("--rows", "0-9", "--source", "demo")
    held_out = [row for row in found if row["status"] == "held-out"]
    assert 0 < len(held_out) < 10
    assert all((row["reason"], row["tokens"]) == ("data.held_out_share", []) for row in held_out)
    others = [row["row"] for row in found if row not in held_out]
    assert [row for row in found if row not in held_out] == [row for row in every if row["row"] in others]
    assert f"demo row {held_out[0]['row']}: held-out (data.held_out_share)" in show(*split)


# On a terminal, on a page, into a pipe -------------------------------------------------------------


def test_words_show_everything_in_plain_text(show):
    out = show("--rows", "0-6", "--source", "mine")
    assert "\x1b" not in out
    assert "mine row 0: kept, " in out and " tokens trained on\n" in out
    assert "mine row 2: cut, " in out and "(over-length: " in out
    assert "mine row 4: refused (no-assistant-turn)\n" in out
    assert "### Instruction:\nSay it in Chinese, with an emoji: good morning! \n### Response:\n" in out
    assert "### Response:\n[[ 早上好！😀👩‍👩‍👧\n</s>]]" in out
    assert "龘 𠮷?" in out


def test_a_terminal_shows_trained_tokens_on_green_and_no_others(show, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = show("--rows", "0", "--source", "mine")
    codes = re.findall(r"\x1b\[([\d;]*)m([^\x1b]*)\x1b\[0m", out)
    on_green = [text for style, text in codes if "48;" in style or style.endswith("42")]
    assert on_green == ["trained on", " 早上好！😀👩‍👩‍👧", "</s>", "No idea.", "</s>"]
    assert [text for style, text in codes if style.startswith("1;35")] == ["control token", "<s>"]


def test_without_colours_what_is_trained_on_stands_between_brackets(show, monkeypatch):
    plain = show("--rows", "0", "--source", "mine")
    assert plain.startswith("[[trained on]]  read only\n")
    assert re.findall(r"\[\[(.*?)\]\]", plain, re.DOTALL)[1:] == [" 早上好！😀👩‍👩‍👧\n</s>", "No idea.</s>"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "[[" not in show("--rows", "0", "--source", "mine")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[[No idea." in re.sub(r"\x1b\[[\d;]*m", "", show("--rows", "0", "--source", "mine"))


def test_the_page_needs_nothing_but_itself(show, tmp_path):
    path = tmp_path / "preview.html"
    out = show("--rows", "0", "--source", "mine", "--html", str(path))
    page = path.read_text(encoding="utf-8")
    assert '<meta charset="UTF-8">' in page
    assert not re.search(r"https?:|<script|<link|<img|src=|@import", page)
    (green,) = re.findall(r"\.(r\d+) \{[^}]*background-color: #bfeccb\}", page)
    trained = re.findall(rf'<span class="{green}">(.*?)</span>', page, re.DOTALL)
    assert trained == ["trained on", " 早上好！😀👩‍👩‍👧", "&lt;/s&gt;", "No idea.&lt;/s&gt;"]
    assert "早上好！😀👩‍👩‍👧" in out and "[[" in out and "[[" not in page
    assert "white-space: pre-wrap" in page  # a long line of a message is not cut off at the window's edge


def test_a_page_that_cannot_be_written(config, tmp_path, capsys):
    arguments = ["--config", str(config), "--html", str(tmp_path / "none/x.html")]
    assert run_command(preview.main, arguments) == 2
    assert f"--html: cannot be written: {tmp_path}/none/x.html: " in capsys.readouterr().err


def test_a_page_that_finds_no_room_leaves_the_older_one(config, tmp_path, quota, capsys):
    path = tmp_path / "x.html"
    path.write_text("older")
    (tmp_path / "link.html").symlink_to(path)
    arguments = ["--config", str(config), "--html", str(tmp_path / "link.html")]
    assert run_command(preview.main, arguments) == 2
    assert "--html: cannot be written: " in capsys.readouterr().err
    assert path.read_text() == "older"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_page_can_go_to_a_device(config):
    assert run_command(preview.main, ["--config", str(config), "--html", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["words", "json"])
def test_a_pipe_that_closes_early_is_no_failure(arguments):
    """fastling preview | head -1"""
    command = [sys.executable, "-m", "fastling", "preview", "--rows", "0-400", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        assert (process.wait(300), said) == (0, b"no --config: this is the demo, in runs/demo\n")


@pytest.mark.slow
def test_a_pipe_that_closes_early_does_not_cost_the_page(tmp_path):
    """fastling preview --html page.html | less"""
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "fastling", "preview", "--rows", "0-399", "--html", str(page)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
        assert (process.wait(300), said) == (0, b"no --config: this is the demo, in runs/demo\n")
    assert "row 399:" in page.read_text(encoding="utf-8")
