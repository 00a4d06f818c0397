"""Sentences of phrasings: read, checked, and filled."""

import random
from collections import Counter

import pytest
import yaml

from fastling.errors import UserError
from fastling.interactive.languages import LANGUAGES, OTHER_LANGUAGES
from fastling.interactive.phrasings import FAULTS, FOREIGN, PLACEHOLDERS, VERDICTS, load_phrasings


def content(**changes) -> dict:
    """Phrasings that are good, but for the changes."""
    good = {
        key: [f"{key} " + " ".join(f"{{{hole}}}" for hole in sorted(holes))]
        for key, holes in PLACEHOLDERS.items()
    }
    good["foreign"] = {key: [f"abroad {good[key][0]}"] for key in FOREIGN}
    good |= {verdict: {fault: ["because of {span}"] for fault in FAULTS} for verdict in VERDICTS}
    good |= {
        "languages": {code: code.upper() for code in LANGUAGES + OTHER_LANGUAGES},
        "list_separator": ", ",
    }
    return good | changes


def load(folder, **changes):
    (folder / "en.yaml").write_text(yaml.safe_dump(content(**changes), allow_unicode=True), encoding="utf-8")
    return load_phrasings("en", folder, 1)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_phrasings_that_come_along_are_good(language):
    phrasings = load_phrasings(language)
    values = {"target": "de", "text": "T", "words": ["a", "b"], "draft": "D", "span": "S", "rendering": "R"}
    values |= {"item": "I", "wrong": "W", "right": "G", "first": "1", "second": "2"}
    for key in phrasings.lists:
        holes = PLACEHOLDERS.get(key.removeprefix("foreign."), {"span"})
        said = phrasings.say(random.Random(0), key, **{name: values[name] for name in holes})
        assert "{" not in said and "}" not in said


def test_a_conversation_stays_with_its_first_form_of_address(tmp_path):
    address = {"familiar": "du", "polite": "Sie"}
    keep = ["du {item}", "Sie {item}", "man {item}"]
    phrasings = load(tmp_path, address=address, translate=["du {text}"], keep=keep, no_change=["Sie"])
    for seed in range(30):
        said: set[str] = set()
        choose = random.Random(seed)
        phrasings.say(choose, "translate", said, text="T")
        assert phrasings.say(choose, "keep", said, item="I") in ("du I", "man I")
        assert phrasings.say(choose, "no_change", said) == "Sie"  # there is no other


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ({"familiar": "("}, "familiar is no pattern"),
        ({"rude": "x"}, "must be a mapping of familiar and polite"),
        ({"familiar": "keep", "polite": "item"}, "is both familiar and polite: keep_number"),
    ],
)
def test_an_address_that_cannot_be_told_is_refused(tmp_path, address, what):
    with pytest.raises(UserError, match=f"en.yaml: address: {what}"):
        load(tmp_path, address=address, keep_number=["keep_number item {item}"], keep=["this {item}"])


@pytest.mark.parametrize("language", ["de", "fr", "zh"])
def test_sentences_of_both_forms_of_address_are_known(language):
    counts = Counter(load_phrasings(language).addresses.values())
    assert min(counts["familiar"], counts["polite"]) >= 12


def test_holes_are_filled_and_languages_named(tmp_path):
    phrasings = load(tmp_path)
    said = {
        phrasings.say(random.Random(n), "translate", target="de", text="{braces} stay") for n in range(20)
    }
    assert said == {"translate DE {braces} stay", "abroad translate DE {braces} stay"}
    own = {phrasings.say(random.Random(n), "translate", target="en", text="T") for n in range(20)}
    assert own == {"translate EN T"}


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ('Use "{words}".', 'Use "a", "b".'),
        ("Use “{words}”!", "Use “a”, “b”!"),
        ("Mit « {words} ».", "Mit « a », « b »."),
        ("Use {words} only", "Use a, b only"),
    ],
)
def test_each_word_of_a_list_has_its_own_quotation_marks(tmp_path, sentence, said):
    phrasings = load(tmp_path, include_words=[sentence])
    assert phrasings.say(random.Random(0), "include_words", words=["a", "b"]) == said


def test_what_is_quoted_is_not_quoted_again(tmp_path):
    phrasings = load(tmp_path, next_sentence=['And "{text}"?', "And this? {text}"])
    said = {phrasings.say(random.Random(seed), "next_sentence", text='He said "no".') for seed in range(20)}
    assert said == {'And this? He said "no".'}
    plain = {phrasings.say(random.Random(seed), "next_sentence", text="It's no.") for seed in range(20)}
    assert len(plain) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"keep": None}, "en.yaml: keep: is no list of sentences"),
        ({"keep": ["{item}", ""]}, "en.yaml: keep: is no sentence: ''"),
        ({"keep": ["Leave it."]}, "en.yaml: keep: lacks {item}: Leave it."),
        ({"keep": ["{item} {text}"]}, "en.yaml: keep: has the unknown placeholder {text}: {item} {text}"),
        ({"keep": ["{item"]}, "en.yaml: keep: expected '}' before end of string: {item"),
        ({"keep": []}, "en.yaml: keep: has 0 different sentences; 1 are needed"),
        ({"foreign": None}, "en.yaml: foreign: is no mapping"),
        ({"foreign": {"translate": ["{text}"]}}, "en.yaml: foreign.correct_draft: is no list of sentences"),
        ({"first_better": []}, "en.yaml: first_better: is no mapping"),
        ({"first_better": {"order": ["{span}"]}}, "en.yaml: first_better.omission: is no list of sentences"),
        ({"languages": {"en": "English"}}, "en.yaml: languages: has no name for zh"),
        ({"languages": ["en"]}, "en.yaml: languages: is no mapping"),
        ({"list_separator": 1}, "en.yaml: list_separator: must be text: 1"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path, changes, said):
    with pytest.raises(UserError) as raised:
        load(tmp_path, **changes)
    assert str(raised.value).splitlines()[0] == f"{tmp_path}/{said}"


def test_a_file_that_is_no_yaml_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_phrasings("de", tmp_path, 1)
    (tmp_path / "fr.yaml").write_text("- a list", encoding="utf-8")
    with pytest.raises(UserError, match="holds no phrasings"):
        load_phrasings("fr", tmp_path, 1)
