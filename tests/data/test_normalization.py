"""SentencePiece's tables of normalisation as steps of a tokenizer.json, beside SentencePiece itself."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import normalizers

from fastling.data import normalization
from fastling.data.normalization import read_table, steps_of
from fastling.errors import UserError

pytestmark = pytest.mark.slow  # seconds for each table
NEWEST = {"\ua7f1", "\ua7f2", "\ua7f3", "\ua7f4"}
"""Letters that tokenizers' Unicode is too old for. With a mark they are replaced by name, whatever follows."""
RULES = ("nfkc", "nmt_nfkc_cf")


@pytest.fixture(scope="module", params=RULES)
def rule(request, tmp_path_factory, sentencepiece_model):
    """(SentencePiece's own normalisation, its table in bytes, the steps), without spaces added or removed."""
    path = sentencepiece_model(
        tmp_path_factory.mktemp(request.param), normalization_rule_name=request.param, vocab_size=450,
        add_dummy_prefix=False,
    )  # fmt: skip
    proto = ModelProto.FromString(path.read_bytes())
    proto.normalizer_spec.escape_whitespaces = False
    theirs = SentencePieceProcessor(model_proto=proto.SerializeToString()).normalize
    charsmap = proto.normalizer_spec.precompiled_charsmap
    return theirs, charsmap, normalizers.Sequence(steps_of(charsmap))


def test_every_character_and_every_key_is_changed_as_sentencepiece_changes_it(rule):
    theirs, charsmap, steps = rule
    table = read_table(charsmap)
    assert len(table) > 200_000
    noncharacters = {normalization.SEPARATOR, *normalization.STAND_INS}
    texts = [f"a{char}b" for char in normalization.ALL[:0x20000] if char not in noncharacters]
    texts += sorted(table)[::7]
    assert [
        text for text in texts if steps.normalize_str(text) != theirs(text) and not NEWEST & set(text)
    ] == []


def test_neighbours_are_joined_exactly_where_sentencepiece_joins_them(rule):
    """Marks in any order, parts of Hangul syllables of every width, line ends, joiners: what NFKC or grapheme
    clusters would take for more than it is."""
    theirs, charsmap, steps = rule
    keys = sorted(read_table(charsmap))
    later = sorted({char for key in keys for char in key[1:]} | set("\n\r\u200d\u0e33\U0001f3fb"))
    singles = [key for key in keys if len(key) == 1]
    part = st.one_of(*map(st.sampled_from, (keys, later, singles, [*"aeAß 中한½；①ﬁ"])))

    @settings(max_examples=1500)
    @given(st.lists(part, min_size=1, max_size=6).map("".join))
    def check(text: str):
        if not NEWEST & set(text) and "Cn" not in map(unicodedata.category, text):
            assert steps.normalize_str(text) == theirs(text)

    check()


def test_a_table_that_is_not_built_on_nfkc_is_left_to_tokenizers(rule, monkeypatch):
    _, charsmap, _ = rule
    monkeypatch.setattr(normalization, "MOST_UNLIKE", -1)
    (whole,) = steps_of.__wrapped__(charsmap)
    assert whole.normalize_str("①") == "1"


# A trie whose first unit leads to the others, and each of these to all of them again.
CIRCLE = np.array([64, 0, *(label | 1 << 10 for label in range(1, 64))], "<u4").tobytes()


@pytest.mark.parametrize(
    ("charsmap", "why"),
    [
        (b"\x10\0", "requires a buffer"),
        (b"\x10\0\0\0" + bytes(4), "buffer is smaller"),
        (CIRCLE, "a key has no end"),
    ],
    ids=["no size", "cut", "a circle"],
)
def test_a_damaged_table_is_explained(charsmap, why):
    with pytest.raises(UserError, match=f"its table of normalisation is damaged: .*{why}"):
        read_table(charsmap)


def test_a_table_of_keys_without_number_fills_no_memory(rule, monkeypatch):
    _, charsmap, _ = rule
    monkeypatch.setattr(normalization, "MOST_NODES", 10_000)
    with pytest.raises(UserError, match="it has too many keys"):
        read_table(charsmap)
