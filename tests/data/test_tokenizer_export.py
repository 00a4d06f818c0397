"""The exported tokenizer.json: exact or refused; and what a server, transformers, makes of it (P1)."""

import functools
import json
import os
import random
import shutil
import unicodedata
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import processors

from fastling.config import Config
from fastling.data import tokenizer_export
from fastling.data.conversation import Conversation, Turn
from fastling.data.encoding import Encoder
from fastling.data.template import TEMPLATES
from fastling.data.tokenizer import load_tokenizer
from fastling.data.tokenizer_export import (
    PROOF_STRINGS,
    check_doubtful_kinds,
    exact_tokenizer_json,
    first_difference,
    probing_strings,
)
from fastling.errors import UserError
from fastling.export import Export
from fastling.model.llama import LlamaConfig

pytestmark = pytest.mark.slow  # servers, processes or compilers: many seconds in all

# SentencePiece ------------------------------------------------------------------------------------

EXACT = {
    "as LLaMA": {},
    "small": {"vocab_size": 450},
    "numbers in one piece": {"split_digits": False},
    "pieces across words": {"split_by_whitespace": False},
    "short pieces": {"max_sentencepiece_length": 4},
    "no byte fallback": {"byte_fallback": False, "vocab_size": 450},
    "no first space": {"add_dummy_prefix": False},
    "blanks collapsed": {"remove_extra_whitespaces": True},
    "control symbols": {"control_symbols": "<|im_start|>,<|im_end|>"},
    "NFKC": {"normalization_rule_name": "nmt_nfkc", "vocab_size": 450},
    "NFKC and blanks collapsed": {
        "normalization_rule_name": "nmt_nfkc",
        "remove_extra_whitespaces": True,
        "vocab_size": 450,
    },
    "NFKC in lower case": {"normalization_rule_name": "nfkc_cf", "vocab_size": 450},
    "as SentencePiece trains by itself": {
        "model_type": "unigram",
        "vocab_size": 200,
        "byte_fallback": False,
        "normalization_rule_name": "nmt_nfkc",
        "remove_extra_whitespaces": True,
        "split_digits": False,
        "allow_whitespace_only_pieces": False,
    },
    "Unigram": {"model_type": "unigram", "vocab_size": 450},
    "Unigram, no byte fallback": {"model_type": "unigram", "vocab_size": 200, "byte_fallback": False},
    "Unigram, no first space": {"model_type": "unigram", "vocab_size": 450, "add_dummy_prefix": False},
}
REFUSED = {
    "pieces that are found first": {"user_defined_symbols": "\n,  "},
    "spaces at the end of words": {"treat_whitespace_as_suffix": True},
}


@functools.cache
def _exact(path: Path, control_token: str):
    tokenizer = load_tokenizer(path)
    return tokenizer, exact_tokenizer_json(tokenizer, [control_token])


def exact(path: Path, control_token: str):
    """A tokenizer and the fields of its exact tokenizer.json, to be damaged."""
    tokenizer, text = _exact(path, control_token)
    return tokenizer, json.loads(text)


def attacking_strings(count: int = 1500) -> list[str]:
    """Runs of equal characters, where the order of merges shows, and what looks like a byte; not the strings of
    the proof."""
    draw = random.Random(7)
    parts = [
        "a",
        "aa",
        "ab",
        " ",
        "  ",
        "=",
        "-",
        "哈",
        "1",
        "e",
        "th",
        "\n",
        "\r\n",
        "\t",
        "的",
        "ü",
        "😀",
        "\x00",
        ".",
        "<0x41>",
        "<",
    ]
    return [
        "".join(draw.choice(parts) * draw.randint(1, 9) for _ in range(draw.randint(1, 4)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", EXACT)
def test_a_model_is_exported_exactly(name, tmp_path, sentencepiece_model):
    tokenizer = load_tokenizer(sentencepiece_model(tmp_path, **EXACT[name]))
    built = tokenizers.Tokenizer.from_str(exact_tokenizer_json(tokenizer, ["<s>", "</s>"]))
    texts = attacking_strings()
    ids = [encoding.ids for encoding in built.encode_batch(texts)]  # as a server does: nothing is added
    assert ids == tokenizer.processor.encode(texts)
    known = [run for run in ids if tokenizer.processor.unk_id() not in run]
    assert len(known) > 0.3 * len(ids)
    assert built.decode_batch(known, skip_special_tokens=False) == tokenizer.processor.decode(known)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_without_an_exact_form_is_refused_with_a_string_that_differs(
    name, tmp_path, sentencepiece_model
):
    settings = {"vocab_size": 450, **REFUSED[name]}
    tokenizer = load_tokenizer(sentencepiece_model(tmp_path, **settings))
    for check in (exact_tokenizer_json, check_doubtful_kinds):
        with pytest.raises(UserError, match="no exact tokenizer.json can be built; it differs on '"):
            check(tokenizer, ["<s>", "</s>"])


def test_before_preparing_only_what_may_have_no_exact_form_is_proved(
    kinds, monkeypatch, tmp_path, sentencepiece_model
):
    proved = []
    monkeypatch.setattr(tokenizer_export, "exact_tokenizer_json", lambda *given: proved.append(given))
    for name in ("sentencepiece", "byte-level"):
        check_doubtful_kinds(load_tokenizer(kinds[name].path), ["<s>"])
    assert not proved
    words = load_tokenizer(sentencepiece_model(tmp_path, model_type="word", vocab_size=300))
    check_doubtful_kinds(words, ["<s>"])
    assert proved == [(words, ["<s>"])]


def test_merges_follow_the_scores_not_the_ids(tmp_path, sentencepiece_model):
    path = sentencepiece_model(tmp_path)
    proto = ModelProto.FromString(path.read_bytes())
    merged = [number for number, piece in enumerate(proto.pieces) if piece.type == 1 and len(piece.piece) > 1]
    pieces = [(proto.pieces[number].piece, proto.pieces[number].score) for number in reversed(merged)]
    for number, (piece, score) in zip(merged, pieces, strict=True):
        proto.pieces[number].piece, proto.pieces[number].score = piece, score
    path.write_bytes(proto.SerializeToString())
    tokenizer = load_tokenizer(path)
    built = tokenizers.Tokenizer.from_str(exact_tokenizer_json(tokenizer, ["<s>", "</s>"]))
    texts = attacking_strings(300)
    assert [encoding.ids for encoding in built.encode_batch(texts)] == tokenizer.processor.encode(texts)


def test_a_word_model_is_refused(tmp_path, sentencepiece_model):
    path = sentencepiece_model(tmp_path, model_type="char", byte_fallback=False, vocab_size=200)
    with pytest.raises(UserError, match="neither a BPE nor a Unigram model"):
        exact_tokenizer_json(load_tokenizer(path), [])


def test_user_defined_turn_tokens_are_exported_as_control_tokens(tmp_path, sentencepiece_model):
    """In a message they are refused (P3), so the exported file may find them wherever they are."""
    path = sentencepiece_model(tmp_path, user_defined_symbols="<|im_start|>,<|im_end|>")
    tokenizer = load_tokenizer(path)
    with pytest.raises(UserError, match="differs on"):
        exact_tokenizer_json(tokenizer, ["<s>", "</s>"])
    fields = json.loads(exact_tokenizer_json(tokenizer, ["<|im_start|>", "<|im_end|>"]))
    special = {token["content"] for token in fields["added_tokens"] if token["special"]}
    assert special == {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"}


def test_the_demo_tokenizer_is_exported_exactly(kinds):
    tokenizer = load_tokenizer(kinds["demo"].path)
    built = tokenizers.Tokenizer.from_str(exact_tokenizer_json(tokenizer, ["<s>", "</s>"]))
    texts = attacking_strings()
    assert [encoding.ids for encoding in built.encode_batch(texts)] == tokenizer.processor.encode(texts)


# The proof itself ---------------------------------------------------------------------------------


def test_the_proof_reads_many_different_strings_the_same_every_time(kinds):
    tokenizer = load_tokenizer(kinds["demo"].path)
    texts = probing_strings(tokenizer)
    assert texts == probing_strings(tokenizer)
    assert len(texts) == PROOF_STRINGS
    assert len(set(texts)) > 0.9 * PROOF_STRINGS
    assert all(text.encode() for text in texts)


@pytest.mark.parametrize(
    "damage", ["one merge less", "no first space", "one piece renamed", "spaces stripped"]
)
def test_the_proof_finds_small_damage(damage, kinds):
    tokenizer, fields = exact(kinds["sentencepiece"].path, "</s>")
    if damage == "one merge less":
        del fields["model"]["merges"][40]
    elif damage == "no first space":
        fields["normalizer"]["normalizers"] = fields["normalizer"]["normalizers"][1:]
    elif damage == "one piece renamed":
        fields["model"]["vocab"] = {
            {"请": "您"}.get(piece, piece): id for piece, id in fields["model"]["vocab"].items()
        }
        fields["model"]["merges"] = [pair for pair in fields["model"]["merges"] if "请" not in "".join(pair)]
    else:
        fields["normalizer"]["normalizers"].insert(
            0, {"type": "Strip", "strip_left": False, "strip_right": True}
        )
    built = tokenizers.Tokenizer.from_str(json.dumps(fields))
    assert first_difference(tokenizer, built) is not None


@pytest.mark.parametrize("flag", ["lstrip", "rstrip"])
def test_the_proof_finds_a_control_token_that_swallows_blanks(flag, kinds):
    tokenizer, fields = exact(kinds["byte-level"].path, "<|eot_id|>")
    token = next(token for token in fields["added_tokens"] if token["content"] == "<|eot_id|>")
    token[flag] = True
    built = tokenizers.Tokenizer.from_str(json.dumps(fields))
    assert first_difference(tokenizer, built) is None  # in text alone nothing shows
    assert "<|eot_id|>" in first_difference(tokenizer, built, ["<|eot_id|>"])


def test_an_export_is_proved_between_control_tokens_too(kinds, monkeypatch):
    tokenizer, fields = exact(kinds["byte-level"].path, "<|eot_id|>")
    next(token for token in fields["added_tokens"] if token["content"] == "<|eot_id|>")["rstrip"] = True
    damaged = tokenizers.Tokenizer.from_str(json.dumps(fields))
    monkeypatch.setattr(tokenizer_export, "_from_json", lambda *_: damaged)
    with pytest.raises(UserError, match=r"it differs on '<\|eot_id\|>"):
        exact_tokenizer_json(tokenizer, ["<|eot_id|>"])


# tokenizer.json -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["byte-level", "qwen", "llama-json", "llama-first"])
def test_a_tokenizer_json_stays_what_it_was(name, kinds):
    """With its begin token before a bare text, by which llama.cpp's converter knows it."""
    kind = kinds[name]
    built = tokenizers.Tokenizer.from_str(json.dumps(exact(kind.path, "<|eot_id|>")[1]))
    begin = "<s>" if name == "llama-first" else ""  # its first space belongs to texts without begin token
    for text in ["Hello", " a  b\n", "你好 😀", "<|eot_id|>x", *attacking_strings(300)]:
        expected = kind.server.encode(begin + text, add_special_tokens=False).ids
        assert built.encode(text, add_special_tokens=False).ids == expected[len(begin) // 3 :]
    begins = {"byte-level": "<|begin_of_text|>", "qwen": None}.get(name, "<s>")
    assert built.encode("").ids == kind.server.encode("").ids == ([kind.id(begins)] if begins else [])
    special = {token.content for token in built.get_added_tokens_decoder().values() if token.special}
    assert "<|eot_id|>" in special
    assert built.padding is built.truncation is None


def test_an_end_token_after_bare_text_is_removed(kinds, tmp_path):
    """With an end token after every text a server would end the prompt before it asks for an answer."""
    kind = kinds["byte-level"]
    fields = json.loads(kind.path.read_text(encoding="utf-8"))
    built = tokenizers.Tokenizer.from_str(json.dumps(fields))
    ids = [(token, kind.id(token)) for token in ("<|begin_of_text|>", "<|end_of_text|>")]
    built.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A <|end_of_text|>", special_tokens=ids
    )
    built.save(str(tmp_path / "tokenizer.json"))
    shutil.copy(kind.path.with_name("tokenizer_config.json"), tmp_path)
    exported = tokenizers.Tokenizer.from_str(json.dumps(exact(tmp_path / "tokenizer.json", "<|eot_id|>")[1]))
    assert exported.encode("Hello").ids == kind.server.encode("Hello", add_special_tokens=False).ids


def test_turn_tokens_no_longer_swallow_blanks(kinds, tmp_path):
    """As Phi-3 has them. Training read the newline after the end of a turn, so a server must too."""
    built = tokenizers.Tokenizer.from_file(str(kinds["byte-level"].path))
    built.add_tokens([tokenizers.AddedToken("<|end|>", special=False, normalized=False, rstrip=True)])
    built.save(str(tmp_path / "tokenizer.json"))
    exported = tokenizers.Tokenizer.from_str(exact_tokenizer_json(load_tokenizer(tmp_path), ["<|end|>"]))
    assert exported.encode("a<|end|>\n b", add_special_tokens=False).tokens == ["a", "<|end|>", "Ċ", "Ġb"]
    assert exported.decode(exported.encode("a<|end|>\n b").ids, skip_special_tokens=True) == "a\n b"


# transformers -------------------------------------------------------------------------------------

SHAPE = LlamaConfig(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=2000
)
TURNS = [
    " Translate to Chinese: Good morning! ",
    "早上好！",
    "Und auf Deutsch?\r\n\r\n",
    "  Schöne Grüße,\n\nguten Morgen! 😀👩‍👩‍👧 ",
    "\tdef f(x):\n    return 1,234.5  # 龘 \u200b e\u0301\n",
    "𠮷 \x00 ½ = 0.5\n",
    "bye",
]


@pytest.fixture(scope="module")
def exported(kinds, own_template, tmp_path_factory):
    """Export a tokenizer with a template; returns a function -> (encoder, transformers' tokenizer)."""

    @functools.cache
    def export(name: str, template: str):
        encoder = kinds[name].encoder(own_template if template == "own" else template)
        folder = tmp_path_factory.mktemp("export") / "model"
        export = Export(folder, SHAPE, encoder, Config(), torch.float32)
        export.rehearse()
        return encoder, transformers.AutoTokenizer.from_pretrained(export.aside)

    return export


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("sentencepiece", "bayling"), ("sentencepiece", "llama2"), ("sentencepiece", "chatml"),
        ("demo", "vicuna"), ("demo", "own"), ("byte-level", "llama3"), ("byte-level", "alpaca"),
        ("qwen", "chatml"), ("qwen", "own"), ("llama-json", "vicuna"), ("llama-first", "llama2"),
        ("llama-first", "bayling"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("system", ["", "Antworte kurz.\n"])
def test_transformers_feeds_the_ids_that_training_saw(name, template, system, exported):
    encoder, tokenizer = exported(name, template)
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(TURNS))
    (encoded,) = encoder.encode([Conversation(turns, system)])
    messages = [{"role": "system", "content": system}] if system else []
    for number, turn in enumerate(turns):
        messages.append(turn._asdict())
        if turn.role == "user" and number < len(turns) - 1:
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            start, stop = encoded.spans[number // 2]
            assert (
                ids
                == encoded.tokens[:start].tolist()
                == encoder.prompt_ids(Conversation(turns[: number + 1], system))
            )
            answer = tokenizer.decode(encoded.tokens[start:stop], skip_special_tokens=True)
            assert answer.strip() == unicode_form(name, turns[number + 1].content).strip()
    flat = tokenizer.apply_chat_template(messages[:-1], tokenize=False)
    ids = tokenizer(flat, add_special_tokens=False).input_ids
    assert ids[: len(encoded.tokens)] == encoded.tokens.tolist()
    assert tokenizer.eos_token_id == encoder.stop_ids[0]


def unicode_form(name: str, text: str) -> str:
    return unicodedata.normalize("NFC", text) if name == "qwen" else text


@pytest.mark.parametrize("name", ["sentencepiece", "byte-level"])
def test_transformers_reads_any_text_as_training_did(name, exported):
    encoder, tokenizer = exported(name, "bayling")
    texts = [text for text in attacking_strings(1500) if text]
    assert tokenizer(texts, add_special_tokens=False).input_ids == encoder.tokenizer.encode(texts)


@pytest.mark.skipif("FASTLING_DATA" not in os.environ, reason="FASTLING_DATA names no folder with real data")
def test_llamas_own_tokenizer_is_exported_exactly():
    path = Path(os.environ["FASTLING_DATA"]) / "tokenizers" / "llama.model"
    encoder = Encoder(TEMPLATES["bayling"], load_tokenizer(path), 2048)
    built = tokenizers.Tokenizer.from_str(
        exact_tokenizer_json(encoder.tokenizer, encoder.template.control_tokens)
    )
    texts = attacking_strings(20_000)
    assert [each.ids for each in built.encode_batch(texts)] == encoder.tokenizer.encode(texts)
