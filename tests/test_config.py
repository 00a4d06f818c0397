"""Settings: where they come from, which wins, and that none is ever accepted by mistake."""

import dataclasses
import os
import string
import subprocess
import sys
from typing import Literal, get_args, get_origin

import numpy
import pytest
import yaml
from conftest import ROOT, config_of
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fastling import config as config_module
from fastling import settings
from fastling.config import MOST_SOURCES, PACKAGE, Config, Data, Source, build_parser, resolve
from fastling.data.store import ARRAYS
from fastling.errors import UserError
from fastling.other_names import OTHER_NAMES

SETTINGS = {setting.name: setting for setting in settings.settings_of(Config)}
SECTIONS = {name.partition(".")[0] for name in SETTINGS if "." in name}


@pytest.fixture
def read(tmp_path):
    """The config of a YAML text and options."""

    def run(text: str, *options: str) -> Config:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return config_of("--config", path, *options)

    return run


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file to write a config to, again and again."""
    return tmp_path_factory.mktemp("config") / "config.yaml"


# Which wins -----------------------------------------------------------------------------------------


def test_a_file_wins_over_defaults_and_the_command_line_over_both(read):
    text = "seed: 7\noptimizer: {lr: 1.0e-3}\n"
    assert read("{}") == Config()
    found = read(text, "--optimizer.lr", "2e-3")
    assert (found.seed, found.optimizer.lr, found.optimizer.beta1) == (7, 2e-3, 0.9)


def test_the_command_line_wins_wherever_it_stands(read, tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 7")
    for order in (
        ["--seed=8", "--config", str(tmp_path / "a.yaml")],
        [f"--config={tmp_path}/a.yaml", "--seed=8"],
    ):
        found = config_of(*order)
        assert found.seed == 8


def test_of_two_files_the_later_one_wins_key_by_key(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 7\noptimizer: {lr: 0.5, beta1: 0.8}\n")
    (tmp_path / "more.yaml").write_text("optimizer: {lr: 0.25}\n")
    files = [f"--config={tmp_path}/{name}.yaml" for name in ("base", "more")]
    found = config_of(*files)
    assert (found.seed, found.optimizer.lr, found.optimizer.beta1) == (7, 0.25, 0.8)


def test_a_list_on_the_command_line_replaces_the_file_s(read):
    text = "data: {sources: [{name: a, path: a.jsonl}, {name: b, path: b.jsonl}]}"
    found = read(text, "--data.sources", '[{"name": "c", "path": "c.jsonl", "weight": 0.5}]')
    assert [(each.name, each.path, each.weight) for each in found.data.sources] == [("c", "c.jsonl", 0.5)]


def test_a_section_whose_settings_are_all_commented_out_is_an_empty_one(read):
    assert read("seed: 1\noptimizer:\n  # lr: 1\n").optimizer == Config().optimizer


def test_without_a_config_it_is_the_demo_s():
    demo = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    found = config_of("--seed", "3")
    assert (found.run_dir, found.seed) == (demo["run_dir"], 3)


def test_as_many_sources_are_taken_as_a_store_can_number_and_no_more():
    assert numpy.iinfo(ARRAYS["sources"]).max == MOST_SOURCES - 1
    sources = [Source(name=str(number), path="a.jsonl") for number in range(MOST_SOURCES + 1)]
    assert Data(sources=sources[:MOST_SOURCES]).sources
    for changes in ({"sources": sources}, {"validation": sources}):
        with pytest.raises(UserError, match=f"^data.{[*changes][0]}: are more than 32,768 sources: 32,769"):
            Data(**changes)


# Types ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer: {lr: 1e-4}", 1e-4),  # text in YAML 1.1
        ("optimizer: {lr: 1.0e-4}", 1e-4),
        ("optimizer: {lr: 1}", 1.0),
        ("optimizer: {lr: .5}", 0.5),
    ],
)
def test_a_number_may_be_written_in_any_way(read, text, expected):
    lr = read(text).optimizer.lr
    assert lr == expected and isinstance(lr, float)


def test_text_on_the_command_line_needs_no_quotes(read):
    found = read("{}", "--run_dir", "2026-11-20", "--data.template", "no", "--data.store=1: 2")
    assert (found.run_dir, found.data.template, found.data.store) == ("2026-11-20", "no", "1: 2")


@pytest.mark.parametrize(
    "text",
    [
        "optimizer: {lr: true}",
        "train: {steps: yes}",
        'train: {steps: "5"}',
        "train: {compile: 1}",
        "run_dir: [a]",
    ],
)
def test_values_are_never_converted_to_another_type(read, text):
    with pytest.raises(UserError, match="expected"):
        read(text)


@pytest.mark.parametrize("name", ["run_dir", "data.tokenizer", "data.sources"])
def test_bytes_on_the_command_line_that_are_no_utf_8_are_refused_in_words(name, read):
    """As a file's name may have them."""
    with pytest.raises(UserError, match=f"^--{name}: is not UTF-8 at character 2: Gr\udcfcn"):
        read("seed: 1", f"--{name}", "Gr\udcfcn")


def test_null_takes_back_what_a_file_says(read):
    text = "train: {steps: 5}\ndata: {tokenizer: x}\n"
    found = read(text, "--train.steps", "null", "--data.tokenizer", "null", "--train.epochs", "2")
    assert (found.train.steps, found.train.epochs, found.data.tokenizer) == (None, 2, None)


def test_a_file_may_start_with_a_byte_order_mark(tmp_path):
    (tmp_path / "windows.yaml").write_bytes("seed: 5\r\n".encode("utf-8-sig"))
    found = config_of("--config", tmp_path / "windows.yaml")
    assert found.seed == 5


# What is kept with the run --------------------------------------------------------------------------


def texts():
    """Any text of one line, and such as YAML would take for something else."""
    letters = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))
    deceptive = [
        "no",
        "null",
        "~",
        "1",
        "1e5",
        ".5",
        "-1.5e-3",
        "0x1",
        "2026-11-20",
        "1:30",
        " a",
        "a: b",
        "#",
        "*a",
    ]
    return st.text(letters, min_size=1, max_size=20) | st.sampled_from(deceptive)


def values_of(kind):
    """Any value that a setting may have by its type, but for the rules of its section."""
    inner = [each for each in get_args(kind) if each is not type(None)]
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is list:
        fields = {
            "name": texts(),
            "path": texts(),
            "weight": st.floats(1e-9, 1000),
            "pair": st.none() | texts(),
        }
        return st.lists(st.fixed_dictionaries(fields), max_size=3, unique_by=lambda each: each["name"])
    if inner:
        return st.none() | values_of(inner[0])
    return {
        bool: st.booleans(),
        int: st.integers(1, 10**9),
        float: st.floats(1e-12, 0.99),
        str: texts(),
    }[kind]


# One of the two settings of each pair stays as it is, since together they are refused.
FIXED = {
    "train.steps",
    "data.validation",
    "optimizer.decay_ratio",
    "optimizer.min_lr_ratio",
    "model.pretrained",
    "log.project",
}


@hypothesis_settings(phases=[Phase.generate], max_examples=30)  # the values speak for themselves
@given(data=st.data())
def test_the_resolved_config_reads_back_equal(data, file):
    values = {
        name: data.draw(values_of(setting.kind), label=name)
        for name, setting in SETTINGS.items()
        if name not in FIXED
    }
    given = settings.Settings(Config, OTHER_NAMES)
    for name, value in values.items():
        section, _, last = name.rpartition(".")
        (given.tree.setdefault(section, {}) if section else given.tree)[last] = value
    config = given.build()
    file.write_text(config.as_yaml(), encoding="utf-8")
    assert yaml.safe_load(config.as_yaml()) == dataclasses.asdict(config)
    read = settings.Settings(Config, OTHER_NAMES)
    read.read_file(file)
    assert read.build() == config


def test_the_resolved_config_of_a_run_reads_back_equal(read):
    text = """
    optimizer: {lr: 1e-4, eps: 1e-08, min_lr_ratio: 0.1}
    log: {wandb: true, project: mine}
    data:
      sources: [{name: 对话, path: "a b.jsonl", weight: 0.5}, {name: "no", path: "null", pair: zh-en}]
      validation: [{name: x, path: "1"}]
    """
    config = read(text)
    assert read(config.as_yaml()) == config
    assert "对话" in config.as_yaml()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_that_comes_with_fastling_is_read(path):
    found = config_of("--config", path)
    assert found.data.sources
    assert found.train.global_batch_tokens % found.data.sequence_length == 0


# Help -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def help_text() -> str:
    return build_parser("fastling train", "Train a model.").format_help()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_description_and_help_shows_it_with_its_default(name, help_text):
    setting = SETTINGS[name]
    assert len(setting.text) > 10, f"{name} needs a text below its field"
    words = " ".join(help_text.split())
    option = words.split(f" --{name} ", 1)[1].split(" --", 1)[0]
    assert setting.text in option
    if setting.default not in (None, []):
        assert f"(default: {str(setting.default)})".lower() in option.lower()


def test_help_begins_short_and_groups_by_section(help_text):
    lines = help_text.splitlines()
    assert lines[0] == "usage: fastling train [--config FILE] [--section.key VALUE ...] [options]"
    assert all(len(line) <= 100 for line in lines)
    for section in SECTIONS:
        assert f"{section}:" in lines


def test_every_section_says_what_it_is_about():
    for item in dataclasses.fields(Config):
        if dataclasses.is_dataclass(item.type):
            assert not item.type.__doc__.startswith(f"{item.type.__name__}("), item.name


def test_without_a_config_the_user_learns_that_this_is_the_demo(capsys, monkeypatch, file):
    file.write_text("seed: 1", encoding="utf-8")
    config_of("--config", file)
    monkeypatch.setenv("RANK", "1")
    config_of()
    assert not capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    config_of()
    assert capsys.readouterr().err == "no --config: this is the demo, in runs/demo\n"


# Names ----------------------------------------------------------------------------------------------


def test_other_trainers_names_lead_to_settings_that_exist():
    assert set(OTHER_NAMES.values()) <= SETTINGS.keys()
    assert not OTHER_NAMES.keys() & SETTINGS.keys()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("base_model", "model.pretrained"),
        ("eval_dataset", "data.validation"),
        ("val_set_size", "data.held_out_share"),
        ("batch_size", "train.micro_batch_tokens"),
        ("save_steps", "checkpoint.every_steps"),
        ("eval_steps", "evaluate.every_steps"),
        ("lr_scheduler_type", "optimizer.schedule"),
    ],
)
def test_another_trainers_name_is_not_taken_for_a_setting_that_merely_looks_like_it(given, meant):
    assert settings.nearest(given, sorted(SETTINGS), OTHER_NAMES) == f"Did you mean {meant}?"


@pytest.mark.parametrize("given", ["pad_token", "resume_from_checkpoint", "max_norm", "lora_r"])
def test_names_without_a_counterpart_suggest_no_setting(given):
    sections = [item.name for item in dataclasses.fields(Config)]
    assert (
        settings.nearest(given, [*sorted(SETTINGS), *sections], OTHER_NAMES) == "--help shows every setting."
    )


@st.composite
def mistyped(draw) -> str:
    """A valid name with one letter more, less, or other, or two changed about."""
    name = draw(st.sampled_from(sorted(SETTINGS)))
    at = draw(st.integers(0, len(name) - 1))
    letter = draw(st.sampled_from(string.ascii_lowercase + "_.0"))
    edits = {
        "insert": name[:at] + letter + name[at:],
        "delete": name[:at] + name[at + 1 :],
        "replace": name[:at] + letter + name[at + 1 :],
        "swap": name[:at] + name[at : at + 2][::-1] + name[at + 2 :],
    }
    return edits[draw(st.sampled_from(sorted(edits)))]


@given(typed=mistyped())
def test_a_name_with_one_typing_mistake_is_never_accepted(typed, file):
    """Neither on the command line nor in a file."""
    if typed in SETTINGS or not typed.strip("."):
        return
    with pytest.raises(UserError) as refused:
        build_parser("test", "").parse_args([f"--{typed}", "1"])
    assert f"unknown setting: {typed.lstrip('-')}" in str(refused.value)
    section, _, last = typed.rpartition(".")
    tree = {last: None}
    for part in reversed(section.split(".")) if section else ():
        tree = {part: tree}
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(UserError, match="unknown setting|expected"):
        given = settings.Settings(Config, OTHER_NAMES)
        given.read_file(file)
        given.build()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_letter_left_out_of_a_longer_name_is_recognised(name):
    last = name.rpartition(".")[2]
    for at in range(1, len(last)) if len(last) > 5 else ():
        typed = name.removesuffix(last) + last[:at] + last[at + 1 :]
        if typed not in SETTINGS:
            assert name in settings.nearest(typed, sorted(SETTINGS), OTHER_NAMES)


def test_a_name_on_the_hub_is_no_folder_and_how_to_fetch_it_is_said():
    with pytest.raises(UserError, match=r"hf download Qwen/Qwen2\.5-7B --local-dir Qwen/Qwen2\.5-7B"):
        resolve("Qwen/Qwen2.5-7B", "model.pretrained")


# Paths ----------------------------------------------------------------------------------------------


def test_a_path_in_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("fastling:demo/train.jsonl", "here") == PACKAGE / "demo/train.jsonl"
    assert resolve("fastling:configs/demo.yaml", "here").read_text().startswith("# A small LLaMA")


def test_a_path_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text("")
    assert resolve("~/a.jsonl", "here") == tmp_path / "a.jsonl"
    # Made as it is written, it would be a folder called ~, which nobody dares to delete.
    assert Config(run_dir="~/runs/mine").run_folder == tmp_path / "runs/mine"


def test_the_tokenizer_is_the_pretrained_folder_s_unless_named(tmp_path):
    model = config_module.Model(pretrained=str(tmp_path))
    assert Config(model=model).tokenizer_path == tmp_path
    named = config_module.Data(tokenizer="fastling:demo/tokenizer.model")
    assert Config(model=model, data=named).tokenizer_path == PACKAGE / "demo/tokenizer.model"


def test_steps_on_the_command_line_stand_in_place_of_epochs_in_the_file(read):
    config = read("train: {epochs: 3}", "--train.steps", "5")
    assert (config.train.steps, config.train.epochs) == (5, None)
    config = read("train: {steps: 3}", "--train.epochs", "2")
    assert (config.train.steps, config.train.epochs) == (None, 2)


@pytest.mark.parametrize(("length", "expected"), [(8, 4), (64, 32), (2048, 64)])
def test_sample_answers_leave_room_for_a_question_in_packs_of_any_length(length, expected, read):
    text = f"data: {{sequence_length: {length}, validation: [{{name: a, path: a.jsonl}}]}}"
    assert read(text).evaluate.sample_tokens == expected
    assert read(text, "--evaluate.sample_tokens", "7").evaluate.sample_tokens == 7
    with pytest.raises(
        UserError, match=f"evaluate.sample_tokens: leaves no room for a question .*: {length}"
    ):
        read(text, "--evaluate.sample_tokens", str(length))


@pytest.mark.parametrize(
    ("length", "step", "micro_batch"),
    [(2048, 262144, 8192), (1000, 262000, 8192), (300_000, 300_000, 300_000)],
)
def test_batches_that_are_not_given_are_whole_packs_of_any_length(length, step, micro_batch, read):
    train = read(f"data: {{sequence_length: {length}}}").train
    assert (train.global_batch_tokens, train.micro_batch_tokens) == (step, micro_batch)
    given = read(f"data: {{sequence_length: {length}}}", "--train.global_batch_tokens", "4096").train
    assert (given.global_batch_tokens, given.micro_batch_tokens) == (4096, micro_batch)


@pytest.mark.parametrize("nothing", ["null", "~", ""])
def test_null_on_the_command_line_stands_in_place_of_nothing_else(nothing, read):
    config = read("train: {epochs: 2}", "--train.steps", nothing)
    assert (config.train.steps, config.train.epochs) == (None, 2)
    config = read("train: {steps: 100}", "--train.epochs", nothing)
    assert (config.train.steps, config.train.epochs) == (100, None)


def test_a_name_that_the_locale_cannot_write_is_refused_in_words():
    """Python would say in a traceback that a codec cannot encode it, or that there is no such file."""
    code = r"from fastling.config import resolve; resolve('\u6570.jsonl', 'source a')"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "source a: cannot be written in ascii, the locale's" in found.stderr
