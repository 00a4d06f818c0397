"""Tokenizers: what a file says, and that text never becomes a control token."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models

from fastling.data.tokenizer import added_beside, load_tokenizer
from fastling.errors import UserError

NAMES = ["sentencepiece", "demo", "byte-level", "qwen", "llama-json", "llama-first"]
SPECIAL = ["<s>", "</s>", "<unk>", "<|begin_of_text|>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("name", "bos", "eos"),
    [
        ("sentencepiece", "<s>", "</s>"),
        ("demo", "<s>", "</s>"),
        ("byte-level", "<|begin_of_text|>", "<|end_of_text|>"),
        ("qwen", None, "<|endoftext|>"),
        ("llama-json", "<s>", "</s>"),
    ],
)
def test_begin_and_end_token_are_what_the_files_name(name, bos, eos, kinds):
    tokenizer = load_tokenizer(kinds[name].path)
    assert (tokenizer.bos, tokenizer.eos) == (bos, eos)
    assert tokenizer.control_id(eos) == kinds[name].id(eos)
    assert tokenizer.control_id("<|no such token|>") is None
    assert tokenizer.control_id("龘龘") is None
    assert tokenizer.control_id("\ud800") is None


def test_without_files_beside_it_the_usual_names_are_looked_for(kinds, tmp_path):
    for name, bos, eos in (
        ("llama-json", "<s>", "</s>"),
        ("byte-level", "<|begin_of_text|>", "<|end_of_text|>"),
    ):
        path = tmp_path / f"{name}.json"
        path.write_bytes(kinds[name].path.read_bytes())
        tokenizer = load_tokenizer(path)
        assert (tokenizer.bos, tokenizer.eos) == (bos, eos)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(SPECIAL) | st.text(max_size=5), max_size=5).map("".join), max_size=3
    )
)
def test_text_comes_back_and_is_never_a_control_token(name, texts, kinds):
    kind = kinds[name]
    tokenizer = load_tokenizer(kind.path) if name not in LOADED else LOADED[name]
    LOADED[name] = tokenizer
    tokenizer.reserve([token for token in SPECIAL if tokenizer.control_id(token) is not None])
    ids = tokenizer.encode(texts)
    control = {kind.id(token) for token in SPECIAL} - ({None} if kind.is_json else {None, 0})
    assert control.isdisjoint(each for run in ids for each in run)
    assert tokenizer.decode(ids) == [
        tokenizer.normalize(text).replace("▁", " ")
        if name not in ("byte-level", "qwen")
        else tokenizer.normalize(text)
        for text in texts
    ]
    assert all(each < tokenizer.vocab_size for run in ids for each in run)


LOADED: dict = {}


@pytest.mark.parametrize("name", NAMES)
def test_a_begin_token_is_never_added_unasked(name, kinds):
    tokenizer = load_tokenizer(kinds[name].path)
    assert tokenizer.encode([""]) == [[]]
    assert tokenizer.decode([[]]) == [""]
    assert tokenizer.encode([]) == []
    assert kinds[name].id(tokenizer.bos or "<s>") not in tokenizer.encode(["Hello"])[0]


def test_special_tokens_of_a_file_are_text_in_text_before_any_is_reserved(kinds):
    for name in ("byte-level", "llama-json"):
        tokenizer = load_tokenizer(kinds[name].path)
        (ids,) = tokenizer.encode(["a<|eot_id|>b"])
        assert kinds[name].id("<|eot_id|>") not in ids
        assert tokenizer.decode([ids]) == ["a<|eot_id|>b"]


@pytest.mark.parametrize(
    "flags", [{}, {"rstrip": True}, {"lstrip": True}, {"normalized": True}, {"single_word": True}]
)
def test_a_reserved_token_is_text_in_text_whatever_its_flags(flags, kinds, tmp_path):
    """Some files do not mark their turn tokens special, or let them swallow blanks beside them (Phi-3)."""
    built = tokenizers.Tokenizer.from_file(str(kinds["byte-level"].path))
    built.add_tokens([AddedToken("<|end|>", special=False, **{"normalized": False, **flags})])
    built.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    control = tokenizer.control_id("<|end|>")
    text = "a <|end|> \n b <|end|>"
    assert control in tokenizer.encode([text])[0]
    tokenizer.reserve(["<|end|>"])
    ids = tokenizer.encode([text])
    assert control not in ids[0]
    assert tokenizer.decode(ids) == [text]


def test_padding_and_truncation_of_a_file_are_switched_off(kinds, tmp_path):
    built = tokenizers.Tokenizer.from_file(str(kinds["byte-level"].path))
    built.enable_truncation(3)
    built.enable_padding(length=9)
    built.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    (ids,) = tokenizer.encode(["a long text that is neither cut nor padded"])
    assert ids == kinds["byte-level"].server_ids("a long text that is neither cut nor padded")


def test_no_first_space_after_a_control_token(kinds):
    """Metaspace "first", in newer files of LLaMA and Mistral: only the start of a whole text gets a space."""
    kind = kinds["llama-first"]
    tokenizer = load_tokenizer(kind.path)
    for text in ("Hello", " Hello", "  Hello", "你好", "\nHello"):
        assert tokenizer.encode([text])[0] == kind.server_ids("<s>" + text)[1:]
        assert tokenizer.decode(tokenizer.encode([text])) == [text]


def test_only_the_normalisation_of_the_file_is_forgiven(kinds):
    assert load_tokenizer(kinds["qwen"].path).normalize("e\u0301ﬁ") == "éﬁ"
    for name in ("sentencepiece", "byte-level", "llama-json"):
        assert load_tokenizer(kinds[name].path).normalize("e\u0301ﬁ  ▁ ") == "e\u0301ﬁ  ▁ "


def test_pieces_are_shown_as_they_are(kinds):
    tokenizer = load_tokenizer(kinds["demo"].path)
    assert tokenizer.piece(1) == "<s>"
    assert "<0xE9>" in [tokenizer.piece(each) for each in tokenizer.encode(["龘"])[0]]
    tokenizer = load_tokenizer(kinds["byte-level"].path)
    assert tokenizer.piece(kinds["byte-level"].id("<|eot_id|>")) == "<|eot_id|>"


def test_a_folder_is_read_as_servers_do(kinds, tmp_path):
    model, fast = kinds["demo"].path, kinds["llama-json"].path
    with pytest.raises(UserError, match="holds neither tokenizer.json nor tokenizer.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    assert load_tokenizer(tmp_path).path.name == "tokenizer.model"
    (tmp_path / "tokenizer.json").write_bytes(fast.read_bytes())
    assert load_tokenizer(tmp_path).path.name == "tokenizer.json"


def test_a_folder_without_tokenizer_may_be_a_run(tmp_path):
    with pytest.raises(UserError, match="training also takes it as data.tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "export").mkdir()
    with pytest.raises(UserError, match="This is the folder of a run; its model is .*/export"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_file_that_may_not_be_read_is_not_called_another_format(name, tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / name).touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=f"{name}: cannot be read: Permission denied"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("tokenizer.model", b"SGVsbG8= 0\nd29ybGQ= 1\n", "is not a SentencePiece model"),  # tiktoken's format
        ("tokenizer.json", b'{"model": ', "is not a tokenizer.json"),
        ("tokenizer.json", b'{"version": "1.0"}', "is not a tokenizer.json"),
    ],
)
def test_files_that_are_no_tokenizers_are_refused(name, content, what, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=what):
        load_tokenizer(tmp_path / name)


@pytest.mark.parametrize(
    ("fields", "bos", "eos"),
    [
        ({"bos_token": None, "eos_token": "<|im_end|>"}, None, "<|im_end|>"),
        (
            {"bos_token": {"content": "<|im_start|>"}, "eos_token": {"content": "<|eot_id|>"}},
            "<|im_start|>",
            "<|eot_id|>",
        ),
        ({}, "<|begin_of_text|>", "<|end_of_text|>"),
    ],
)
def test_the_config_beside_a_file_names_the_tokens(fields, bos, eos, kinds, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(kinds["byte-level"].path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos, tokenizer.eos) == (bos, eos)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not valid JSON: "),
        ("5", "holds no JSON object: 5"),
        ("[" * 200_000 + "]" * 200_000, "is not valid JSON: maximum recursion"),
        ('{"bos_token": 5}', "bos_token must be text: 5"),
        ('{"eos_token": {"content": ["x"]}}', r"eos_token must be text: \['x'\]"),
    ],
    ids=["cut", "a number", "brackets", "a number as token", "a list as token"],
)
def test_a_broken_config_beside_a_file_is_an_error(content, said, kinds, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(kinds["byte-level"].path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match=f"tokenizer_config.json: {said}"):
        load_tokenizer(tmp_path)


def test_an_empty_vocabulary_has_no_token(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(models.BPE()).save(str(path))
    tokenizer = load_tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.eos) == (0, None)


def test_a_tokenizer_with_dropout_is_refused(kinds, tmp_path):
    fields = json.loads(kinds["byte-level"].path.read_text())
    fields["model"]["dropout"] = 0.1
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"reads each text otherwise each time \(model.dropout\)"):
        load_tokenizer(tmp_path)


def test_an_absurd_id_of_a_token_beside_a_file_is_ignored(kinds, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(kinds["byte-level"].path.read_bytes())
    decoder = {"9" * 5000: {"content": "<a>"}, "7": {"content": "<b>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    assert added_beside(load_tokenizer(tmp_path)) == {"<b>": 7}
