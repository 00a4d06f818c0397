"""French as a language of the corpus: elisions, no-break spaces, guillemets, numbers."""

import random

import pytest
from interactive.parallel_text import knowledge_of, pairs_of

from fastling.interactive import gates
from fastling.interactive.constraints import items_to_keep, renderings
from fastling.interactive.drafts import MAKERS, Draft, Sentence, make_draft
from fastling.interactive.exclusion import Exclusion
from fastling.interactive.languages import reads_as, tidy, tokens
from fastling.interactive.pairs import Direction, Pair
from fastling.interactive.rules import directed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("L’école d'été qu’il aime", ["L", "école", "d", "été", "qu", "il", "aime"]),
        ("jusqu’à aujourd’hui, presqu’île", ["jusqu", "à", "aujourd’hui", "presqu’île"]),
        ("quelqu'un s’est-il levé ?", ["quelqu'un", "s", "est-il", "levé"]),
        ("1\u202f234,5 euros et 12 000\u00a0000 francs", ["1\u202f234,5", "euros", "et", "12 000\u00a0000", "francs"]),
        ("en 2012 150 élèves, à 8:30", ["en", "2012", "150", "élèves", "à", "8:30"]),
    ],
)  # fmt: skip
def test_words_of_french(text, words):
    found = tokens(text, "fr")
    assert [word.text for word in found] == words
    assert all(text[word.start : word.end] == word.text for word in found)


def test_elided_words_of_other_languages_stay_whole():
    assert [word.text for word in tokens("l’école 1 234", "en")] == ["l’école", "1", "234"]


@pytest.mark.parametrize(
    ("text", "language", "tidied"),
    [
        ("«\u202fOui\u202f», dit-il\u00a0; 1\u202f234,5\u00a0€ ", "fr", "«\u202fOui\u202f», dit-il\u00a0; 1\u202f234,5\u00a0€"),
        ("Quoi \u00a0? Le  chat", "fr", "Quoi\u00a0? Le chat"),
        ("10\u00a0Euro", "de", "10 Euro"),
    ],
)  # fmt: skip
def test_no_break_spaces_are_kept_where_french_has_them(text, language, tidied):
    assert tidy(text, language) == tidied


def test_french_is_told_from_the_others():
    text = "L’été dernier, qu’on a passé à l’étranger, n’était pas aussi chaud que cela."
    assert reads_as(text, "fr", "en") and not reads_as(text, "en", "fr") and not reads_as(text, "de", "fr")


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), [("fr", "en"), ("fr", "zh"), ("de", "fr")])
def test_nouns_after_an_elided_article_find_their_translations(source, target):
    knowledge = knowledge_of(source, target)
    pairs = directed(knowledge.corpus, pairs_of(source, target)[:300], source)
    found = {link for pair in pairs for link in renderings(pair, knowledge)}
    words = {"en": ("school", "lawyer"), "zh": ("学校", "律师"), "de": ("Schule", "Anwalt")}
    french = [("école", words[source if target == "fr" else target][0])]
    french.append(("avocat", words[source if target == "fr" else target][1]))
    assert {link[::-1] if target == "fr" else link for link in found} >= set(french)
    of_french = {link[target == "fr"] for link in found}
    assert not any("’" in word and word != "aujourd’hui" for word in of_french)


@pytest.mark.parametrize(
    ("french", "other", "items"),
    [
        ("Hier, M. Dupont a vu Rome.", "Mr. Dupont saw Rome yesterday.", ["Dupont", "Rome"]),
        ("Mme Anne Weber a payé 1\u202f234,5 euros.", "Ms Anne Weber paid 1,234.5 euros.", ["Anne Weber"]),
        ("Il y a 12 345 élèves et 42 classes.", "There are 12,345 pupils and 42 classes.", ["42"]),
        ("Elle vient d’Anvers et d’Ostende.", "She comes from Antwerp and Ostende.", ["Ostende"]),
    ],
)
def test_what_french_has_in_common_with_english_can_be_kept(french, other, items):
    assert items_to_keep(Direction(1, "fr", "en", french, other)) == items


def test_a_number_with_spaces_is_one_number():
    knowledge = knowledge_of("fr", "en")
    pair = Direction(
        1, "en", "fr", "It cost 1,234.5 euros in all.", "Cela a coûté 1\u202f234,5 euros en tout."
    )
    start, wrong, right = MAKERS["number"].make(Sentence(pair, knowledge, random.Random(0)))
    assert right == "1\u202f234,5" and len(wrong) == len(right) and pair.reference.index(right) == start
    assert Draft("number", pair.reference, start, wrong, right).text != pair.reference


def test_no_draft_tears_an_elided_word_off():
    knowledge, choose = knowledge_of("en", "fr"), random.Random(3)
    for pair in directed(knowledge.corpus, pairs_of("en", "fr")[:200], "en"):
        draft = make_draft(pair, knowledge, choose)
        before, after = draft.reference[: draft.start], draft.reference[draft.start + len(draft.right) :]
        assert not before.endswith("’") and not after.startswith("’")


@pytest.mark.parametrize(
    ("french", "reason"),
    [
        ("Il a dit\u00a0: «\u202fL’an dernier était bon.\u202f»", None),
        ("Il a dit\u00a0: «\u202fL’an dernier était bon.", "unfinished"),
        ("L’an dernier était bon pour nous\u00a0;", "unfinished"),
    ],
)
def test_guillemets_are_closed(french, reason):
    pair = Pair(1, french, "He said that last year was good.")
    assert gates.check_pair(pair, knowledge_of("fr", "en"), Exclusion()) == reason
