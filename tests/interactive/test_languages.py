"""Words, scripts and languages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastling.errors import UserError
from fastling.interactive.languages import (
    check_language,
    check_user_language,
    is_stop_word,
    reads_as,
    tidy,
    tokens,
)
from fastling.interactive.words import Lexicon, learn_lexicon


@given(st.text())
def test_tokens_lie_where_they_say(text):
    last = 0
    for word in tokens(text):
        assert text[word.start : word.end] == word.text and word.start >= last
        last = word.end


@given(st.text(alphabet="中国人民大学 abc12，。"))
def test_a_lexicon_cuts_without_losing_anything(text):
    lexicon = learn_lexicon(["中国人民大学", "人民大学，中国", "大学人民"] * 10)
    pieces = lexicon.cut(text)
    assert "".join(piece.text for piece in pieces) == "".join(word.text for word in tokens(text))
    assert all(text[piece.start : piece.end] == piece.text for piece in pieces)


def test_words_are_told_by_their_neighbours():
    """What keeps together while its neighbours change is a word; what always goes on is none."""
    places = "东西南北上下左右前后"
    texts = [f"{one}图书馆{two}" for one in places for two in places] + ["甲乙丙丁戊己庚辛壬癸" * 100]
    lexicon = learn_lexicon(texts)
    assert [word.text for word in lexicon.cut("东图书馆西")] == ["东", "图书馆", "西"]
    assert "图书" not in lexicon.cost


def test_without_words_chinese_is_cut_into_characters():
    assert [word.text for word in Lexicon().cut("大学 ABC-DEF 3.5")] == ["大", "学", "ABC-DEF", "3.5"]


@pytest.mark.parametrize(
    ("text", "language", "tidied"),
    [
        ("旅博侨界联谊会 ” 。", "zh", "旅博侨界联谊会”。"),
        ("他 说 ， 好 的", "zh", "他说，好的"),
        ("在 Roa Roa 酒店", "zh", "在 Roa Roa 酒店"),
        ("  A  &amp; B\u200b \n", "en", "A & B"),
        ("\u202eA\u2066 cat\u2069", "en", "A cat"),
        ("Die Gru\u0308nde der Auto\xadfahrer", "de", "Die Gründe der Autofahrer"),
        ("He said: “ It is done. ” And: “ No ”", "en", "He said: “It is done.” And: “No”"),
        ('She called it "good", and "very good. "', "en", 'She called it "good", and "very good."'),
        ('The " in 5 " pipes', "en", 'The " in 5 " pipes'),
        ("Er sagte „ja“ und „nein“ .", "de", "Er sagte „ja“ und „nein“ ."),
        ("近日,北京细则出台, 这意味着:“好”!是吗?", "zh", "近日，北京细则出台，这意味着：“好”!是吗？"),
        ("比分3:2，约2,000人，NBA, CBA", "zh", "比分3:2，约2,000人，NBA, CBA"),
        ("中?国", "zh", "中?国"),
        ("Le chat .", "fr", "Le chat ."),
        ('"Perry sagte: ""Es gibt Orte."""', "de", 'Perry sagte: "Es gibt Orte."'),
        ('"""Panama"" ist ein Begriff"', "de", '"Panama" ist ein Begriff'),
        (
            '"He said, "Because he makes me laugh,"" she told me.',
            "en",
            '"He said, "Because he makes me laugh,"" she told me.',
        ),
        ('"Yes"', "en", '"Yes"'),
        ("同年，１０月５日，ＡＰＰ占７０％。", "zh", "同年，10月5日，APP占70％。"),
        ("On May 1 , it is .NET (v. 2) .", "en", "On May 1, it is .NET (v. 2)."),
        ("Ist es so ?", "de", "Ist es so?"),
    ],
)
def test_tidy(text, language, tidied):
    assert tidy(text, language) == tidied


@pytest.mark.parametrize(
    ("text", "language", "other", "expected"),
    [
        ("The house is on the hill", "en", "de", True),
        ("Das Haus ist auf dem Hügel", "en", "de", False),
        ("Das Haus ist auf dem Hügel", "de", "en", True),
        ("La maison est sur la colline", "en", "zh", False),
        ("房子在山上", "zh", "en", True),
        ("房子在山上", "en", "zh", False),
        ("The house is on the hill", "zh", "en", False),
        ("iPhone 7 发布会", "zh", "en", True),
        ("Frank Galicia", "de", "en", True),
        ("La casa está en la colina", "es", "en", True),
        ("The house is on the hill", "ja", "en", False),
        ("家は丘の上にある", "ja", "en", True),
        ("家は丘の上にある", "es", "en", False),
        ("Дом стоит на холме", "ru", "en", True),
        ("The house is on the hill", "ru", "en", False),
        ("Дом стоит на холме", "pl", "en", False),
        ("Kuća je na brdu", "sr", "en", True),
    ],
)
def test_reads_as(text, language, other, expected):
    assert reads_as(text, language, other) is expected


def test_stop_words():
    assert is_stop_word("The", "en") and is_stop_word("的人", "zh") and not is_stop_word("Haus", "de")


def test_an_unknown_language_is_refused_with_those_that_are_known():
    with pytest.raises(UserError, match="unknown language: xx\n  Known are: en, zh, de, fr, ar, bg"):
        check_language("--source-lang", "xx")
    check_language("--source-lang", "ja")


def test_only_a_language_with_phrasings_is_one_that_users_write_in():
    with pytest.raises(UserError, match="no phrasings for users of: ja\n  There are: en, zh, de, fr"):
        check_user_language("--user-lang", "ja")


def test_of_a_language_without_spaces_between_words_only_the_numbers_are_known():
    assert [word.text for word in tokens("会議は2016年の5月に", "ja")] == ["2016", "5"]
    assert [word.text for word in tokens("El 5 de mayo", "es")] == ["El", "5", "de", "mayo"]
