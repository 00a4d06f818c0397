"""Pieces of text as ids come: joined they are the answer, and none is ever taken back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastling.data.encoding import Encoder
from fastling.data.template import load_template
from fastling.data.tokenizer import load_tokenizer
from fastling.inference.streaming import TextStream

pytestmark = pytest.mark.slow  # seconds in all; `make check` does without

KINDS = ["sentencepiece", "demo", "byte-level", "qwen", "llama-json", "llama-first"]
TEXTS = [
    "你好，世界！龘𠮷野家",
    "  two  spaces \n\n and lines\n",
    "😀👩‍👩‍👧🇩🇪🏳️‍🌈",
    "Käse é e\u0301 नमस्ते مرحبا",
    "a\ufffdb \ufffd",
    "▁ x ▁",
    "</s> <0x41> <|im_end|>",
    "",
    " ",
]


@pytest.fixture(params=KINDS, scope="module")
def encoder(request, kinds):
    return Encoder(load_template("bayling"), load_tokenizer(kinds[request.param].path), 0)


def pieces_of(encoder, ids, stop_strings=()) -> list[str]:
    stream = TextStream(encoder, stop_strings)
    pieces = []
    for each in ids:
        pieces.append(stream.add(each))
        if stream.stopped:
            break
    return [*pieces, stream.end()]


def known(encoder, ids) -> list[int]:
    return [each for each in ids if each < encoder.tokenizer.vocab_size]


@settings(max_examples=150)
@given(data=st.data())
def test_the_pieces_of_any_ids_are_their_text(encoder, data):
    """Half characters, wrong bytes, control tokens, ids that no token has: a model may say anything."""
    most = encoder.tokenizer.vocab_size + 3
    byte = [each for each in range(most - 3) if encoder.tokenizer.piece(each).startswith("<0x")]
    drawn = st.integers(0, most) | (st.sampled_from(byte) if byte else st.integers(0, 259))
    ids = data.draw(st.lists(drawn, max_size=120))
    assert "".join(pieces_of(encoder, ids)) == encoder.answer(known(encoder, ids))


@settings(max_examples=60)
@given(text=st.text(max_size=99) | st.lists(st.sampled_from(TEXTS), max_size=9).map("".join))
def test_the_pieces_of_a_text_are_the_text(encoder, text):
    [ids] = encoder.tokenizer.encode([text])
    pieces = pieces_of(encoder, ids)
    assert "".join(pieces) == encoder.tokenizer.decode([ids])[0].strip()
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_text_comes_with_the_token_that_completes_it(encoder):
    [ids] = encoder.tokenizer.encode(["the weather is nice"])
    pieces = pieces_of(encoder, ids)
    assert pieces[-1] == "" and all(pieces[:-1])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stops", [["界"], ["\n"], ["zzz", "lines"], [" "], ["two  spaces", "two"]], ids=str)
def test_a_stop_string_ends_the_text_before_it(encoder, text, stops):
    [ids] = encoder.tokenizer.encode([text])
    whole = encoder.tokenizer.decode([ids])[0].lstrip()
    found = [whole.find(stop) for stop in stops if stop in whole]
    # One at the very end may be white space that is never said.
    expected = whole[: min(found)].rstrip() if found else whole.rstrip()
    assert "".join(pieces_of(encoder, ids, stops)) == expected


@pytest.mark.parametrize(
    ("text", "stop", "said"), [("all done END\n", "END\n", "all done"), ("是的。\n\n", "。\n", "是的")]
)
def test_a_stop_string_at_the_very_end_may_end_in_white_space(encoder, text, stop, said):
    """Where a new line is a byte, it is held back until the answer is over."""
    [ids] = encoder.tokenizer.encode([text])
    stream = TextStream(encoder, [stop])
    pieces = []
    for each in ids:
        pieces.append(stream.add(each))
        if stream.stopped:
            break
    assert "".join([*pieces, stream.end()]) == said
    assert stream.stopped


def test_what_may_begin_a_stop_string_is_held_back(encoder):
    [ids] = encoder.tokenizer.encode(["a END b ENDING"])
    pieces = pieces_of(encoder, ids, ["ENDING"])
    assert "".join(pieces) == "a END b"
    stream = TextStream(encoder, ["ENDING"])
    for each in encoder.tokenizer.encode(["a END"])[0]:
        stream.add(each)
    assert stream.text == "a"
    assert stream.end() == " END"
    stream = TextStream(encoder, ["ENDING"])
    for each in encoder.tokenizer.encode(["ENDING of all"])[0]:
        stream.add(each)
    assert stream.stopped and stream.text == ""


def test_spaces_anywhere_in_a_long_answer_are_kept(tmp_path, sentencepiece_model):
    """Some decoders leave out all white space at the beginning of what they are given."""
    path = sentencepiece_model(tmp_path, remove_extra_whitespaces=True)
    encoder = Encoder(load_template("bayling"), load_tokenizer(path), 0)
    [word] = encoder.tokenizer.encode(["the"])
    space = encoder.tokenizer.processor.piece_to_id("▁")
    for before in range(50):
        ids = word * before + [space] * 2 + word * 3
        assert "".join(pieces_of(encoder, ids)) == encoder.answer(ids)


def test_a_long_answer_costs_as_much_for_each_id_as_a_short_one(encoder, monkeypatch):
    [ids] = encoder.tokenizer.encode(["the weather is nice 今天 " * 300])
    decode, decoded = encoder.tokenizer.decode, []
    monkeypatch.setattr(
        encoder.tokenizer, "decode", lambda runs: decoded.append(len(runs[0])) or decode(runs)
    )
    assert "".join(pieces_of(encoder, ids)) == ("the weather is nice 今天 " * 300).strip()
    assert max(decoded) < 40
