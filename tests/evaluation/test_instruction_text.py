"""How words and sentences are counted, and languages told."""

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastling.errors import UserError
from fastling.evaluation import instruction_text
from fastling.evaluation.instruction_text import (
    count_sentences,
    count_words,
    includes_word,
    is_east_asian,
    knows_language,
    language_of,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("...", 0),
        ("Hello, world", 2),
        ("don't", 2),  # as the benchmark counts
        ("well-known", 2),
        ("snake_case 42", 2),
        ("हिन्दी", 1),
        ("हिन्दी भाषा में लिखना", 4),
        ("e\u0301te\u0301", 1),
        ("привет мир", 2),
        ("مَرْحَبًا", 1),
        ("你好世界", 4),
        ("你好，世界！", 4),
        ("我用Python写3.5行代码", 1 + 1 + 1 + 1 + 1 + 1 + 2),  # 我 用 Python 写 3.5 行 代 码
        ("こんにちは、ジェイソンさん、Jason? Nice to meet you☺ ❤", 19),  # the benchmark's own example
        ("我爱你👍🏽🇨🇳👨\u200d👩\u200d👧", 6),
        ("日本語とEnglish", 5),
        ("The word 爱 means love", 5),
        ("\U00020000\U00020001", 2),
    ],
)
def test_words_are_counted_by_script(text, words):
    assert count_words(text) == words


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0),
        ("   \n ", 0),
        ("123.", 0),
        ("Hello", 1),
        ("Hello. World", 2),
        ("Mr. Smith and Dr. J. R. Jones live in the U.S. today.", 1),
        ("Pi is 3.14. It is a number.", 2),
        ("Is it? Yes! Well...", 3),
        ('He said "Stop." Then he left.', 2),
        ("wait... what", 1),
        ("A title\n\nA text without end", 1),
        ("1. First thing.\n2. Second thing.", 2),
        ("It was I. He knew.", 2),
        ("Es kostet z.B. zehn Euro. Das ist viel.", 2),
        ("Это г. Москва. Это большой город.", 2),
        ("¿Qué? ¡Nada!", 2),
        ("你好。世界。", 2),
        ("你好！！！真的？！", 2),
        ("他说：“你好。”她走了。", 2),
        ("第一行\n第二行\n\n第三行", 3),
        ("价格是3.5元。", 1),
        ("这是A.B.公司。", 1),
        ("これは本です。それはペンです。", 2),
        ("यह एक वाक्य है। यह दूसरा है! क्या?", 3),
        ("राम ने कहा \"हाँ।\" फिर गया।", 2),
    ],
)  # fmt: skip
def test_sentences_are_counted_by_script(text, sentences):
    assert count_sentences(text) == sentences


@given(st.text())
def test_counts_are_bounded_by_the_text(text):
    assert 0 <= count_sentences(text) <= max(1, len(text))
    assert 0 <= count_words(text) <= len(text)


@given(st.lists(st.sampled_from(["cat", "हिन्दी", "été", "мир", "x1"]), max_size=30))
def test_spaced_words_are_as_many_as_were_written(words):
    assert count_words(" ".join(words)) == len(words)


@given(st.text(alphabet="你好世界天地人", max_size=50))
def test_each_chinese_character_is_a_word(text):
    assert count_words(text) == len(text)


@given(st.lists(st.sampled_from(["cat", "dog", "हिन्दी", "été"]), min_size=1), st.sampled_from(["cat", "été"]))
def test_a_word_is_included_where_it_is_one_of_the_words(words, word):
    assert includes_word(" ".join(words), word) == (word in words)
    assert not includes_word("x".join(words) + "x", word) or word in words


@pytest.mark.slow
def test_a_long_text_is_counted_at_once():
    assert count_words("word " * 200_000) == 200_000
    assert count_sentences("A sentence. " * 50_000) == 50_000
    assert count_sentences("好。" * 100_000) == 100_000
    assert count_sentences("." * 100_000 + "x") == 1
    assert count_sentences("Z.B. " * 50_000) == 1
    assert count_sentences("." * 100_000) == 0 and count_sentences("a" * 100_000 + '"' * 100_000) == 1


def test_mixed_text_counts_as_its_prevailing_script():
    assert is_east_asian("我们用 Python 和 Java 写代码")
    assert not is_east_asian("The character 爱 means love in Chinese")
    assert not is_east_asian("") and not is_east_asian("한국어")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The children are playing in the garden behind the house.", "en"),
        ("THE CHILDREN ARE PLAYING IN THE GARDEN BEHIND THE HOUSE.", "en"),
        ("Les enfants jouent dans le jardin derrière la maison.", "fr"),
        ("Los niños juegan en el jardín detrás de la casa.", "es"),
        ("I bambini giocano nel giardino dietro la casa.", "it"),
        ("As crianças estão brincando no jardim atrás da casa.", "pt"),
        ("Дети играют в саду за домом.", "ru"),
        ("बच्चे घर के पीछे बगीचे में खेल रहे हैं।", "hi"),
        ("孩子们在玩。", "zh"),
        ("孩子們在屋後的花園裡玩耍。", "zh"),
        ("子供たちは家の裏の庭で遊んでいます。", "ja"),
        ("아이들이 집 뒤 정원에서 놀고 있습니다.", "ko"),
        ("123 + 456 = ?", None),
        ("", None),
    ],
)
def test_languages_are_detected(text, code):
    pytest.importorskip("langdetect")
    assert language_of(text) == code
    assert code is None or knows_language(code)


def test_every_language_of_the_detector_is_known():
    profiles = pytest.importorskip("langdetect").detector_factory.PROFILES_DIRECTORY
    codes = {path.split("-")[0] for path in os.listdir(profiles)}
    assert codes == instruction_text._CODES


def test_a_missing_detector_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(UserError, match=r"langdetect\n  pip install 'fastling\[eval\]'"):
        instruction_text.load_detector()
