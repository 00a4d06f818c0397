"""`fastling chat` as a program: from a pipe, with --json, with --web, and what is refused before it begins."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys

import openai
import pytest
from conftest import ROOT, run_python
from inference.conftest import write_export

from fastling.chat import main
from fastling.data.conversation import Conversation, Turn, parse_row
from fastling.data.rows import read_rows
from fastling.errors import run_command
from fastling.inference.chat_model import load_chat_model
from fastling.model.decoding import Decoding
from fastling.model.generation import generate


def expected_answers(export, *questions: str, system: str = "", tokens: int = 8) -> list[str]:
    chat, turns = load_chat_model(export), []
    for question in questions:
        turns.append(Turn("user", question))
        prompt = chat.prompt_ids(Conversation(tuple(turns), system))
        decoding = Decoding(max_new_tokens=tokens)
        [completion] = generate(chat.model, [prompt], decoding, stop_ids=chat.stop_ids)
        turns.append(Turn("assistant", chat.text(completion)))
    return [turn.content for turn in turns[1::2]]


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("chat") / "export")


@pytest.fixture
def piped(export, monkeypatch, capsys):
    """Run `fastling chat` with these lines on stdin; return (status, stdout, stderr)."""

    def run(lines: str, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        arguments = ["--model", str(export), "--max-new-tokens", "8", *options]
        return run_command(main, arguments), *capsys.readouterr()

    return run


@pytest.mark.slow
def test_from_a_pipe_every_line_is_a_question(export, tmp_path, piped):
    saved = tmp_path / "talk.jsonl"
    status, out, err = piped(f"早上好\r\n\nund noch einmal 😀\n/save {saved}\n/quit\nnot asked\n")
    expected = expected_answers(export, "早上好", "und noch einmal 😀")
    assert (status, out) == (0, "".join(f"{answer}\n" for answer in expected))
    assert "template bayling (by the export's template.yaml), context 512 tokens, greedy" in err
    [row] = read_rows(saved)
    assert [turn.content for turn in parse_row(row.payload).turns][1::2] == expected


def test_with_json_the_conversation_is_one_object_on_stdout(export, piped):
    status, out, err = piped("eins\n/nonsense\nzwei", "--json", "--system", "Sei kurz.")
    assert status == 1  # a line could not be carried out
    [line] = out.splitlines()
    found = json.loads(line)
    first, second = expected_answers(export, "eins", "zwei", system="Sei kurz.")
    assert found["messages"] == [
        {"role": "system", "content": "Sei kurz."},
        {"role": "user", "content": "eins"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "zwei"},
        {"role": "assistant", "content": second},
    ]
    assert (found["model"], found["template"]) == ("export", "bayling")
    assert (found["finish_reasons"], found["failures"]) == (["length"] * 2, 1)
    assert "/nonsense: is no command" in err and first in err


@pytest.mark.slow
def test_a_line_that_is_not_utf8_is_named_and_what_was_said_is_still_printed(export):
    command = [sys.executable, "-m", "fastling.chat", "--model", export, "--max-new-tokens", "4", "--json"]
    environment = os.environ | {"LC_ALL": "C"}
    found = subprocess.run(
        command, input=b"gut\n\xff\xfe\n", capture_output=True, env=environment, timeout=300
    )
    assert found.returncode == 2 and b"stdin:2: is not UTF-8 at byte 0" in found.stderr
    assert b"Traceback" not in found.stderr
    assert len(json.loads(found.stdout)["messages"]) == 2


@pytest.mark.slow
def test_an_answer_takes_neither_the_compiler_nor_fsdp(export):
    """They are half of what would be waited for before the first word."""
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "fastling.chat",
        "--model",
        export,
        "--max-new-tokens",
        "4",
    ]
    found = subprocess.run(command, input="x\n", capture_output=True, text=True, cwd=ROOT, timeout=300)
    imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert found.returncode == 0 and "torch" in imported
    assert not imported & {"torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"}


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_failure(export):
    code = f"{sys.executable} -m fastling.chat --model {export} --max-new-tokens 4 | head -c 1 | wc -c"
    found = subprocess.run(
        ["bash", "-o", "pipefail", "-c", code],
        input="x\n" * 50,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert "Traceback" not in found.stderr and found.stdout.strip() == "1"


def test_with_a_temperature_a_seed_repeats_the_answers(piped):
    found = []
    for seed in (["--seed", "3"], ["--seed", "3"], ["--seed", "4"], [], []):
        status, out, err = piped("x\n/retry\n", "--temperature", "2", "--top-k", "50", *seed)
        assert status == 0 and "temperature 2" in err and "greedy" not in err
        found.append(out)
    assert found[0] == found[1] and len(set(found)) == 4
    first, second = found[0].strip().split("\n", 1)
    assert first != second


REFUSED = [
    ([], "--model"),
    (["--temperature", "-1"], "--temperature: must be at least 0"),
    (["--temperature", "nan"], "--temperature: must be finite"),
    (["--top-p", "0.9"], "--top-p: has no effect"),
    (["--seed", "1"], "--seed: has no effect"),
    (["--top-k", "5", "--web"], "--top-k: has no effect"),
    (["--temperature", "1", "--top-p", "1.5"], "--top-p: must be above 0 and at most 1"),
    (["--max-new-tokens", "0"], "--max-new-tokens: must be at least 1"),
    (["--repetition-penalty", "0"], "--repetition-penalty: must be from 0.01 to 100"),
    (["--port", "80"], "--port: has no effect without --web"),
    (["--token", "x"], "--token: has no effect without --web"),
    (["--web", "--system", "x"], "--system: has no effect with --web"),
    (["--system", "Gr\udcfc\udcdfe"], "--system: is not UTF-8 at character 2"),
    (["--web", "--temperature", "1", "--seed", "3"], "--seed: has no effect with --web"),
    (["--web", "--port", "70000"], "--port: must be from 0 to 65535"),
    (["--web", "--token", "a b"], "--token: must be printable ASCII"),
    (["--web", "--token", ""], "--token: must be printable ASCII"),
    (["--web", "--host", "0.0.0.0"], "--token: is needed to listen on 0.0.0.0"),
    (["--web", "--host", "example.org"], "--token: is needed to listen on example.org"),
    (["--dtype", "int8"], "--dtype"),
]


@pytest.mark.parametrize(
    ("options", "message"), REFUSED, ids=lambda each: " ".join(each) if isinstance(each, list) else ""
)
def test_impossible_options_are_refused_before_anything_is_loaded(capsys, options, message, tmp_path):
    model = ["--model", str(tmp_path / "absent")] if options else []
    assert run_command(main, [*model, *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.splitlines()) <= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-new-tokens", "512"], "--max-new-tokens: leaves no room for a question: the model takes 512"),
        (["--template", "llama3"], "--template: llama3: needs the token"),
        (["--device", "cuda:9"], "--device: cannot be used: cuda:9"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_the_model_are_refused(export, capsys, options, message):
    assert run_command(main, ["--model", str(export), *options]) == 2
    assert message in capsys.readouterr().err


def test_system_text_that_the_template_has_no_place_for(export, capsys, tmp_path):
    (tmp_path / "plain.yaml").write_text('user: "Q: {content}\\n"\nassistant: "A: {content}{eos}\\n"\n')
    options = ["--model", str(export), "--template", str(tmp_path / "plain.yaml"), "--system", "x"]
    assert run_command(main, options) == 2
    assert "the template plain has no place for it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "options"), [("fastapi", ["--web"]), ("uvicorn", ["--web"]), ("prompt_toolkit", [])], ids=str
)
def test_a_package_that_is_missing_is_named_before_anything_is_loaded(monkeypatch, capsys, package, options):
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith("fastling.serving.")]:
        if name.rpartition(".")[2] in ("server", "endpoint"):
            monkeypatch.delitem(sys.modules, name)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert run_command(main, ["--model", "absent", *options]) == 2
    assert f"needs the package {package}\n  pip install 'fastling[chat]'\n" in capsys.readouterr().err


# --web ----------------------------------------------------------------------------------------------


def start_server(export, *options: str) -> tuple[subprocess.Popen, dict]:
    command = [
        sys.executable,
        "-m",
        "fastling.chat",
        "--model",
        export,
        "--web",
        "--port",
        "0",
        "--json",
        *options,
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        # A shell's background job, and all it starts, would ignore the keyboard.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    return process, json.loads(process.stdout.readline())


@pytest.mark.slow
def test_a_served_model_answers_as_in_the_terminal_until_ctrl_c(export):
    process, said = start_server(export, "--token", "sesame", "--max-new-tokens", "8")
    try:
        assert said["model"] == "export"
        with openai.OpenAI(base_url=f"{said['url']}/v1", api_key="sesame", max_retries=0) as client:
            messages = [{"role": "user", "content": "早上好"}]
            found = client.chat.completions.create(model="export", messages=messages)
            assert [found.choices[0].message.content] == expected_answers(export, "早上好")
            chunks = client.chat.completions.create(model="export", messages=messages, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert text == found.choices[0].message.content
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="guess").models.list()
        taken = said["url"].rpartition(":")[2]
        second = run_python("fastling.chat", "--model", export, "--web", "--port", taken)
        assert second.returncode == 1
        assert second.stderr.startswith(f"error: --port: cannot listen on 127.0.0.1:{taken}\n")
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err
    assert f"page: {said['url']}/#token=sesame" in err and err.endswith("stopped\n")


@pytest.mark.slow
def test_ctrl_c_ends_the_server_in_the_middle_of_an_answer(tmp_path):
    model = write_export(
        tmp_path / "model", max_position_embeddings=20_000, hidden_size=128, num_hidden_layers=4
    )
    process, said = start_server(model, "--max-new-tokens", "19000", "--repetition-penalty", "1.5")
    with openai.OpenAI(base_url=f"{said['url']}/v1", api_key="-", max_retries=0, timeout=120) as client:
        messages = [{"role": "user", "content": "x"}]
        stream = client.chat.completions.create(model="model", messages=messages, stream=True)
        for _ in range(3):
            next(stream)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0 and "Traceback" not in err
        stream.close()


def test_a_folder_without_template_yaml_is_told_by_its_chat_template(export, tmp_path, piped):
    folder = shutil.copytree(export, tmp_path / "model")
    (folder / "template.yaml").unlink()
    status, _, err = piped("x\n", "--model", str(folder))
    assert status == 0
    assert "template bayling (which renders what chat_template.jinja renders)" in err
