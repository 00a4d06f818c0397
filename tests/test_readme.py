"""True docs: every command of README.md is run here (but `make`, which CI runs), and its map is true."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from conftest import DEMO, ROOT, config_of, run_python
from interactive.parallel_text import write_corpus
from safetensors.torch import load_file

from fastling import config as settings
from fastling.data.template import load_template
from fastling.data.tokenizer import load_tokenizer
from fastling.errors import run_command
from fastling.export import make_export
from fastling.model.llama import Llama, LlamaConfig
from fastling.prepare import main as prepare_main
from fastling.prepare import make_encoder

README = (ROOT / "README.md").read_text(encoding="utf-8")


KERNEL_COMMANDS = [
    "python -m benchmarks.kernels --static",
    "python -m benchmarks.kernels --errors",
    "make gpu-kernels",
    "python -m benchmarks.report benchmarks/results/kernels.jsonl",
]


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def test_every_command_is_of_a_known_kind():
    first, second, readers, evaluating, third = blocks("bash")
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]
    assert {line.split()[1] for line in second.splitlines()} == {
        "prepare", "preview", "plan", "verify", "--nproc_per_node", "export",
    }  # fmt: skip
    assert (
        readers.split("#")[0].strip() == "make readers"
    )  # what it runs is skipped where it has installed nothing
    assert {line.split()[1] for line in evaluating.splitlines()} == {"evaluate", "chat"}
    assert [line.split("#")[0].strip() for line in third.splitlines()] == KERNEL_COMMANDS
    assert len(blocks("slurm")) == 1


def test_every_promise_that_is_named_is_told():
    told = set(re.findall(r"^\| (P\d+) \|", README, re.MULTILINE))
    named = set()
    for folder in ("fastling", "kernels", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            named |= set(re.findall(r"\bP\d+\b", path.read_text(encoding="utf-8")))
    assert named <= told == {f"P{number}" for number in range(1, 15)}


def test_make_targets_exist_and_do_what_the_readme_says():
    said = {
        "demo": "-m fastling.train",
        "test": "-m pytest",
        "check": "ruff check",
        "readers": "tests/readers",
        "gpu-test": '-m "not slow" tests/kernels',
        "gpu-kernels": "-m fastling.verify",
        "gpu-train": "-m benchmarks.train",
    }
    for target, expected in said.items():
        shown = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
        assert expected in shown.stdout


@pytest.fixture
def user_folder(tmp_path):
    """A folder as the README's user has it: a small llama-7b, data of their own, and mine.yaml."""
    (tmp_path / "data").mkdir()
    shutil.copyfile(DEMO / "train.jsonl", tmp_path / "data" / "mine.jsonl")
    shutil.copyfile(DEMO / "held-out.jsonl", tmp_path / "data" / "held-out.jsonl")
    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    demo = config_of()
    shape = LlamaConfig(
        vocab_size=load_tokenizer(DEMO / "tokenizer.model").vocab_size,
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    )  # fmt: skip
    export = make_export(tmp_path / "models" / "llama-7b", shape, make_encoder(demo), demo)
    export.rehearse()
    torch.manual_seed(0)
    export.write(Llama(shape))
    return tmp_path


def run_shell(command: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    """Run a line as a shell would, with this interpreter's fastling and torchrun, on 2 processes for 8."""
    words = shlex.split(command.replace("--nproc_per_node 8", "--nproc_per_node 2"))
    programs = {"fastling": ["fastling"], "torchrun": ["torch.distributed.run"]}
    return run_python(*programs[words[0]], *words[1:], cwd=cwd, **options)


@pytest.mark.slow
def test_the_commands_for_your_own_data_work_in_order(user_folder, monkeypatch):
    monkeypatch.delenv("WITHOUT_TRANSFORMERS")
    for command in blocks("bash")[1].splitlines():
        result = run_shell(command, user_folder)
        assert result.returncode == 0, (command, result.stderr)
    assert "from transformers" in result.stderr  # the last one's, of the logits
    for name in README.split("leaves in `runs/mine`:")[1].split(". Any setting")[0].split("`")[1::2]:
        assert (user_folder / "runs/mine" / name).exists(), name
    python = user_folder / "example.py"
    python.write_text(blocks("python")[-1] + "\nassert logits.shape[0] == 5\n")
    subprocess.run([sys.executable, python], cwd=user_folder, check=True)


@pytest.mark.slow
def test_the_commands_to_evaluate_and_to_talk_work_in_order(user_folder):
    """All but the last, whose server tests/test_chat.py asks with OpenAI's own client."""
    (user_folder / "models" / "llama-7b").rename(user_folder / "my-model")
    for language, lines in (("zh", "大家早上好。\n"), ("en", "Good morning to all of you.\n")):
        (user_folder / "data" / f"test.{language}").write_text(lines, encoding="utf-8")
    *commands, talk, serve = blocks("bash")[3].splitlines()
    for command in commands:
        result = run_shell(command, user_folder)
        assert result.returncode == 0, (command, result.stderr)
        if "--json" in command:
            assert json.loads(result.stdout.splitlines()[-1])["bleu"] == pytest.approx(100)
    assert (user_folder / "report.html").stat().st_size > 1000
    said = run_shell(f"{talk} --max-new-tokens 2", user_folder, input="你好\n/quit\n")
    assert said.returncode == 0, said.stderr
    assert serve == f"{talk} --web"


def test_the_template_of_ones_own_is_one_and_names_every_field(tmp_path):
    (tmp_path / "mine-template.yaml").write_text(blocks("yaml")[1], encoding="utf-8")
    template = load_template(str(tmp_path / "mine-template.yaml"))
    assert template.name == "mine-template"
    assert {"name", *yaml.safe_load(blocks("yaml")[1])} == {field.name for field in fields(template)}


def test_a_kernel_can_be_used_alone():
    scope: dict = {}
    exec(compile(blocks("python")[0], "README.md", "exec"), scope)
    assert scope["weight"].grad.abs().sum() > 0 and scope["nll"].shape == (6,)


@pytest.mark.slow
def test_the_commands_of_baylings_recipe_work_in_order(user_folder):
    """On a small llama-7b and 600 sentences a pair; only the batch is made smaller, to have a step of it."""
    data = user_folder / "data"
    for language in ("zh", "de"):
        corpus = write_corpus(user_folder, language, "en")
        for path, code in ((corpus.first, language), (corpus.second, "en")):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            for part, some in (("train", lines[:500]), ("valid", lines[500:])):
                (data / f"{part}.{code}").write_text("".join(some), encoding="utf-8")
            (data / f"test.{code}").write_text("nothing of this is in the text\n")
    (data / "alpaca.json").write_text(json.dumps([{"instruction": "Say hello.", "output": "Hello."}]))
    shutil.copytree(ROOT / "configs", user_folder / "configs")
    page = (ROOT / "configs" / "bayling.md").read_text(encoding="utf-8")
    commands = "".join(re.findall(r"^```bash\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)).splitlines()
    programs = [command.split()[0] for command in commands]
    assert programs == ["fastling"] * 4 + ["torchrun"] + ["fastling"] * 4
    (data / "held-out.jsonl").unlink()  # the README's
    for command in commands:
        command += " --max-new-tokens 2" if "--model" in command else ""
        if "fastling.train" in command:
            command += " --train.global_batch_tokens 8192 --train.micro_batch_tokens 4096 --train.epochs 1"
            command += " --train.precision fp32"
        result = run_shell(command, user_folder, input="你好\n")
        assert result.returncode == 0, (command, result.stderr)
    applied, trained = (
        load_file(user_folder / folder / "model.safetensors")
        for folder in ("bayling-7b", "runs/bayling-7b/export")
    )
    assert applied.keys() == trained.keys()
    for name, weight in trained.items():
        torch.testing.assert_close(applied[name], weight, atol=1e-3, rtol=1e-2)


@pytest.mark.slow
def test_the_slurm_script_runs_with_stand_ins_for_slurm(user_folder):
    programs = user_folder / "bin"
    programs.mkdir()
    stand_ins = {
        "scontrol": "echo localhost",
        "srun": 'exec "$@"',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    }
    for name, body in stand_ins.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    with socket.create_server(("localhost", 0)) as free:  # another test run on this machine may have 29500
        port = free.getsockname()[1]
    script = (
        blocks("slurm")[0].replace("--nproc_per_node 8", "--nproc_per_node 1").replace("29500", str(port))
    )
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_JOB_ID": "7",
    }
    script += "  --train.steps 1\n" if script.endswith("\\\n") else ""
    result = subprocess.run(
        ["bash", "-c", script], cwd=user_folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert (user_folder / "runs/mine/export/model.safetensors").exists()


def test_the_forms_of_data_are_all_read():
    from fastling.data.conversation import parse_row

    rows = blocks("json")[0].splitlines()
    assert len(rows) == 5
    for row in rows:
        assert parse_row(row.encode()).turns[-1].role in ("assistant", "text")


def test_the_before_and_after_is_what_prepare_prints(tmp_path, capsys):
    arguments = ["--run_dir", str(tmp_path), "--train.epochs", "1", "--json"]
    assert run_command(prepare_main, arguments) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = sum(source["kept"] for source in found["sources"].values())
    assert f"| rows of 256 tokens in an epoch | {rows} | {found['packs']} |" in README
    fill, padded = 100 * found["fill"], 100 * found["padded_fill"]
    assert f"| share of them that is real tokens | {padded:.1f} % | {fill:.1f} % |" in README


def test_the_map_names_every_file_and_no_other():
    tree = blocks("")[-1]
    folder, named = "", set()
    for line in tree.splitlines():
        paths = re.findall(r"[\w/-]+\.(?:py|yaml)|^\w+/", line)
        if paths and paths[0].endswith("/"):
            folder = paths.pop(0)
        for path in paths:
            inside = str(Path(paths[0]).parent) if folder == "fastling/" and "/" in paths[0] else "."
            named.add(os.path.normpath(Path(folder, path if "/" in path else Path(inside, path))))
    real = {
        str(path.relative_to(ROOT))
        for pattern in ("fastling/**/*.py", "kernels/*.py", "benchmarks/*.py", "configs/*.yaml")
        for path in ROOT.glob(pattern)
        if not path.name.startswith("__") and path.name != "demo.py"
    }
    links = ("fastling/configs", "fastling/kernels")
    real = {path for path in real if not path.startswith(links)}
    assert named == real


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_read_and_holds_only_differences(path):
    found = config_of("--config", path)
    written = yaml.safe_load(path.read_text())
    default = settings.Config()
    for section, values in written.items():
        if isinstance(values, dict):
            for name, value in values.items():
                assert value != getattr(getattr(default, section), name), f"{section}.{name}"
    assert found.run_dir == written["run_dir"]


@pytest.mark.slow
def test_the_demo_as_eight_processes_would_train_it(tmp_path):
    """`torchrun --nproc_per_node 8 -m fastling.train`, exactly so but for a few steps."""
    result = run_python(
        "fastling.train", "--run_dir", tmp_path / "run", "--train.steps", "2", "--evaluate.samples", "1",
        "--evaluate.sample_tokens", "2", ranks=8,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "no --config: this is the demo, in" in result.stderr
    assert "8 process(es)" in result.stderr


@pytest.mark.slow
def test_the_demo_learns(tmp_path):
    """What `make demo` runs after installing."""
    result = run_python("fastling.train", "--run_dir", tmp_path / "run", "--json")
    assert result.returncode == 0, result.stderr
    done = json.loads(result.stdout.splitlines()[-1])
    assert done["loss_last"] < 0.6 * done["loss_first"]
    assert done["eval_loss_last"] < 0.75 * done["eval_loss_first"]
    assert (tmp_path / "run/loss.png").exists()
