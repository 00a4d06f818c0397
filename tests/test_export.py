"""The exported folder: every file of it, what other software makes of it, and that its check can fail."""

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
import yaml
from conftest import DEMO
from safetensors import safe_open
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from fastling import export, export_check, load_pretrained
from fastling.config import Config, Data, Model, Source
from fastling.data import tokenizer_export
from fastling.data.conversation import Conversation, Turn
from fastling.data.encoding import Encoder
from fastling.data.template import BoundTemplate, load_template
from fastling.data.tokenizer import load_tokenizer
from fastling.data.tokenizer_export import exact_tokenizer_json
from fastling.errors import RunError, UserError
from fastling.export import Export
from fastling.export_check import check_export, check_small_files
from fastling.model.digests import digested
from fastling.model.huggingface import DTYPES, config_json, hf_tensors
from fastling.model.llama import Llama, LlamaConfig
from fastling.model_card import model_card

SHAPE = LlamaConfig(
    vocab_size=2048,  # more than the tokenizers have: the rows beyond are padding
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONTROL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
]
CONTROL += ["<|im_start|>", "<|im_end|>"]
QUESTION = Conversation(
    (Turn("user", " 你好, world! 😀 "), Turn("assistant", "Hi."), Turn("user", "And?\n")), "Be brief."
)
SMALL_FILES = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "template.yaml", "README.md",
}  # fmt: skip


def messages(conversation: Conversation) -> list[dict]:
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    return system + [{"role": role, "content": content} for role, content in conversation.turns]


@pytest.fixture(scope="module", autouse=True)
def fewer_probing_strings():
    """What makes a tokenizer.json exact, and its proof sound, is tested with the tokenizers."""
    every = tokenizer_export.probing_strings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_export, "probing_strings", lambda tokenizer: every(tokenizer, 1000))
        yield


@dataclass
class Case:
    """An export of one template and tokenizer, finished once and looked at by many tests."""

    template: str
    stops: list[str]
    bos: str | None
    dtype: torch.dtype
    export: Export
    model: Llama

    @property
    def folder(self) -> Path:
        return self.export.folder

    @property
    def encoder(self) -> Encoder:
        return self.export.encoder

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def ids(self, tokens: list[str]) -> list[int]:
        return [self.encoder.tokenizer.control_id(token) for token in tokens]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Path:
    """A byte-level tokenizer.json like Llama 3's, whose post-processor adds the begin token."""
    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    built.train_from_iterator((DEMO / "held-out.jsonl").read_text(encoding="utf-8").splitlines(), trainer)
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    begin = CONTROL[0]
    built.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, built.token_to_id(begin))]
    )
    folder = tmp_path_factory.mktemp("byte-level")
    built.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": begin, "eos_token": CONTROL[1]}))
    return folder / "tokenizer.json"


def make_export(folder: Path, template: str, tokenizer: Path, dtype=torch.float32, **changes) -> Export:
    config = Config(
        run_dir="runs/mine",
        data=Data(
            template=template, sources=[Source(name="talks", path="x.jsonl", weight=0.5, pair="zh-en")]
        ),
    )
    encoder = Encoder(load_template(template), load_tokenizer(tokenizer), 256)
    return Export(folder, replace(SHAPE, **changes), encoder, config, dtype)


def make_model(shape: LlamaConfig, seed: int = 0) -> Llama:
    torch.manual_seed(seed)
    model = Llama(shape)
    model.reset_parameters()
    return model


@pytest.fixture(scope="module", params=["bayling", "llama3", "chatml"])
def case(request, tmp_path_factory, byte_level) -> Case:
    """One finished export for each kind of template and each dtype."""
    folder = tmp_path_factory.mktemp(request.param) / "out"
    if request.param == "bayling":
        made = make_export(folder, "bayling", DEMO / "tokenizer.model")
        stops, bos = ["</s>"], "<s>"
    elif request.param == "llama3":
        made = make_export(folder, "llama3", byte_level, torch.bfloat16, rope_scaling=LLAMA3_SCALING)
        stops, bos = ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"], "<|begin_of_text|>"
    else:
        made = make_export(folder, "chatml", byte_level, torch.float16, tie_word_embeddings=True)
        stops, bos = ["<|im_end|>", "<|end_of_text|>"], None
    model = make_model(made.shape)
    made.rehearse()
    checks = made.write(model)
    assert all(check.passed for check in checks), checks
    return Case(request.param, stops, bos, made.dtype, made, model)


# The files ------------------------------------------------------------------------------------------


def test_every_file_is_there_and_nothing_else(case):
    expected = SMALL_FILES | {"model.safetensors"}
    if case.template == "bayling":
        expected |= {"tokenizer.model"}
    assert {path.name for path in case.folder.iterdir()} == expected
    assert [path.name for path in case.folder.parent.iterdir()] == ["out"]


def test_config_json_has_the_spellings_of_old_and_new_readers(case):
    config = case.json("config.json")
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    assert config["torch_dtype"] == config["dtype"] == str(case.dtype).removeprefix("torch.")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    scaling = LLAMA3_SCALING if case.template == "llama3" else None
    assert config["rope_scaling"] == scaling
    assert config["rope_parameters"] == {"rope_theta": 10000.0, **(scaling or {"rope_type": "default"})}
    assert config["vocab_size"] == 2048
    assert config["tie_word_embeddings"] is (case.template == "chatml")


def test_every_token_that_ends_a_turn_ends_generation(case):
    """A missing one is answers that never end, the most usual fault of published models."""
    stops = case.ids(case.stops)
    assert None not in stops
    for name in ("config.json", "generation_config.json"):
        assert case.json(name)["eos_token_id"] == stops
    tokenizer = case.json("tokenizer_config.json")
    assert tokenizer["eos_token"] == case.stops[0]
    assert case.json("special_tokens_map.json")["eos_token"] == case.stops[0]


def test_generation_config_says_nothing_about_taste(case):
    """vLLM takes what stands here as the default of every request."""
    assert case.json("generation_config.json").keys() == {
        "bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "transformers_version",
    }  # fmt: skip
    assert case.json("generation_config.json")["do_sample"] is False


def test_the_chat_template_is_the_same_in_its_file_and_in_its_field(case):
    """Newer readers take the file, older ones only the field."""
    text = (case.folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert case.json("tokenizer_config.json")["chat_template"] == text


def test_tokenizer_config_is_right_for_transformers_4_and_5(case):
    config = case.json("tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (
        config["add_bos_token"] is config["add_eos_token"] is config["clean_up_tokenization_spaces"] is False
    )
    assert config["model_max_length"] == 256 and config["padding_side"] == "left"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert "add_prefix_space" not in config and "extra_special_tokens" not in config
    added = {token["content"]: token for token in config["added_tokens_decoder"].values()}
    for stop in case.stops:
        assert added[stop]["special"]
    for name in ("eos_token", "pad_token"):
        token_id = case.encoder.tokenizer.control_id(config[name])
        assert str(token_id) in config["added_tokens_decoder"]
    assert case.json("config.json")["pad_token_id"] == case.encoder.tokenizer.control_id(config["pad_token"])
    # Not the token that ends an answer, where there is another: who trains on leaves out what is padding.
    assert config["pad_token"] == ("<unk>" if case.template == "bayling" else "<|end_of_text|>")


def test_a_token_that_the_tokenizer_lacks_is_not_named(byte_level, tmp_path):
    """transformers would make a new one of it, with an id that the model has never seen."""
    shutil.copyfile(byte_level, tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|no|>", "eos_token": "<|nope|>"}')
    made = make_export(tmp_path / "out", "chatml", tmp_path / "tokenizer.json")
    named = json.loads(made.small_files()["special_tokens_map.json"])
    assert named == {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    made.rehearse()
    read = transformers.AutoTokenizer.from_pretrained(made.aside)
    assert len(read) == made.encoder.tokenizer.vocab_size and read.pad_token_id == read.eos_token_id


def test_the_unknown_token_of_a_unigram_model_is_its_padding(tmp_path):
    """Its tokenizer.json gives that token's id alone, where others give its text."""
    built = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    built.add_special_tokens(["<unk>", "<|im_start|>", "<|im_end|>"])
    built.save(str(tmp_path / "tokenizer.json"))
    made = make_export(tmp_path / "out", "chatml", tmp_path / "tokenizer.json")
    named = json.loads(made.small_files()["special_tokens_map.json"])
    assert named == {"eos_token": "<|im_end|>", "unk_token": "<unk>", "pad_token": "<unk>"}


def test_a_qwen2_takes_no_tokenizer_that_transformers_5_would_read_as_qwen2s(byte_level, tmp_path):
    """It puts Qwen2's own rules in place of those of tokenizer.json, for this model_type alone."""
    made = make_export(tmp_path / "out", "bayling", DEMO / "tokenizer.model", model_type="qwen2")
    with pytest.raises(UserError, match=r"would fail its check: Qwen2: .* other tokens for .*") as refused:
        made.rehearse()
    assert "or a model_type" in refused.value.fix
    make_export(tmp_path / "other", "bayling", DEMO / "tokenizer.model", model_type="qwen3").rehearse()

    fields = json.loads(byte_level.read_text(encoding="utf-8"))
    fields |= export_check.QWEN2 | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end_of_text|>"}')
    made = make_export(tmp_path / "out", "chatml", tmp_path / "tokenizer.json", model_type="qwen2")
    made.rehearse()
    read = transformers.AutoTokenizer.from_pretrained(made.aside)
    rendered = {"add_generation_prompt": True, "return_dict": False}
    assert read.apply_chat_template(messages(QUESTION), **rendered) == made.encoder.prompt_ids(QUESTION)
    if int(transformers.__version__.split(".")[0]) >= 5:  # what is written in export_check is what it does
        found = json.loads(read.backend_tokenizer.to_str())
        found["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = False  # of no token
        assert {name: found[name] for name in export_check.QWEN2} == export_check.QWEN2


def test_the_sentencepiece_model_lies_beside_its_tokenizer_json(case):
    """llama.cpp converts from it."""
    copied, original = case.folder / "tokenizer.model", case.encoder.tokenizer.path
    if original.suffix == ".model":
        assert copied.read_bytes() == original.read_bytes()
    else:
        assert not copied.exists()


def test_of_a_folder_with_both_tokenizers_the_sentencepiece_model_is_passed_on(tmp_path):
    """If it is the tokenizer that the model has: not once tokens were added to tokenizer.json alone."""
    tokenizer = load_tokenizer(DEMO / "tokenizer.model")
    both = tmp_path / "both"
    both.mkdir()
    shutil.copyfile(tokenizer.path, both / "tokenizer.model")
    (both / "tokenizer.json").write_text(exact_tokenizer_json(tokenizer, ()), encoding="utf-8")
    (both / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    made = make_export(tmp_path / "out", "bayling", both)
    made.rehearse()
    assert (made.aside / "tokenizer.model").read_bytes() == tokenizer.path.read_bytes()
    built = tokenizers.Tokenizer.from_file(str(both / "tokenizer.json"))
    built.add_tokens(["舒舟"])
    built.save(str(both / "tokenizer.json"))
    made = make_export(tmp_path / "extended", "bayling", both)
    made.rehearse()
    assert not (made.aside / "tokenizer.model").exists()
    (both / "tokenizer.model").write_text("IQ== 0\n")  # as Llama 3's begins
    assert make_export(tmp_path / "third", "bayling", both).model_file is None


def test_the_model_card_is_read_by_the_hub(case):
    text = (case.folder / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["library_name"] == "transformers" and card["pipeline_tag"] == "text-generation"
    assert card["language"] == ["en", "zh"]
    assert {"conversational", "fastling"} <= set(card["tags"])
    assert "base_model" not in card and "Trained from scratch" in body
    assert "- talks, weight 0.5" in body and f"Template: {case.template}" in body


def test_the_model_card_names_the_base_model(case):
    config = replace(case.export.config, model=Model(pretrained="meta-llama/Llama-2-7b-hf"))
    _, front, body = model_card(config, case.template).split("---\n", 2)
    card = yaml.safe_load(front)
    assert (card["base_model"], card["base_model_relation"]) == ("meta-llama/Llama-2-7b-hf", "finetune")
    assert "Fine-tuned from meta-llama/Llama-2-7b-hf" in body


@pytest.mark.parametrize(
    "path",
    ["/data/models/llama-7b", "../llama-7b", "~/llama", "a/b/c", "llama 7b", "m/", "models/llama", "ext"],
)
def test_a_base_model_that_no_hub_can_have_is_named_in_words_alone(case, path):
    """The hub refuses a whole upload whose card has such a one in its front matter, or shows a link to nothing."""
    config = replace(case.export.config, model=Model(pretrained=path))
    _, front, body = model_card(config, case.template).split("---\n", 2)
    assert not {"base_model", "base_model_relation"} & yaml.safe_load(front).keys()
    assert f"Fine-tuned from {path}" in body


# The tokens -----------------------------------------------------------------------------------------


def test_rendered_text_has_its_begin_token_and_a_server_adds_none(case):
    tokenizer = transformers.AutoTokenizer.from_pretrained(case.folder)
    text = tokenizer.apply_chat_template(messages(QUESTION), add_generation_prompt=True, tokenize=False)
    expected = case.encoder.prompt_ids(QUESTION)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
    plain = tokenizers.Tokenizer.from_file(str(case.folder / "tokenizer.json"))
    assert plain.encode(text, add_special_tokens=False).ids == expected
    begin = case.encoder.tokenizer.control_id(case.bos) if case.bos else None
    assert expected.count(begin) == (1 if case.bos else 0)


def test_bare_text_begins_as_the_tokenizer_json_of_the_model_has_it(case, byte_level):
    """A file that is built here adds nothing, so that rendered text is never begun twice."""
    expected = case.encoder.tokenizer.encode(["Hello"])[0]
    if case.encoder.tokenizer.path == byte_level:
        expected = [case.encoder.tokenizer.control_id("<|begin_of_text|>"), *expected]
    for tokenizer in (
        transformers.AutoTokenizer.from_pretrained(case.folder),
        transformers.PreTrainedTokenizerFast(tokenizer_file=str(case.folder / "tokenizer.json")),
    ):
        assert tokenizer("Hello")["input_ids"] == expected


def test_transformers_tokenizes_the_chat_as_training_did(case):
    tokenizer = transformers.AutoTokenizer.from_pretrained(case.folder)
    found = tokenizer.apply_chat_template(messages(QUESTION), add_generation_prompt=True, return_dict=True)
    assert found["input_ids"] == case.encoder.prompt_ids(QUESTION)
    answered = Conversation((*QUESTION.turns, Turn("assistant", "早上好！ 😀")), QUESTION.system)
    whole = tokenizer.apply_chat_template(messages(answered), return_dict=True)["input_ids"]
    (encoded,) = case.encoder.encode([answered])
    assert whole[: len(encoded.tokens)] == encoded.tokens.tolist()
    assert tokenizer.decode(case.encoder.tokenizer.encode(["早上好！ 😀"])[0]) == "早上好！ 😀"


# The weights ----------------------------------------------------------------------------------------


def test_the_weights_are_bit_for_bit_those_of_the_model(case):
    with safe_open(case.folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        expected = dict(hf_tensors(case.model))
        assert set(file.keys()) == expected.keys()
        assert ("lm_head.weight" in expected) is (case.template != "chatml")
        for name, tensor in expected.items():
            assert file.get_tensor(name).dtype == case.dtype
            assert torch.equal(file.get_tensor(name), tensor.to(case.dtype))


def test_transformers_and_fastling_load_it_and_agree(case):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(case.folder, attn_implementation="eager")
    assert theirs.dtype == case.dtype
    ours = load_pretrained(case.folder)
    assert ours.config == case.export.shape
    ids = torch.tensor(case.encoder.prompt_ids(QUESTION))
    with torch.no_grad():
        expected = theirs.float()(ids[None]).logits[0]
        found = ours.logits(ids, torch.tensor([0, len(ids)], dtype=torch.int32))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_generate_stops_at_every_end_of_a_turn(case, tmp_path):
    """A model that says one token for ever, exported: it stops at once if that token ends a turn."""
    shape = replace(case.export.shape, tie_word_embeddings=False)
    model = make_model(shape)
    head = model.lm_head.weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(0.0 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0)
    made = replace(case.export, folder=tmp_path / "out", shape=shape, dtype=torch.float32)
    ids = torch.tensor([case.encoder.prompt_ids(QUESTION)])
    ordinary = case.encoder.tokenizer.encode(["Hi"])[0][-1]
    loaded = None
    for token in [*case.ids(case.stops), ordinary]:
        with torch.no_grad():
            head.zero_()
            head[token] = 1.0
        if loaded is None:
            made.write(model)
            loaded = transformers.AutoModelForCausalLM.from_pretrained(made.folder)
        loaded.lm_head.weight.data.copy_(head)
        said = loaded.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5)[0, ids.shape[1] :]
        assert said.tolist() == ([token] * 5 if token == ordinary else [token])


# Rehearsing, replacing ------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path) -> Export:
    return make_export(tmp_path / "exports/out", "bayling", DEMO / "tokenizer.model")


def test_a_rehearsal_writes_everything_but_the_weights_and_only_aside(small):
    small.rehearse()
    assert [path.name for path in small.folder.parent.iterdir()] == ["out.tmp"]
    assert {path.name for path in small.aside.iterdir()} == SMALL_FILES | {"tokenizer.model"}


def test_a_rehearsal_tries_what_a_server_would_feed_the_model(small, monkeypatch):
    """So that no run learns on its last day that its export fails."""
    monkeypatch.setattr(BoundTemplate, "jinja", lambda self: "{{ bos_token }}")
    with pytest.raises(UserError, match="would fail its check: template text: the file renders something"):
        small.rehearse()
    assert list(small.folder.parent.iterdir()) == []


def test_a_rehearsal_reads_back_what_shape_the_model_has(small, monkeypatch):
    monkeypatch.setattr("fastling.export.config_json", lambda *_, **more: config_json(SHAPE, **more))
    small.shape = replace(SHAPE, rope_theta=5e5)
    with pytest.raises(
        UserError, match=r"would fail its check: shape: another rope_theta is in config\.json"
    ):
        small.rehearse()


def test_a_template_without_a_place_for_system_text_can_be_exported(tmp_path):
    (tmp_path / "own.yaml").write_text('user: "Q: {content}\\n"\nassistant: "A: {content}{eos}\\n"\n')
    made = make_export(tmp_path / "out", str(tmp_path / "own.yaml"), DEMO / "tokenizer.model")
    made.rehearse()
    assert {check.passed for check in check_small_files(made.aside, made.encoder, made.shape)} == {True}


def test_a_rehearsal_leaves_an_earlier_export_alone(small):
    small.write(make_model(SHAPE))
    before = {path.name: path.read_bytes() for path in small.folder.iterdir()}
    small.rehearse()
    assert {path.name: path.read_bytes() for path in small.folder.iterdir()} == before


def test_the_export_does_not_depend_on_what_became_of_the_rehearsal(small):
    """Days may lie between them, and somebody who tidies up."""
    small.rehearse()
    shutil.rmtree(small.aside)
    small.write(make_model(SHAPE))
    assert {path.name for path in small.folder.iterdir()} == SMALL_FILES | {
        "tokenizer.model",
        "model.safetensors",
    }


def test_a_model_too_large_to_load_beside_a_training_is_published_without_its_logits(small, monkeypatch):
    """Loading it in float32 for a check could end the process, and the export with it."""
    monkeypatch.setattr(export_check, "LARGEST_FOR_LOGITS", 10)
    monkeypatch.setattr(export_check, "load_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    checks = {check.name: check for check in small.write(make_model(small.shape))}
    assert checks["logits"].passed is None
    assert checks["weights"].passed is True
    assert (small.folder / "model.safetensors").exists()


def test_a_second_export_replaces_the_first_and_leaves_nothing_of_it(small):
    small.write(make_model(SHAPE, seed=1))
    first = (small.folder / "model.safetensors").read_bytes()
    (small.folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    small.rehearse()
    small.write(make_model(SHAPE, seed=2))
    assert (small.folder / "model.safetensors").read_bytes() != first
    assert not (small.folder / "model-00001-of-00002.safetensors").exists()
    small.write(make_model(SHAPE, seed=1))
    assert (small.folder / "model.safetensors").read_bytes() == first


def test_an_empty_folder_is_filled_and_any_other_is_left_alone(small):
    small.folder.mkdir(parents=True)
    small.rehearse()
    (small.folder / "config.json").write_text("{}")  # a model of somebody else's
    with pytest.raises(UserError, match="exists and is not an export"):
        small.rehearse()
    assert [path.name for path in small.folder.iterdir()] == ["config.json"]


def test_an_export_to_which_something_was_added_is_left_alone(small):
    small.write(make_model(SHAPE))
    (small.folder / "model.gguf").write_text("an hour of converting")
    with pytest.raises(UserError, match="out: exists and is not an export: it holds model.gguf"):
        small.rehearse()
    (small.folder / "model.gguf").unlink()
    (small.folder / "chat_template.jinja").unlink()
    (small.folder / "chat_template.jinja").mkdir()  # a folder of one of our files' names
    with pytest.raises(UserError, match="out: exists and is not an export: it holds chat_template.jinja"):
        small.rehearse()


def test_files_added_to_the_export_during_training_are_left_alone(small):
    small.write(make_model(SHAPE, seed=1))
    small.rehearse()
    (small.folder / "model.gguf").write_text("an hour of converting")
    with pytest.raises(UserError, match="out: exists and is not an export: it holds model.gguf"):
        small.write(make_model(SHAPE, seed=2))
    assert (small.folder / "model.gguf").read_text() == "an hour of converting"


def test_an_unfinished_export_is_begun_anew_wherever_it_was_killed(small):
    small.rehearse()
    (small.aside / ".shard-1.part").write_bytes(b"half")
    small.rehearse()
    assert not (small.aside / ".shard-1.part").exists()
    for path in small.aside.iterdir():
        path.unlink()
    (small.aside / "README.md").touch()
    small.rehearse()


def test_a_half_removed_export_is_still_recognised(small, monkeypatch):
    small.rehearse()
    deleted, unlink = [], Path.unlink

    def killed_after_the_first(path):
        if deleted:
            raise KeyboardInterrupt
        deleted.append(path)
        unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            small.rehearse()
    small.rehearse()


def test_an_export_that_was_killed_while_it_wrote_weights_is_begun_anew(small):
    """safetensors writes under a name of its own; the signal that limits a file stands for the kill."""
    small.rehearse()
    code = (
        "import resource, signal, sys, numpy, safetensors.numpy\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "safetensors.numpy.save_file({'x': numpy.zeros(100_000)}, sys.argv[1])\n"
    )
    part = small.aside / ".shard-1.part"
    done = subprocess.run([sys.executable, "-c", code, str(part)], timeout=60)
    assert done.returncode == -signal.SIGXFSZ
    half = [path for path in small.aside.iterdir() if path.name not in SMALL_FILES | {"tokenizer.model"}]
    assert half
    small.rehearse()
    assert not any(path.exists() for path in half)


@pytest.mark.slow
def test_the_folder_of_a_run_may_begin_with_a_dash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("-run").mkdir()
    Path("-run", "config.yaml").write_text("data: {tokenizer: gone.model}")
    with pytest.raises(UserError, match="gone.model"):  # so the config was read
        export.export_run(Path("-run"), Path("out"), None)


def test_two_exports_into_one_folder_are_kept_apart(small):
    """Else one says that it passed, of a folder that then holds the other's weights."""
    other = make_export(small.folder, "bayling", DEMO / "tokenizer.model")
    small.rehearse()
    for write in (other.rehearse, lambda: other.write(make_model(SHAPE, seed=2))):
        with pytest.raises(UserError, match="out: is being written by another process"):
            write()
    small.write(make_model(SHAPE, seed=1))
    first = (small.folder / "model.safetensors").read_bytes()
    other.rehearse()
    with pytest.raises(UserError, match="out: is being written by another process"):
        small.write(make_model(SHAPE, seed=1))
    other.write(make_model(SHAPE, seed=2))
    assert (small.folder / "model.safetensors").read_bytes() != first
    assert [path.name for path in small.folder.parent.iterdir()] == ["out"]


def test_obstacles_at_an_exports_place_are_named(small):
    small.folder.parent.mkdir()
    small.aside.write_text("mine")
    with pytest.raises(UserError, match="out: cannot be written: .*File exists: .*out.tmp"):
        small.rehearse()
    assert small.aside.read_text() == "mine"


@pytest.mark.parametrize("name", DTYPES)
def test_each_kind_of_numbers(small, name):
    small.dtype = DTYPES[name]
    model = make_model(SHAPE)
    small.write(model)
    assert json.loads((small.folder / "config.json").read_text())["dtype"] == str(DTYPES[name]).removeprefix(
        "torch."
    )
    reloaded = load_pretrained(small.folder, dtype=DTYPES[name])
    for (_, mine), (_, theirs) in zip(model.named_parameters(), reloaded.named_parameters(), strict=True):
        assert torch.equal(mine.to(DTYPES[name]), theirs)


# The check can fail ---------------------------------------------------------------------------------


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # the last bit but few of one weight; it stays a number
    path.write_bytes(content)


def change_json(name: str, change):
    def tamper(folder: Path) -> None:
        fields = json.loads((folder / name).read_text(encoding="utf-8"))
        change(fields)
        (folder / name).write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")

    return tamper


def change_text(name: str, old: str, new: str):
    def tamper(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return tamper


def cut(name: str):
    def tamper(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return tamper


def swap_ids(fields: dict) -> None:
    vocab = fields["model"]["vocab"]
    vocab["▁the"], vocab["▁a"] = vocab["▁a"], vocab["▁the"]


def add_begin_token(fields: dict) -> None:
    text, begin = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}
    fields["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [text, text],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def other_rope(fields: dict) -> None:
    fields["rope_theta"] = fields["rope_parameters"]["rope_theta"] = 5e5


ANSWER = ("Response:", "Answer:")
# What is done to the folder, which check looks at it, and what it says.
TAMPERINGS = {
    "one bit of one weight": (flip_a_bit, "weights: model.norm.weight is not what was written"),
    "half of the weights": (cut("model.safetensors"), "weights: .* is damaged"),
    "no weights": (remove("model.safetensors"), "weights: .* holds no model.safetensors"),
    "half of config.json": (cut("config.json"), "shape: .* is not valid JSON"),
    "another rope": (change_json("config.json", other_rope), "shape: another rope_theta is in config.json"),
    "no tokenizer.json": (remove("tokenizer.json"), "token ids: .*No such file"),
    "half of tokenizer.json": (cut("tokenizer.json"), "token ids: Exception: EOF"),
    "two tokens changed about": (change_json("tokenizer.json", swap_ids), "token ids: differ on"),
    "a begin token too many": (
        change_json("tokenizer.json", add_begin_token),
        "prompt ids: tokenizer.json adds more to a text than a begin token",
    ),
    "another template in the file": (
        change_text("chat_template.jinja", *ANSWER),
        "template text: the file renders something else",
    ),
    "another template in the field": (
        change_text("tokenizer_config.json", *ANSWER),
        "template text: the field renders something else",
    ),
    "a broken template": (
        change_text("chat_template.jinja", "endfor", "endfro"),
        "template text: TemplateSyntaxError",
    ),
    "a template that wants out of the sandbox": (
        change_text("chat_template.jinja", "{%- set turns = messages -%}", "{{ ''.__class__.__mro__ }}"),
        "template text: SecurityError",
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> tuple[Export, dict[str, str]]:
    """A finished export and its digests."""
    made = make_export(tmp_path_factory.mktemp("good") / "out", "bayling", DEMO / "tokenizer.model")
    model, digests = make_model(SHAPE), {}
    made.write(model)
    for _ in digested(hf_tensors(model), made.dtype, digests):
        pass
    return made, digests


def test_the_check_of_what_was_written_passes(good):
    made, digests = good
    checks = check_export(made.folder, made.encoder, made.shape, digests)
    assert [check.name for check in checks] == [
        "shape",
        "template text",
        "prompt ids",
        "weights",
        "token ids",
        "logits",
    ]
    assert all(check.passed for check in checks), checks


def test_the_check_of_the_logits_holds_one_model_at_a_time(good, monkeypatch):
    """In float32, beside a training's own memory: two of three billion weights are 24 GB."""
    made, digests = good
    loaded = []

    def load(folder, **options):
        model = load_pretrained(folder, **options)
        loaded.append(weakref.ref(model))
        return model

    def theirs(_, ids):
        assert [model() for model in loaded] == [None]
        return torch.zeros(len(ids), made.shape.vocab_size)

    monkeypatch.setattr(export_check, "load_pretrained", load)
    monkeypatch.setattr(export_check, "_transformers_logits", theirs)
    logits = check_export(made.folder, made.encoder, made.shape, digests)[-1]
    assert logits.result.startswith("differ by"), logits


def test_output_of_transformers_imports_is_hidden(monkeypatch, caplog):
    """As torchao, which warns at length of kernels that it has for another Python."""

    def warn(name: str) -> None:
        logging.getLogger("torchao").warning("failed to load")

    monkeypatch.setattr(export_check.importlib, "import_module", warn)
    assert export_check._why_not_imported("llama") is None
    assert not caplog.records
    warn("afterwards")
    assert len(caplog.records) == 1


def test_a_transformers_that_cannot_be_imported_fails_no_export(good, monkeypatch):
    """Broken, or older than the kind of model: it says nothing about the folder."""
    made, digests = good
    monkeypatch.setitem(sys.modules, "transformers.models.llama.modeling_llama", None)
    *others, logits = check_export(made.folder, made.encoder, made.shape, digests)
    assert all(check.passed for check in others)
    assert logits.passed is None
    assert re.match(
        "are finite; transformers .* cannot load such a model here: ModuleNotFoundError", logits.result
    )


@pytest.mark.parametrize(("tamper", "said"), TAMPERINGS.values(), ids=list(TAMPERINGS))
def test_tampering_fails_the_check_concerned(good, tmp_path, tamper, said):
    made, digests = good
    shutil.copytree(made.folder, tmp_path / "out")
    tamper(tmp_path / "out")
    checks = check_export(tmp_path / "out", made.encoder, made.shape, digests)
    failed = [f"{check.name}: {check.result}" for check in checks if check.passed is False]
    assert any(re.match(said, each) for each in failed), failed


def test_an_export_that_fails_its_check_is_not_published(good, small, monkeypatch):
    """Exit status 1; and the export that was there before stays."""
    small.write(make_model(SHAPE, seed=1))
    before = (small.folder / "model.safetensors").read_bytes()

    def tampered(folder, *rest):
        flip_a_bit(folder)
        return check_export(folder, *rest)

    monkeypatch.setattr(export, "check_export", tampered)
    with pytest.raises(
        RunError, match="failed its check: weights: model.norm.weight is not what was written"
    ) as failed:
        small.write(make_model(SHAPE, seed=2))
    assert failed.value.exit_status == 1
    assert failed.value.where == str(small.aside)
    assert (small.folder / "model.safetensors").read_bytes() == before
    monkeypatch.undo()
    small.write(make_model(SHAPE, seed=2))
    assert (small.folder / "model.safetensors").read_bytes() != before


def test_nan_weights_fail(good, small):
    model = make_model(SHAPE)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(RunError, match="model.norm.weight has weights that are not finite as float32"):
        small.write(model)


def test_weights_too_large_for_half_precision_fail(small):
    small.dtype = torch.float16
    model = make_model(SHAPE)
    with torch.no_grad():
        model.model.norm.weight.fill_(1e6)
    with pytest.raises(RunError, match="model.norm.weight has weights that are not finite as float16"):
        small.write(model)
    assert not small.folder.exists()
