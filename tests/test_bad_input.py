"""What a user gets wrong, and what fastling says to it: where, what, and how to mend it.

Every mistake is one row of a table in bad_input.yaml, with the whole message. None may end in a traceback,
none may say more than six lines, and none may leave anything behind that would disturb the next start.
"""

import dataclasses
import importlib.metadata
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import DEMO, run_python

from fastling import errors, export, prepare, preview, train
from fastling.errors import MOST_LINES, RunError, UserError, run_command
from fastling.kernels import runtime
from fastling.model.huggingface import config_json, hf_tensors
from fastling.model.llama import Llama, LlamaConfig
from fastling.model.safetensors_folder import save_weights
from fastling.training.build import make_loader

VERBS = {"prepare": prepare.main, "preview": preview.main, "train": train.main, "export": export.main}
GOOD_ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
TEMPLATE = 'user: "Q {content}"\nassistant: "A {content}{eos}"\n'
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2097\n"
SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
TABLES = yaml.safe_load(Path(__file__).with_name("bad_input.yaml").read_text(encoding="utf-8"))


def table(name: str):
    """One test for every mistake of a table: (given, said)."""
    rows = [pytest.param(row["given"], row["said"], id=mistake) for mistake, row in TABLES[name].items()]
    return pytest.mark.parametrize(("given", "said"), rows)


def pretrained(folder: str) -> dict:
    return {"pretrained": folder, **dict.fromkeys(SHAPE)}


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """The folder of broken files."""
    folder = tmp_path_factory.mktemp("broken")
    row = json.dumps(GOOD_ROW)
    texts = {
        "rows.txt": row,
        "empty.jsonl": "\n",
        "refused.jsonl": '{"a": 1}\n' * 3,
        "good.jsonl": row,
        "escape.jsonl": '{"\\u001b[31m": 1}',
        "most.jsonl": f"{row}\n\n{{broken\n{{broken\n",
        "broken.json": f"[{row},\n{{]",
        "cut.jsonl.gz": "\x1f",
        "text.parquet": "PAR",
        "tiktoken.model": "IQ== 0\nIg== 1\nIw== 2\n" * 100,
        "text.json": "hello",
        "pointer.json": LFS,
        "object.json": "{}",
        "open.yaml": "user: [",
        "date.yaml": TEMPLATE + "begin: 2024-99-99",
        "deep.yaml": TEMPLATE + "stop: " + "[" * 3000 + "]" * 3000,
        "half.yaml": TEMPLATE + 'begin: "\\ud83d"',
        "again.yaml": TEMPLATE + 'user: "{content}"',
        "latin.yaml": 'user: "ü',
        "list.yaml": "- user",
        "sytem.yaml": TEMPLATE + "sytem: x",
        "number.yaml": TEMPLATE.replace('"Q {content}"', "5"),
        "twice.yaml": TEMPLATE.replace("Q", "{content}"),
        "endless.yaml": TEMPLATE.replace("{eos}", ""),
        "unused.yaml": TEMPLATE + "default_system: x",
        "begin.yaml": TEMPLATE + 'begin: "{content}"',
        "token.yaml": TEMPLATE.replace("Q", "<|u|>") + 'control_tokens: ["<|u|>"]',
        "nothing/nothing": "",
        "thesis/thesis.tex": "years of work",
        "project/README.md": "Trained with fastling.",
        "project/sources/main.py": "years of work",
        "essay.tmp/essay.tex": "years of work",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="latin-1")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "random.model").write_bytes(bytes(range(256)) * 16)
    for name in ("good", "gpt2", "shape", "pickle", "damaged", "pointer"):
        make_model(folder / name)
    (folder / "pickle/model.safetensors").rename(folder / "pickle/pytorch_model.bin")
    (folder / "damaged/model.safetensors").write_bytes(b"\xff" * 100)
    (folder / "pointer/model.safetensors").write_text(LFS)
    for name, key, value in (("gpt2", "model_type", "gpt2"), ("shape", "intermediate_size", 96)):
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps({**config, key: value}))
    return folder


def make_model(folder: Path) -> None:
    """A pretrained folder, weights and config.json only, with as many tokens as the demo's tokenizer has."""
    folder.mkdir()
    shape = LlamaConfig(
        vocab_size=2000, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
    )
    save_weights(hf_tensors(Llama(shape)), folder)
    config = config_json(shape, bos_token_id=1, eos_token_id=[2], pad_token_id=0, dtype=torch.bfloat16)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def say(tiny_run, broken, tmp_path, capsys, monkeypatch):
    """Run a verb with a mistake; return its exit status and what it said.

    The placeholders of the tables are put in on the way in, and put back on the way out.
    """
    monkeypatch.setattr(runtime, "INTERPRETED", False)  # as on a user's machine

    def run(verb: str, *arguments: str, text: bytes | None = None, **changes) -> tuple[int, str]:
        places = {"FILES": str(broken), "OUT": str(tmp_path / "out")}
        if verb != "export":
            config = tiny_run(**changes)
            filled = config.read_bytes().replace(b"FILES", str(broken).encode())
            config.write_bytes(filled if text is None else text)
            places["CONFIG"] = str(config)
            arguments = ("--config", str(config), *arguments)
        for name, path in places.items():
            arguments = [each.replace(name, path) for each in arguments]
        status = run_command(VERBS[verb], arguments)
        out, err = capsys.readouterr()
        assert "Traceback" not in err and "Traceback" not in out
        assert out == ""
        assert err.startswith("error: "), err
        message = err
        assert len(message.splitlines()) <= MOST_LINES
        for name, path in [*places.items(), ("DEMO", str(DEMO))]:
            message = message.replace(path, name)
        return status, message

    yield run
    # Nothing that the next start would take for a run that has begun, or for an export.
    run_dir = tmp_path / "run"
    assert not any((run_dir / name).exists() for name in ("metrics.jsonl", "export", "loss.png"))
    assert not list(run_dir.glob("checkpoints/*"))
    assert not (tmp_path / "out").exists()


@table("config")
def test_a_mistake_in_the_config(say, tmp_path, given, said):
    assert say("prepare", **given) == (2, f"error: {said}\n")
    assert not (tmp_path / "run").exists()


@table("text")
def test_a_file_that_is_no_config_is_refused(say, tmp_path, given, said):
    assert say("preview", text=given.encode()) == (2, f"error: {said}\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_endless_brackets_are_refused(say):
    deep = "[" * 1200 + "]" * 1200
    said = "CONFIG: is not valid YAML: nested too deep\n  See configs/ for examples."
    assert say("preview", text=f"data: {deep}".encode()) == (2, f"error: {said}\n")
    text = f"data: {{sources: {'[' * 200 + ']' * 200}}}".encode()
    said = "settings: are nested too deep\n  See configs/ for examples."
    assert say("preview", text=text) == (2, f"error: {said}\n")
    said = f"--data.sources: expected a list: {deep[:80]}\n  Give a list of {{name, path, weight, pair}}."
    assert say("preview", "--data.sources", deep) == (2, f"error: {said}\n")


@pytest.mark.parametrize(("encoding", "byte"), [("latin-1", 11), ("utf-16", 0)])
def test_a_config_that_is_not_utf_8(say, encoding, byte):
    text = "run_dir: Größe\n".encode(encoding)
    assert say("preview", text=text) == (
        2,
        f"error: CONFIG: is not UTF-8: byte {byte}\n  Save it as UTF-8.\n",
    )


@table("arguments")
def test_a_mistake_on_the_command_line(say, tmp_path, given, said):
    assert say("prepare", *given) == (2, f"error: {said}\n")
    assert not (tmp_path / "run").exists()


@table("data")
def test_a_mistake_in_the_data(say, tmp_path, given, said):
    status, message = say("prepare", data=given)
    assert message.startswith(f"error: {said}")
    assert status == 2
    assert not (tmp_path / "run").exists()


def test_the_refused_rows_can_all_be_read(say, broken):
    """The message names the first one, the file with all of them, and the setting that allows more."""
    _, message = say("prepare", data={"sources": [{"name": "mine", "path": "FILES/most.jsonl"}]})
    path = Path(message.split("All of them: ")[1].split(". data.max")[0])
    entry, _ = map(json.loads, path.read_text().splitlines())
    assert (entry["source"], entry["row"], entry["reason"]) == ("mine", 1, "broken-json")
    assert entry["location"] == "3"  # the line; the file may be moved
    assert "data.max_refused_share (0.5) is the limit." in message


@table("preview")
def test_a_mistake_of_preview(say, given, said):
    assert say("preview", *given) == (2, f"error: {said}\n")


@pytest.mark.slow
@table("model")
def test_a_mistake_found_when_training_starts(say, given, said):
    if "pretrained" in given.get("model", ()):
        given = {**given, "model": pretrained(given["model"]["pretrained"])}
    status, message = say("train", **given)
    assert message.startswith(f"error: {said}")
    assert status == 2


def test_a_model_that_does_not_fit_is_not_complained_about_at_length(say):
    _, message = say("train", model=pretrained("FILES/shape"))
    assert message.splitlines()[-1] == "  ... and 5 lines more"


def test_wandb_that_is_not_installed_is_found_before_anything_is_done(say, monkeypatch, tmp_path):
    def not_found(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_found)
    said = say("train", log={"wandb": True})
    assert said == (2, "error: log.wandb: wandb is not installed\n  pip install 'fastling[wandb]'\n")
    assert not (tmp_path / "run").exists()


def test_packs_that_the_processes_cannot_share(say, monkeypatch):
    def loader_of_three(config, world, *rest, **options):
        return make_loader(config, dataclasses.replace(world, size=3), *rest, **options)

    monkeypatch.setattr(train, "make_loader", loader_of_three)
    assert say("train") == (
        2,
        "error: train.global_batch_tokens: 1024 makes 4 packs of 256, which 3 processes cannot share evenly\n"
        "  Use a multiple of 768, or a number of processes that divides 4.\n",
    )


@pytest.fixture
def small_disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))


def test_a_disk_too_small_for_the_export_is_found_before_the_first_step(say, small_disk, tmp_path):
    status, message = say("train")
    assert status == 2
    assert message.endswith(
        "run/export: the disk has 0.000 GiB free, the export needs 0.001\n"
        "  Make room, or choose another disk.\n"
    )
    assert not (tmp_path / "run/export.tmp").exists()


def test_a_file_where_the_export_goes_is_found_before_the_first_step(say, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/export").write_text("")
    status, message = say("train")
    assert (status, message.splitlines()[1]) == (2, "  Name another folder, or delete it.")
    (tmp_path / "run/export").unlink()


def test_a_file_where_the_checkpoints_go_is_found_before_the_first_step(say, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("")
    status, message = say("train")
    assert status == 2
    assert message.startswith(f"error: run_dir: cannot be written: {tmp_path}/run/checkpoints: File exists\n")
    assert "  Name a folder on a disk that you may write to." in message


@pytest.fixture(scope="module")
def run(tmp_path_factory, broken) -> Path:
    """A finished run of two steps, begun by mistake with an attention that cannot run here."""
    folder = tmp_path_factory.mktemp("run") / "run"
    changes = {"run_dir": folder, "train.steps": 2, "train.epochs": "null", "train.global_batch_tokens": 512}
    changes |= {"data.validation": "[]", "model.hidden_size": 24, "model.num_hidden_layers": 1}
    arguments = [f"--{name}={value}" for name, value in changes.items()]
    assert run_command(train.main, [*arguments, "--model.attention", "flash2"]) == 2
    assert not (folder / "config.yaml").exists()
    mended = run_python("fastling.train", *arguments)
    assert mended.returncode == 0, mended.stderr
    assert "resuming" not in mended.stderr
    (broken / "begun").mkdir()  # a run that was killed before its first checkpoint
    shutil.copyfile(folder / "config.yaml", broken / "begun/config.yaml")
    return folder


@pytest.mark.slow
def test_after_a_mistake_the_mended_config_trains(run):
    """What a failed start left in the run folder did not disturb the next one."""
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert (run / "export/model.safetensors").exists()
    assert "attention: auto" in (run / "config.yaml").read_text()


@pytest.mark.slow
@table("export")
def test_a_mistake_of_export(say, run, broken, given, said):
    before = sorted(path.name for path in run.iterdir())
    status, message = say("export", *[argument.replace("RUN", str(run)) for argument in given])
    assert message.replace(str(run), "RUN").startswith(f"error: {said}")
    assert status == 2
    assert sorted(path.name for path in run.iterdir()) == before
    for name in ("thesis/thesis.tex", "project/sources/main.py", "essay.tmp/essay.tex"):
        assert (broken / name).read_text() == "years of work"
    assert (broken / "good/model.safetensors").exists()


@pytest.mark.slow
def test_export_does_not_delete_the_folder_it_is_started_in(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "work").write_text("")
    monkeypatch.chdir(tmp_path)
    assert run_command(export.main, ["--run", str(run), "--out", "."]) == 2
    assert "exists and is not an export" in capsys.readouterr().err
    assert (tmp_path / "work").exists()


@pytest.mark.slow
def test_export_of_a_run_whose_template_is_another_by_now(say, run, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(run, changed)
    config = changed / "config.yaml"
    config.write_text(config.read_text().replace("template: bayling", "template: vicuna"))
    status, message = say("export", "--run", str(changed), "--out", "OUT")
    assert status == 2
    assert "was trained with another template: bayling; what its config.yaml names has vicuna" in message


@pytest.mark.slow
def test_export_onto_a_disk_too_small(say, run, small_disk):
    status, message = say("export", "--run", str(run), "--out", "OUT")
    assert status == 2
    assert message.startswith("error: OUT: the disk has 0.000 GiB free")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["export", "train"])
def test_a_damaged_checkpoint_is_named_with_its_tensor_in_one_line(verb, run, tmp_path, capsys):
    """The arguments are right, the run is not: exit status 1."""
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (weights,) = damaged.glob("checkpoints/*/*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    arguments = {
        "export": ["--run", str(damaged), "--out", str(tmp_path / "out"), "--json"],
        "train": ["--config", str(run / "config.yaml"), "--run_dir", str(damaged), "--json"],
    }
    assert run_command({"export": export, "train": train}[verb].main, arguments[verb]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    first, *rest = err.splitlines()
    assert "step-00000002: damaged, so not used: " in first and " is not what was saved" in first
    assert rest == [
        f"error: {damaged}/checkpoints: all checkpoints are damaged",
        "  Restore one, or choose another run_dir to start over.",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


@pytest.mark.slow
def test_export_refuses_a_folder_before_it_reads_a_checkpoint(run, tmp_path, capsys):
    """Which may take minutes; that it is damaged shows which of the two came first."""
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (weights,) = damaged.glob("checkpoints/*/*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run_command(export.main, ["--run", str(damaged), "--out", str(tmp_path)]) == 2
    assert "exists and is not an export" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("problem", "status", "said"),
    [
        (UserError("where", "what", "fix"), 2, "error: where: what\n  fix\n"),
        (RunError("where", "what"), 1, "error: where: what\n"),
        (PermissionError(13, "Permission denied", "/data/x"), 1, "error: /data/x: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "error: while writing: No space left on device\n"),
        (OSError(122, "Disk quota exceeded"), 1, "error: while writing: Disk quota exceeded\n"),
        (MemoryError(), 1, "error: memory is full\n"),
        (MemoryError("Unable to allocate 2 TiB"), 1, "error: memory is full: Unable to allocate 2 TiB\n"),
        (KeyboardInterrupt(), 130, "stopped by the keyboard\n"),
        (
            UserError("x", "\n".join(map(str, range(9)))),
            2,
            "error: x: 0\n1\n2\n3\n4\n  ... and 4 lines more\n",
        ),
    ],
    ids=str,
)
def test_how_a_verb_ends(problem, status, said, capsys):
    def fail(arguments):
        raise problem

    assert run_command(fail, []) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("file", ["/dev/full", "gone/error.json"])
def test_a_mistake_that_torchrun_cannot_be_told_is_said_all_the_same(file, monkeypatch, capsys):
    """Its file lies in the folder for temporary files, whose disk may be the full one."""

    def fail(arguments):
        raise OSError(28, "No space left on device", "runs/mine/x")

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
    assert run_command(fail, []) == 1
    assert capsys.readouterr().err == "error: runs/mine/x: No space left on device\n"


def test_one_rank_speaks_for_all(monkeypatch, capsys):
    """The others wait until torchrun ends them; tests/test_errors.py does that for real."""

    def fail(arguments):
        raise UserError("where", "what")

    def ended_by_torchrun(seconds):
        assert seconds == errors.SECONDS_FOR_RANK_0
        raise SystemExit

    monkeypatch.setitem(os.environ, "RANK", "3")
    monkeypatch.setattr(errors.time, "sleep", ended_by_torchrun)
    with pytest.raises(SystemExit):
        run_command(fail, [])
    assert capsys.readouterr().err == ""


def test_a_bug_of_ours_shows_its_traceback():
    """Only what a user can mend is said in words; an error in fastling itself keeps its traceback."""
    with pytest.raises(ZeroDivisionError):
        run_command(lambda arguments: 1 // 0, [])
