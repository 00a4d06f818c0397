"""Longer vocabularies: old text and old logits as they were, new rows as they were said to be."""

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import sentencepiece
import torch
import transformers
from conftest import DEMO
from hypothesis import example, given, settings
from hypothesis import strategies as st
from surgery.models import SHAPE, logits_of, make_model, tensors_of
from tokenizers import Regex, Tokenizer, pre_tokenizers

from fastling import files, load_pretrained
from fastling.data import tokenizer_export
from fastling.data.tokenizer import SentencePieceTokenizer, load_tokenizer
from fastling.data.tokenizer_export import exact_tokenizer_json, model_proto
from fastling.errors import RunError, UserError
from fastling.surgery.pieces import NORMAL, extended_to_reach, with_pieces
from fastling.surgery.tokens import add_pieces, add_tokens, read_token_file
from fastling.surgery.vocabulary import extend_model

pytestmark = pytest.mark.slow  # seconds in all; `make check` does without

TOKENS = ["舒舟", " 艾", " 艾芳", "苍舒", "苍舒舟", "龘", "zq", "qzq", "qzqz", "nh"]
"""Joints of pieces that the demo's tokenizer has, a letter that it lacks, and a leading space."""
BYTE_TOKENS = ["龘龘", "<note>", " Übersetzung", "qzq", "3.14", " \x7f\xa1\xac\xad\xae"]
"""Text that the proof comes upon as well, and bytes on both sides of those that stand for themselves."""
OLD_TEXTS = [
    "Hello, world!",
    "  两个 空格\n",
    "请把这句话译成德语：我们明天去。",
    "😀 e\u0301",
    "</s> <0x41>",
    "",
]


@pytest.fixture(scope="module", autouse=True)
def fewer_probing_strings():
    every = tokenizer_export.probing_strings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_export, "probing_strings", lambda tokenizer: every(tokenizer, 1000))
        patch.setattr("fastling.surgery.tokens.PROOF_STRINGS", 500)
        yield


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    """A model with the demo's SentencePiece tokenizer, and the same with more tokens."""
    folder = tmp_path_factory.mktemp("spm")
    model = make_model(folder / "model", dtype=torch.float32)
    added = add_tokens(model, TOKENS)
    extend_model(model, folder / "out", added, "mean-of-pieces")
    return model, folder / "out", added


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    model = make_model(
        folder / "model", dtype=torch.float32, tokenizer="bytes", vocab_size=500, tie_word_embeddings=True
    )
    added = add_tokens(model, BYTE_TOKENS)
    extend_model(model, folder / "out", added, "mean-of-pieces")
    return model, folder / "out", added


@pytest.fixture(params=["spm", "byte_level"])
def case(request):
    return request.getfixturevalue(request.param)


def test_old_text_keeps_its_ids_and_old_tokens_their_logits(case):
    model, out, added = case
    old, new = load_tokenizer(model), load_tokenizer(out)
    assert new.encode(OLD_TEXTS) == old.encode(OLD_TEXTS)
    for token_id in range(old.vocab_size):
        assert new.piece(token_id) == old.piece(token_id)
    ids = old.encode(["Hello, 我们 world"])[0]
    before, after = logits_of(model, ids), logits_of(out, ids)
    assert torch.equal(before, after[:, : before.shape[1]])
    assert after.shape[1] == before.shape[1] + len(added.texts)


def test_transformers_and_fastling_load_it_and_agree(case):
    _, out, added = case
    text = "a" + "b ".join(added.texts)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    ids = load_tokenizer(out).encode([text])[0]
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    assert max(ids) >= added.first_id and theirs.decode(ids) == text
    assert len(theirs) == added.first_id + len(added.texts)
    ours = load_pretrained(out).logits(torch.tensor(ids), torch.tensor([0, len(ids)], dtype=torch.int32))
    torch.testing.assert_close(ours, logits_of(out, ids), atol=1e-4, rtol=0)


def test_a_byte_level_folders_list_of_added_tokens_is_extended(byte_level):
    """Llama 3's and Qwen's folders have one beside tokenizer.json, and readers take either."""
    _, out, added = byte_level
    decoder = json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    listed = {int(number): token["content"] for number, token in decoder.items()}
    assert listed == dict(enumerate(added.texts, added.first_id))


def test_a_tokenizer_json_that_cuts_and_pads_takes_tokens_too(byte_level, tmp_path):
    """As its trainer may have saved it; the proof reads whole texts all the same."""
    model = shutil.copytree(byte_level[0], tmp_path / "model")
    built = Tokenizer.from_file(str(model / "tokenizer.json"))
    built.enable_truncation(2)
    built.enable_padding(length=4)
    built.save(str(model / "tokenizer.json"))
    assert add_tokens(model, BYTE_TOKENS).texts == BYTE_TOKENS


@pytest.mark.parametrize("multiple", [1, 4096])
def test_disk_space_is_checked_for_the_size_of_the_weights(case, tmp_path, monkeypatch, multiple):
    model, _, added = case
    asked = []
    monkeypatch.setattr(files, "check_disk", lambda folder, num_bytes, *_: asked.append(num_bytes))
    extend_model(model, tmp_path / "out", added, "mean", multiple)
    assert asked == [sum(each.nbytes for each in tensors_of(tmp_path / "out").values())]


def test_a_folder_whose_tokenizer_does_not_know_the_tokens_is_not_left(spm, tmp_path):
    model, _, added = spm
    with pytest.raises(RunError, match="failed its check: '舒舟' is not token 2000"):
        extend_model(model, tmp_path / "out", replace(added, files={}), "mean")
    assert list(tmp_path.iterdir()) == []


def test_new_rows_are_the_mean_of_the_old_tokens_rows(case):
    model, out, added = case
    old = load_tokenizer(model)
    before, after = tensors_of(model), tensors_of(out)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if name not in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(after[name], tensor)
            continue
        assert torch.equal(after[name][: len(tensor)], tensor)
        for number, text in enumerate(added.texts):
            pieces = [old.piece(each) for each in added.parts[number]]
            assert text == "".join(pieces).replace("▁", " ") or len(pieces) >= 3  # bytes spell it otherwise
            expected = torch.stack([tensor[each].double() for each in added.parts[number]]).mean(0)
            assert torch.equal(after[name][added.first_id + number], expected.float())


def test_a_token_stands_for_its_text_anywhere(case):
    _, out, added = case
    tokenizer = load_tokenizer(out)
    for number, text in enumerate(added.texts, added.first_id):
        whole = f"我{text}你"
        (ids,) = tokenizer.encode([whole])
        assert tokenizer.decode([ids]) == [whole]
        assert number in ids or text == "苍舒"


def test_the_sentencepiece_model_and_its_tokenizer_json_agree(spm):
    _, out, added = spm
    model, built = (
        SentencePieceTokenizer(out / "tokenizer.model"),
        Tokenizer.from_file(str(out / "tokenizer.json")),
    )
    texts = [a + b + c for a in added.texts for b in ("", " ", "q", "苍") for c in added.texts]
    assert model.encode(texts) == [each.ids for each in built.encode_batch(texts, add_special_tokens=False)]
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == model.vocab_size == 2010


@pytest.fixture(scope="module")
def old_and_new(spm):
    model, out, _ = spm
    return load_tokenizer(model / "tokenizer.model"), load_tokenizer(out)


letters = st.text(st.sampled_from("苍舒舟艾芳龘qz ab我▁<éinhe"), max_size=12)


@pytest.mark.slow
@given(text=letters)
@example(text="inhe")
@settings(max_examples=300)
def test_only_text_with_a_new_token_in_it_reads_differently(spm, old_and_new, text):
    (*_, added), (old, new) = spm, old_and_new
    (before,), (after,) = old.encode([text]), new.encode([text])
    if not any(token in f" {text}".replace("▁", " ") for token in added.texts):
        assert after == before
    assert max(after, default=0) < 2010
    # What is read is the same text, in fewer tokens.
    assert new.decode([after]) == old.decode([before]) and len(after) <= len(before)
    # Old merges come first: a new token is always put together from whole old ones.
    parts = {2000 + number: parts for number, parts in enumerate(added.parts)}
    assert [part for token in after for part in parts.get(token, [token])] == before


def test_a_folders_own_tokenizer_json_keeps_what_it_adds(spm, tmp_path):
    """Begin token, special tokens: all but the model is the folder's own."""
    model = shutil.copytree(spm[0], tmp_path / "model")
    fields = json.loads(exact_tokenizer_json(SentencePieceTokenizer(model / "tokenizer.model"), ()))
    text, begin = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}
    fields["post_processor"] = {
        "type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text, text],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }  # fmt: skip
    (model / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
    extend_model(model, tmp_path / "out", add_tokens(model, ["舒舟"]), "mean")
    built = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    assert built.encode("我舒舟").ids[0] == 1 and 2000 in built.encode("我舒舟").ids
    fields["normalizer"] = None
    (model / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(UserError, match="cannot be made to read text as the extended tokenizer.model does"):
        add_tokens(model, ["舒舟"])


@pytest.mark.parametrize(
    "settings_of_it",
    [{}, {"add_bos_token": False}, {"add_bos_token": True, "tokenizer_class": "LlamaTokenizer"}],
    ids=str,
)
def test_transformers_puts_the_same_begin_token_as_before(spm, tmp_path, settings_of_it):
    """A folder with tokenizer.model alone gets a tokenizer.json, which must not change that.

    Where add_bos_token is not said, transformers 4 takes it as true, and so do we; 5 does not.
    """
    model = shutil.copytree(spm[0], tmp_path / "model")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (model / "tokenizer_config.json").write_text(json.dumps(special | settings_of_it))
    extend_model(model, tmp_path / "out", add_tokens(model, ["舒舟"]), "mean")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    begin = [1] if settings_of_it.get("add_bos_token", True) else []
    for text in ("Hello 我们", "  lead", " \u3000全角 "):
        (plain,) = load_tokenizer(model).encode([text])
        assert tokenizer(text)["input_ids"] == begin + plain
    if "tokenizer_class" in settings_of_it:
        before = transformers.AutoTokenizer.from_pretrained(model)
        assert tokenizer("Hello 我们")["input_ids"] == before("Hello 我们")["input_ids"]


# Pieces ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_pieces(tmp_path_factory):
    return train_pieces(tmp_path_factory.mktemp("pieces"), "identity")


def train_pieces(folder, rule):
    """A SentencePiece BPE model of another language, trained on text that the demo has little of."""
    words = "szczęście źródło żółw świat łódź książka gęś ćma jaźń chrząszcz brzmi w trzcinie".split()
    lines = [" ".join(words[i:] + words[:i]) for i in range(len(words))] * 20
    (folder / "text").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "new"), vocab_size=120, model_type="bpe",
        byte_fallback=False, character_coverage=1.0, normalization_rule_name=rule, minloglevel=2,
        control_symbols=["<theirs>"],
    )  # fmt: skip
    return folder / "new.model"


def test_pieces_of_another_model(spm, other_pieces, tmp_path):
    model = spm[0]
    added = add_pieces(model, other_pieces)
    extend_model(model, tmp_path / "out", added, "mean-of-pieces")
    old, new = load_tokenizer(model), load_tokenizer(tmp_path / "out")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(other_pieces))
    known = {old.piece(number) for number in range(old.vocab_size)}
    normal = {
        theirs.id_to_piece(i)
        for i in range(len(theirs))
        if not (theirs.is_control(i) or theirs.is_unknown(i))
    }
    assert {new.piece(number) for number in range(2000, new.vocab_size)} == normal - known
    text = "szczęście źródło świat"
    assert len(new.encode([text])[0]) < len(old.encode([text])[0])
    assert new.decode(new.encode([text])) == [text]
    assert new.encode(["Hello, 我们!"]) == old.encode(["Hello, 我们!"])
    assert set(added.unreached) <= {text.replace(" ", "▁") for text in added.texts}


# Initialisation --------------------------------------------------------------------------------------


def test_pieces_keep_their_order_below_the_score_that_llamas_rarest_have(spm):
    """-1e9, beside which a float32 has no room for one less: equal scores would be merged from the left."""
    model = model_proto(SentencePieceTokenizer(spm[0] / "tokenizer.model"))
    next(piece for piece in model.pieces if piece.type == NORMAL).score = -1e9
    scores = [piece.score for piece in with_pieces(model, [f"新{number}" for number in range(5000)]).pieces]
    new = scores[len(model.pieces) :]
    assert len(new) == 5000 and new[0] < min(scores[: len(model.pieces)])
    assert all(one > other for one, other in itertools.pairwise(new))


def rows_of(spm, tmp_path, init: str, **options):
    model, _, added = spm
    done = extend_model(model, tmp_path / "out", added, init, **options)
    return tensors_of(model), tensors_of(tmp_path / "out"), added, done


def test_the_mean_of_all(spm, tmp_path):
    before, after, added, _ = rows_of(spm, tmp_path, "mean")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(after[name][2000], before[name].double().mean(0).float())
        assert (after[name][2000:] == after[name][2000]).all()


def test_a_copy(spm, tmp_path):
    before, after, added, _ = rows_of(spm, tmp_path, "copy:▁a")
    token = load_tokenizer(spm[0]).control_id("▁a")
    assert (after["lm_head.weight"][2000:] == before["lm_head.weight"][token]).all()


def test_the_zip_tie_approximation_is_the_mean_of_the_bytes(case, tmp_path):
    model, _, added = case
    extend_model(model, tmp_path / "out", added, "zip-tie-approximation")
    before, after = tensors_of(model), tensors_of(tmp_path / "out")
    name, tokenizer = "model.embed_tokens.weight", load_tokenizer(model)
    for number, text in enumerate(added.texts, added.first_id):
        if isinstance(tokenizer, SentencePieceTokenizer):
            ids = [tokenizer.control_id(f"<0x{byte:02X}>") for byte in text.encode()]
        else:  # with no merges a byte-level model reads single bytes
            fields = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
            fields["model"]["merges"] = []
            ids = Tokenizer.from_str(json.dumps(fields)).encode(text).ids
            assert len(ids) == len(text.encode())
        expected = before[name][ids].double().mean(0).float()
        assert torch.equal(after[name][number], expected)


def test_without_byte_tokens_there_is_no_zip_tie(other_pieces, tmp_path):
    model = make_model(tmp_path / "model", tokenizer="none", vocab_size=120)
    shutil.copyfile(other_pieces, model / "tokenizer.model")
    added = add_tokens(model, ["wś"])
    with pytest.raises(UserError, match="has no tokens for single bytes"):
        extend_model(model, tmp_path / "out", added, "zip-tie-approximation")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_files_that_are_no_objects_are_refused(case, tmp_path, name):
    model = shutil.copytree(case[0], tmp_path / "model")
    (model / name).write_text("[]")
    with pytest.raises(UserError, match=name):
        add_tokens(model, ["wqqs", "wqq", "wq"] if (model / "tokenizer.model").is_file() else ["wqqs"])


def test_rows_are_padded_only_when_asked(spm, tmp_path):
    before, after, added, done = rows_of(spm, tmp_path, "mean-of-pieces", multiple=64)
    assert after["lm_head.weight"].shape == (2048, 16) and done["rows"] == 2048
    assert torch.equal(after["lm_head.weight"][2047], before["lm_head.weight"].double().mean(0).float())
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 2048


def test_rows_that_were_padding_are_taken_first(tmp_path):
    model = make_model(tmp_path / "model", vocab_size=2003, dtype=torch.bfloat16)
    added = add_tokens(model, ["舒舟", "艾芳"])
    done = extend_model(model, tmp_path / "out", added, "copy:▁a")
    assert (done["first_id"], done["rows_before"], done["rows"]) == (2000, 2003, 2003)
    before, after = (tensors_of(each)["lm_head.weight"] for each in (model, tmp_path / "out"))
    row = load_tokenizer(model).control_id("▁a")
    assert torch.equal(after[:2000], before[:2000]) and torch.equal(after[2002], before[2002])
    assert torch.equal(after[2001], before[row]) and after.dtype == torch.bfloat16


# Word lists ------------------------------------------------------------------------------------------


def test_tokens_already_in_the_vocabulary_are_skipped(case):
    model, _, added = case
    known = ["▁a", "in"] if "舒舟" in added.texts else ["<|end|>", "e"]
    again = add_tokens(model, [*known, added.texts[0]])
    assert again.texts == added.texts[:1] and len(again.known) == 2 and again.first_id == added.first_id


def test_letters_and_intermediate_pieces_are_added_and_reported(spm, tmp_path):
    model, words = spm[0], ["舒舟艾芳", "龘龘", "艾龘", " qzqzqz"]
    added = add_tokens(model, words)
    assert added.texts[: len(words)] == words and added.texts[len(words) :] == added.helpers
    assert added.helpers[0] == "龘" and "舒舟" in added.helpers
    done = extend_model(model, tmp_path / "out", added, "mean-of-pieces")
    assert done["helpers"] == added.helpers and done["tokens"] == len(added.texts)
    new = load_tokenizer(tmp_path / "out")
    for number, word in enumerate(words, added.first_id):
        assert number in new.encode([f"我{word}"])[0]
    assert new.encode(OLD_TEXTS) == load_tokenizer(model / "tokenizer.model").encode(OLD_TEXTS)


# Refused ---------------------------------------------------------------------------------------------


def test_a_list_with_nothing_new_is_refused(case):
    tokens = ["▁a", "in"] if "舒舟" in case[2].texts else ["<|end|>", " the", "e"]
    with pytest.raises(UserError, match="holds no token that the vocabulary lacks"):
        add_tokens(case[0], tokens)


def test_pieces_need_a_sentencepiece_model(byte_level):
    with pytest.raises(UserError, match="is no SentencePiece model"):
        add_pieces(byte_level[0], DEMO / "tokenizer.model")


def test_all_impossible_tokens_are_named_at_once(tmp_path):
    """A model that reads full-width letters as plain ones."""
    model = model_proto(SentencePieceTokenizer(train_pieces(tmp_path, "nfkc")))
    with pytest.raises(UserError) as caught:
        extended_to_reach(model, ["ab舒", *(f"Ｑ{letter}" for letter in "舒舟艾芳苍")])
    said = str(caught.value)
    assert (
        "'Ｑ舒' is read as" in said and "'Ｑ艾'" in said and "... and 2 more" in said and "ab舒" not in said
    )
    assert len(said.splitlines()) <= 5


def test_a_token_that_would_hide_a_control_token_is_refused(byte_level):
    """A server that found `x<|` in `max<|end|>` would see no end."""
    model, _, _ = byte_level
    for text in ("x<|", "x<|e", "y <", "<|end|>x"):
        with pytest.raises(UserError, match="would hide <\\|"):
            add_tokens(model, [text])
    assert add_tokens(model, ["<|e", "|>x"]).texts == ["<|e", "|>x"]


def test_tokens_a_byte_level_tokenizer_cannot_decode_are_explained(tmp_path):
    model = make_model(tmp_path / "model", tokenizer="bytes")
    path = model / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "NFC"}}))
    with pytest.raises(UserError, match=r"'Ka\\u0308se' is read as 'K\\xe4se'"):
        add_tokens(model, ["Ka\u0308se"])
    with pytest.raises(UserError, match="give the token with a space before it"):
        add_tokens(model, ["K\xe4se"])
    assert add_tokens(model, [" K\xe4se"]).texts == [" K\xe4se"]


def test_a_tokenizer_json_that_would_put_spaces_after_added_tokens_is_refused(tmp_path):
    model = make_model(tmp_path / "model")
    text = exact_tokenizer_json(SentencePieceTokenizer(model / "tokenizer.model"), ())
    (model / "tokenizer.json").write_text(text, encoding="utf-8")
    (model / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"gives 'a舒舟b' back as 'a舒舟 b'"):
        add_tokens(model, ["舒舟"])


def test_a_text_on_which_the_tokenizers_library_panics_is_told_in_words(byte_level, tmp_path):
    model = shutil.copytree(byte_level[0], tmp_path / "model")
    built = Tokenizer.from_file(str(model / "tokenizer.json"))
    backtracking = pre_tokenizers.Split(Regex("a(b+b+)+y"), "isolated")
    built.pre_tokenizer = pre_tokenizers.Sequence([backtracking, built.pre_tokenizer])
    built.save(str(model / "tokenizer.json"))
    with pytest.raises(UserError, match="tokenizer.json: cannot read a text: .*retry-limit"):
        add_tokens(model, ["b" * 40])


@pytest.mark.parametrize("tokenizer", ["spm", "bytes"])
def test_ids_that_a_file_beside_the_tokenizer_gives_to_other_tokens_are_not_given_again(tokenizer, tmp_path):
    """The rows of those tokens would be written over, and readers would give them other ids."""
    model = make_model(tmp_path / "model", tokenizer=tokenizer, vocab_size=2001)
    known = {"spm": "<0x41>", "bytes": "<|end|>"}[tokenizer]
    number = load_tokenizer(model).control_id(known)
    (model / "added_tokens.json").write_text(json.dumps({known: number}))
    assert add_tokens(model, ["zebrazebra"]).texts[0] == "zebrazebra"
    (model / "added_tokens.json").write_text(json.dumps({known: number, "[PAD]": 2000}))
    said = r"lacks '\[PAD\]', which added_tokens.json or tokenizer_config.json adds as token 2000"
    with pytest.raises(UserError, match=said):
        add_tokens(model, ["zebrazebra"])
    (model / "added_tokens.json").unlink()
    decoder = {"2000": {"content": "[PAD]", "special": True}}
    (model / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with pytest.raises(UserError, match=said):
        add_tokens(model, ["zebrazebra"])


def test_files_of_tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_bytes("\ufeff舒舟\r\n\n 艾芳\n舒舟\n".encode())
    assert read_token_file(path) == ["舒舟", " 艾芳"]
    for content, said in (
        (b"", "holds no token"),
        (b"a\n  \n", "token 2 is nothing but blanks"),
        (b"\xff", "cannot be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            read_token_file(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_token_file(tmp_path / "nowhere")


def test_an_impossible_init_or_mismatched_model_is_refused(spm, tmp_path):
    model, _, added = spm
    for init in ("copy:", "copy:nosuchtoken", "random", ""):
        with pytest.raises(UserError, match="--init"):
            extend_model(model, tmp_path / "out", added, init)
    with pytest.raises(UserError, match="has 2000 tokens, but its embedding only 1990 rows"):
        extend_model(make_model(tmp_path / "small", vocab_size=1990), tmp_path / "out", added, "mean")
    with pytest.raises(UserError, match="knows 2001 tokens"):
        grown = shutil.copytree(model, tmp_path / "grown")
        tokenizer = SentencePieceTokenizer(grown / "tokenizer.model")
        built = Tokenizer.from_str(exact_tokenizer_json(tokenizer, ()))
        built.add_special_tokens(["<|more|>"])
        built.save(str(grown / "tokenizer.json"))
        add_tokens(grown, ["舒舟"])
    with pytest.raises(UserError, match="is no BPE model"):
        unigram = make_model(tmp_path / "unigram", tokenizer="none", **{"vocab_size": SHAPE["vocab_size"]})
        (tmp_path / "text").write_text("\n".join(["the quick brown fox jumps over a lazy dog"] * 50))
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "text"), model_prefix=str(unigram / "tokenizer"), vocab_size=40,
            model_type="unigram", hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        add_tokens(unigram, ["舒舟"])
    assert not (tmp_path / "out").exists()
