"""What a run folder records, and that it is one folder for all processes."""

import gc
import json
import re
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import DEMO, config_of, tiny_settings
from safetensors.torch import save_file

from fastling.config import Config
from fastling.errors import RunError, UserError
from fastling.model.digests import mark_of_weights
from fastling.model.huggingface import hf_tensors
from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig
from fastling.model.safetensors_folder import save_weights
from fastling.ops import Choice
from fastling.prepare import make_encoder, prepare_data
from fastling.train import summarise
from fastling.training import record
from fastling.training.build import model_config

OWN = 'user: "Q: {content}\\n"\nassistant: "A: {content}{eos}\\n"\n'


def test_a_folder_that_another_process_does_not_see_is_refused_before_the_first_step(tmp_path, monkeypatch):
    """As where each node has a disk of its own at that path, perhaps with an earlier run's lock."""
    monkeypatch.setattr(record, "SECONDS_UNTIL_SEEN", 1)
    lock = record.lock_run_dir(tmp_path / "run")
    record.check_shared(tmp_path / "run", lock.number)
    earlier = record.lock_run_dir(tmp_path / "elsewhere")
    assert earlier.number != lock.number
    for other in ("elsewhere", "nowhere"):
        with pytest.raises(UserError, match=f"run_dir: is not on a disk that all .*{other}/lock"):
            record.check_shared(tmp_path / other, lock.number)


def test_a_second_run_leaves_the_lock_unchanged(tmp_path):
    lock = record.lock_run_dir(tmp_path)
    with pytest.raises(UserError, match="another run is using"):
        record.lock_run_dir(tmp_path)
    record.check_shared(tmp_path, lock.number)


def test_a_full_disk_is_reported_once_and_not_again_on_unlocking(tmp_path, quota):
    (tmp_path / "checkpoints").mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with pytest.raises(UserError, match="run_dir: cannot be written: .*: File too large"):
        record.lock_run_dir(tmp_path)
    gc.collect()  # pytest fails the test if the end of the lock raises


def test_on_a_disk_without_locks_a_run_continues_and_says_so(tmp_path, no_locks, capsys):
    lock = record.lock_run_dir(tmp_path)
    record.check_shared(tmp_path, lock.number)
    said = capsys.readouterr().err
    assert said.startswith(f"note: {tmp_path}/lock: its disk has no locks (Function not implemented)")
    assert said.count("\n") == 1


def test_the_pretrained_model_is_identified_by_weights_not_path(tmp_path):
    data = {"tokenizer": "fastling:demo/tokenizer.model", "sequence_length": 256}
    data["sources"] = [{"name": "demo", "path": "fastling:demo/held-out.jsonl"}]
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=2000, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                              num_attention_heads=2))  # fmt: skip

    def identity(name: str) -> dict:
        settings = {"model": {"pretrained": str(tmp_path / name)}, "data": data, "train": {"steps": 1}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        config = config_of("--config", tmp_path / "config.json")
        return record.identity(config, prepare_data(config), model.config)

    save_weights(hf_tensors(model), tmp_path / "base")
    first = json.loads(json.dumps(identity("base")))
    (tmp_path / "base").rename(tmp_path / "moved")
    record.check_identity(tmp_path, first, identity("moved"))
    model.model.norm.weight.data[3] = 2
    save_weights(hf_tensors(model), tmp_path / "other")
    with pytest.raises(UserError, match="another model.pretrained, by its weights: .*; the config now gives"):
        record.check_identity(tmp_path, first, identity("other"))


def test_the_same_steps_over_more_packs_are_another_run(tmp_path):
    """The last step of an epoch may have few packs; with `steps` in its place it is full."""
    data = {"tokenizer": "fastling:demo/tokenizer.model", "sequence_length": 256}
    data["sources"] = [{"name": "demo", "path": "fastling:demo/held-out.jsonl"}]
    shape = LlamaConfig(
        vocab_size=2000, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    found = []
    for length in ({"epochs": 1}, {"steps": 1}, {"steps": 1, "global_batch_tokens": 256 * 98}):
        settings = {"data": data, "train": {"global_batch_tokens": 256 * 99, **length}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        config = config_of("--config", tmp_path / "config.json")
        found.append(record.identity(config, prepare_data(config), shape))
    assert [each["number of steps"] for each in found] == [1, 1, 1]
    with pytest.raises(UserError, match="another number of packs: .*; the config now gives 99"):
        record.check_identity(tmp_path, *found[:2])
    # Where a setting of the user's is why, that is what is named.
    with pytest.raises(
        UserError, match="another train.global_batch_tokens: 25344; the config now gives 25088"
    ):
        record.check_identity(tmp_path, *found[1:])


def test_a_changed_sequence_length_is_not_reported_as_a_changed_shape(tmp_path):
    """Of a new model, whose shape the user has not set in full: its longest sequence is that of the data."""
    found = []
    for length in (256, 128):
        settings = tiny_settings(tmp_path / "run")
        settings["data"]["sequence_length"] = length
        (tmp_path / "config.json").write_text(json.dumps(settings))
        config = config_of("--config", tmp_path / "config.json")
        prepared = prepare_data(config)
        found.append(record.identity(config, prepared, model_config(config, prepared.encoder)))
    with pytest.raises(UserError, match=r"another data \(.* or sequence_length\)"):
        record.check_identity(tmp_path, *found)


def test_a_resume_on_other_data_says_what_may_differ(tmp_path):
    """The two values are digests."""
    with pytest.raises(UserError, match=r"another data \(rows, .*, template or sequence_length\): 12; .* 34"):
        record.check_identity(tmp_path, {"data": "12"}, {"data": "34"})


@pytest.mark.parametrize(
    ("changes", "held_out", "attention", "said"),
    [
        ({}, "a", "flash3", None),
        ({"data": "34"}, "a", "flash3", r"data \(rows, .*\): differs between processes"),
        ({"optimizer.lr": 0.2}, "a", "flash3", "optimizer.lr: differs between"),
        ({}, "b", "flash3", "data.validation: differs between"),
        ({}, "a", "torch", "attention: differs between"),
    ],
)
def test_processes_with_different_settings_are_all_stopped(changes, held_out, attention, said):
    """As with a copy of the data on each node, one of them an older one; or FlashAttention-3 on one only."""
    identities = [{"data": "12", "optimizer.lr": 0.1}, {"data": "12", "optimizer.lr": 0.1, **changes}]
    both = threading.Barrier(2, timeout=60)
    marks = [None, None]

    def process(rank: int) -> str | None:
        def add(mine: torch.Tensor) -> torch.Tensor:
            marks[rank] = mine
            both.wait()
            return marks[0] + marks[1]

        prepared = SimpleNamespace(validation=SimpleNamespace(folder=Path(("a", held_out)[rank])))
        world = SimpleNamespace(size=2, sum=add, from_main=lambda number: number)
        choices = [Choice("attention", ("flash3", attention)[rank], "first of those installed")]
        try:
            record.check_agreed(Config(), prepared, identities[rank], choices, world)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(process, (0, 1)))
    assert found[0] == found[1]
    assert found[0] is None if said is None else re.match(said, found[0])


def test_models_with_equal_beginnings_are_told_apart(tmp_path):
    """As one that was tuned with its embedding frozen, and lies in one file."""
    for name, last in (("base", 0.0), ("tuned", 1.0)):
        (tmp_path / name).mkdir()
        tensors = {"embedding": torch.zeros(2**20), "last": torch.full((2**18,), last)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert mark_of_weights(tmp_path / "base") != mark_of_weights(tmp_path / "tuned")


@pytest.mark.parametrize(
    ("manifest", "changed"),
    [
        ({"processes": 2, "device": "cpu", "threads": 4, "packages": {"torch": "2.13.0"}}, ""),
        ({"processes": 8, "device": "cuda"}, "processes 8 -> 2, device cuda -> cpu"),
        ({"threads": 1, "packages": {"torch": "2.12.0"}}, "threads 1 -> 4, torch 2.12.0 -> 2.13.0"),
        ({"implementations": {"attention": "flash3"}}, "attention flash3 -> tiled"),
    ],
)
def test_changes_that_affect_the_last_bits_are_reported(tmp_path, monkeypatch, manifest, changed):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(record, "_version", lambda package: "2.13.0")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    world = SimpleNamespace(size=2, device=torch.device("cpu"))
    choices = [Choice("attention", "tiled", "plain PyTorch")]
    assert record.changed_since(tmp_path, choices, world) == changed


def test_a_resume_compares_what_the_run_recorded(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path / "run")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = config_of("--config", tmp_path / "config.json")
    prepared, folder = prepare_data(config), config.run_folder
    folder.mkdir()
    world = SimpleNamespace(size=1, device=torch.device("cpu"))
    choices = [Choice("attention", "tiled", "plain PyTorch")]
    record.write_records(config, prepared, model_config(config, prepared.encoder), choices, world)
    assert record.changed_since(folder, choices, world) == ""
    assert not record.evaluated_on_other(folder, prepared)
    other = replace(prepared, validation=SimpleNamespace(folder=Path("other")))
    assert record.evaluated_on_other(folder, other)
    assert not record.evaluated_on_other(folder, replace(prepared, validation=None))
    monkeypatch.setattr(record, "_version", lambda package: "0.0")
    others = [Choice("attention", "sdpa", "plain PyTorch")]
    said = f"attention tiled -> sdpa, torch {torch.__version__} -> 0.0"
    assert record.changed_since(folder, others, world) == said


def test_records_of_another_form_are_ignored(tmp_path):
    """As somebody else may have written them."""
    (tmp_path / "manifest.json").write_text(json.dumps({"implementations": [], "packages": "torch"}))
    world = SimpleNamespace(size=1, device=torch.device("cpu"))
    assert record.changed_since(tmp_path, [], world) == ""
    with pytest.raises(UserError, match="was made with another seed: None"):
        record.check_identity(tmp_path, ["seed"], {"seed": 1})
    with pytest.raises(RunError, match="holds no steps"):
        summarise([{"step": 1}, {"step": 2, "loss": 0.5}], Config(run_dir=str(tmp_path)))


def test_on_a_gpu_the_number_of_threads_does_not_matter(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"device": "cpu", "threads": 4}))
    world = SimpleNamespace(size=1, device=torch.device("cuda"))
    assert record.changed_since(tmp_path, [], world) == "device cpu -> cuda"


def test_a_run_is_exported_with_the_files_that_it_was_trained_with(tmp_path):
    """Else a folder that passes every check would have the weights read other prompts than training's."""
    (tmp_path / "own.yaml").write_text(OWN)
    (tmp_path / "tokenizer.model").write_bytes((DEMO / "tokenizer.model").read_bytes())
    settings = tiny_settings(tmp_path / "run")
    settings["data"] |= {
        "tokenizer": str(tmp_path / "tokenizer.model"),
        "template": str(tmp_path / "own.yaml"),
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = config_of("--config", tmp_path / "config.json")
    prepared, folder = prepare_data(config), config.run_folder
    folder.mkdir()
    shape = model_config(config, prepared.encoder)
    world = SimpleNamespace(size=1, device=torch.device("cpu"))
    record.write_records(config, prepared, shape, [], world)
    record.check_as_trained(folder, make_encoder(config), shape)
    with pytest.raises(UserError, match="another model.rope_theta: 10000.0; what .* has 500000.0"):
        record.check_as_trained(folder, make_encoder(config), replace(shape, rope_theta=500000.0))
    for text, name in ((OWN.replace("Q: ", "? "), "template_sha256"), (OWN + 'stop: ["<s>"]', "stop_ids")):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(UserError, match=f"run: was trained with another {name}: "):
            record.check_as_trained(folder, make_encoder(config), shape)
    (tmp_path / "own.yaml").write_text(OWN)
    with open(tmp_path / "tokenizer.model", "ab") as file:
        file.write(b"\xfa\x3e\x01x")  # a field that nobody reads
    with pytest.raises(UserError, match="another tokenizer_sha256: "):
        record.check_as_trained(folder, make_encoder(config), shape)
    (folder / "manifest.json").unlink()
    record.check_as_trained(folder, make_encoder(config), shape)
