"""The phrasings of each language: complete, well-formed, and no two of a list alike."""

import difflib
import functools
import itertools
import re
import string
import unicodedata
from pathlib import Path

import pytest
import yaml

from fastling.interactive.languages import OTHER_LANGUAGES
from fastling.interactive.phrasings import FOREIGN

FOLDER = Path(__file__).parents[2] / "fastling" / "interactive" / "phrasings"
LANGUAGES = ("en", "zh", "de", "fr")
FAULTS = ("omission", "addition", "number", "repetition", "order", "replacement", "punctuation", "case")

# Key: the placeholders of each of its strings, and how many strings there are at least.
LISTS = {
    "translate": ({"target", "text"}, 40),
    "next_sentence": ({"text"}, 22),
    "include_words": ({"words"}, 22),
    "keep": ({"item"}, 22),
    "keep_number": ({"item"}, 22),
    "correct_draft": ({"target", "text", "draft"}, 20),
    "wrong_span": ({"wrong"}, 22),
    "replace_span": ({"wrong", "right"}, 22),
    "which_better": ({"target", "text", "first", "second"}, 22),
    "continue_text": ({"text"}, 22),
    "switch_direction": ({"target", "text"}, 22),
    "switch_target": ({"target"}, 22),
    "which_words": ({"span"}, 22),
    "no_change": (set(), 22),
    "rendered_by": ({"span", "rendering"}, 22),
}
VERDICTS = {"first_better": ("1", "2"), "second_better": ("2", "1")}
VERDICTS_EACH = 6
SENTENCES = ("text", "draft", "first", "second")  # these bring their own final punctuation

EXAMPLES = {
    "en": ("The train is late.", "The train is late today.", "train"),
    "zh": ("火车晚点了。", "今天火车晚点了。", "火车"),
    "de": ("Der Zug hat Verspätung.", "Der Zug hat heute Verspätung.", "Zug"),
    "fr": ("Le train est en retard.", "Le train est en retard ce matin.", "train"),
}
QUOTES = {"en": "“”", "zh": "“”", "de": "„“", "fr": "«»"}
ANY_QUOTE = set("“”„«»‹›「」『』\"'’‘‚")


@functools.cache
def phrasings(language):
    return yaml.safe_load((FOLDER / f"{language}.yaml").read_text(encoding="utf-8"))


def lists_of(language):
    """Every list of strings of a file, as (name, placeholders, least count, strings)."""
    table = phrasings(language)
    for key, (placeholders, least) in LISTS.items():
        yield key, placeholders, least, table[key]
    for key, strings in table["foreign"].items():
        yield f"foreign.{key}", LISTS[key][0], 2, strings
    for key in VERDICTS:
        for fault in FAULTS:
            yield f"{key}.{fault}", {"span"}, VERDICTS_EACH, table[key][fault]


def strings_of(language):
    for name, placeholders, _, strings in lists_of(language):
        for phrase in strings:
            yield name, placeholders, phrase


def bare(phrase):
    """The phrase without its placeholders."""
    return re.sub(r"\{\w*\}", "", phrase)


def fill(language, placeholders, phrase, target="de"):
    sentence, other, word = EXAMPLES[language]
    values = dict.fromkeys(placeholders, word)
    values.update({name: other if name in ("draft", "second") else sentence for name in SENTENCES})
    values["target"] = phrasings(language)["languages"][target]
    return phrase.format(**{name: values[name] for name in placeholders})


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_file_has_all_keys_and_no_others(language):
    table = phrasings(language)
    assert set(table) - {"address"} == {"languages", "list_separator", "foreign", *LISTS, *VERDICTS}
    assert set(table["foreign"]) == set(FOREIGN)
    assert list(table["languages"]) == [*LANGUAGES, *OTHER_LANGUAGES]
    assert len(set(table["languages"].values())) == len(table["languages"])
    assert table["list_separator"] == ("、" if language == "zh" else ", ")
    for key in VERDICTS:
        assert set(table[key]) == set(FAULTS)


def test_there_is_one_file_for_each_language():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_list_is_long_enough(language):
    for name, _, least, strings in lists_of(language):
        assert isinstance(strings, list) and all(isinstance(phrase, str) for phrase in strings), name
        assert len(strings) >= least, name


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_string_has_exactly_the_placeholders_of_its_key(language):
    for name, placeholders, phrase in strings_of(language):
        fields = [field for field in string.Formatter().parse(phrase) if field[1] is not None]
        assert sorted(field[1] for field in fields) == sorted(placeholders), (name, phrase)
        assert all(not field[2] and not field[3] for field in fields), (name, phrase)


@pytest.mark.parametrize("language", LANGUAGES)
def test_nobody_asks_the_assistant_about_a_draft_as_if_it_had_written_it(language):
    """The draft is the user's, or another person's."""
    its_own = re.compile(
        r"\b[Yy]ou (wrote|have “)|\byou sure\b|[你您](写的|确定)|\bSie haben\b|bei Ihnen|Sie sich|du hast|"
        r"\b[Vv]ous avez\b|vous sûr|tu as\b"
    )
    for key in ("wrong_span", "replace_span"):
        assert not [phrase for phrase in phrasings(language)[key] if its_own.search(phrase)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_string_stands_twice_in_a_file(language):
    seen = {}
    for name, _, phrase in strings_of(language):
        # Case, punctuation and spaces set aside; the names of the placeholders stay.
        key = re.sub(r"[\W_]", "", phrase.casefold())
        assert key not in seen, (name, phrase, seen[key])
        seen[key] = (name, phrase)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_strings_of_a_list_are_nearly_the_same(language):
    for name, _, _, strings in lists_of(language):
        for one, two in itertools.combinations(strings, 2):
            matcher = difflib.SequenceMatcher(None, one, two, autojunk=False)
            if matcher.real_quick_ratio() > 0.9 and matcher.quick_ratio() > 0.9:  # both are upper bounds
                assert matcher.ratio() <= 0.9, (name, one, two)


@pytest.mark.parametrize("language", LANGUAGES)
def test_strings_are_written_in_their_language(language):
    table = phrasings(language)
    own = "CJK UNIFIED" if language == "zh" else "LATIN"
    for text in [*(bare(phrase) for _, _, phrase in strings_of(language)), *table["languages"].values()]:
        letters = [character for character in text if character.isalpha()]
        assert all(unicodedata.name(letter).startswith(own) for letter in letters), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_spaces_are_in_order(language):
    for name, _, phrase in strings_of(language):
        assert not re.search(r"[ \u00a0]{2}| \n|\n |\n{3}|\t", phrase), (name, phrase)
        assert phrase == phrase.strip(), (name, phrase)
        if language == "fr":  # a no-break space within « » and before : ; ? !
            marks = re.sub(r"(?<=\d)\)", "", phrase)
            assert not re.search(r"«(?!\u00a0)|(?<!\u00a0)[»:;?!]", marks), (name, phrase)
        else:
            assert "\u00a0" not in phrase, (name, phrase)
        if language in ("en", "de"):
            assert not re.search(r"\s[,.:;?!]", phrase), (name, phrase)
        if language == "zh":  # full-width punctuation
            assert not re.search(r"[,:;?!()]", phrase), (name, phrase)


@pytest.mark.parametrize("language", LANGUAGES)
def test_quotes_are_balanced_and_those_of_the_language(language):
    opening, closing = QUOTES[language]
    allowed = {*QUOTES[language], "’"} if language != "zh" else set(QUOTES[language])
    for name, _, phrase in strings_of(language):
        straight = language == "en" and not set(QUOTES["en"]) & set(phrase)
        marks = [character for character in phrase if character in ANY_QUOTE]
        assert set(marks) <= ({'"', "'"} if straight else allowed), (name, phrase)
        assert marks.count('"') % 2 == 0, (name, phrase)
        pairs = "".join(mark for mark in marks if mark in (opening, closing))
        assert pairs == (opening + closing) * (len(pairs) // 2), (name, phrase)


@pytest.mark.parametrize("language", LANGUAGES)
def test_short_placeholders_are_quoted(language):
    opening, closing = QUOTES[language]
    for name, placeholders, phrase in strings_of(language):
        for placeholder in placeholders - {"target", *SENTENCES}:
            pattern = rf"(\"|{opening}\u00a0?)\{{{placeholder}\}}(\"|\u00a0?{closing})"
            assert re.search(pattern, phrase), (name, phrase)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_is_not_followed_by_more_punctuation(language):
    # The sentence ends with its own full stop: none may follow, nor after its closing quotation mark.
    quoted = "|".join(re.escape("{" + name + "}") for name in SENTENCES)
    for name, _, phrase in strings_of(language):
        assert not re.search(rf"(?:{quoted})[\s\"”“»]*[.,;:!?。，；：！？、]", phrase), (name, phrase)


@pytest.mark.parametrize("language", LANGUAGES)
def test_filled_strings_have_no_braces_and_no_doubled_punctuation(language):
    for target in LANGUAGES:
        for name, placeholders, phrase in strings_of(language):
            filled = fill(language, placeholders, phrase, target)
            assert not re.search(r"[{}]", filled), (name, filled)
            assert not re.search(r"[.,;:!?。，；：！？、][\s\"”“»]?[.,;:!?。，；：！？、]", filled), (
                name,
                filled,
            )


@pytest.mark.parametrize("language", LANGUAGES)
def test_which_better_labels_the_first_1_and_the_second_2(language):
    for phrase in phrasings(language)["which_better"]:
        one, two = phrase.index("{first}"), phrase.index("{second}")
        assert one < two, phrase
        assert "1" in phrase[max(0, one - 8) : one], phrase
        assert "2" in phrase[max(one, two - 8) : two], phrase


@pytest.mark.parametrize("language", LANGUAGES)
def test_verdicts_name_both_and_mirror_each_other(language):
    table = phrasings(language)
    for fault in FAULTS:
        swapped = [phrase.translate(str.maketrans("12", "21")) for phrase in table["first_better"][fault]]
        assert swapped == table["second_better"][fault]
        for phrase in table["first_better"][fault]:
            assert re.findall(r"\d", phrase).count("1") == 1, phrase
            assert re.findall(r"\d", phrase).count("2") == 1, phrase


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_are_one_sentence(language):
    for name, _, phrase in strings_of(language):
        if name.split(".")[0] in ("no_change", "rendered_by", *VERDICTS):
            assert len(re.findall(r"[.!?。！？]", bare(phrase))) <= 1, (name, phrase)


@pytest.mark.parametrize("language", LANGUAGES)
def test_both_forms_of_address_occur(language):
    forms = {
        "en": (r"\b[Yy]ou\b", r"\b[Pp]lease\b"),
        "zh": ("你", "您"),
        "de": (r"\b(?:du|dir|dein\w*)\b", r"\b(?:Sie|Ihnen|Ihr\w*)\b"),
        "fr": (r"\b(?:tu|te|ta|ton|toi)\b", r"\b(?:vous|votre|vos)\b"),
    }
    everything = "\n".join(phrase for _, _, phrase in strings_of(language))
    for form in forms[language]:
        assert len(re.findall(form, everything)) >= 10, form


OF_A_LEARNER = {
    "en": r"(?:my|taking) \{target\}|only reads \{target\}",
    "zh": r"我的?(?:在学|自己的)?\{target\}(?:不够|没把握)|我在学\{target\}|老师说我的\{target\}|只看得懂\{target\}",
    "de": r"[Mm]ein(?:em)? \{target\}|lerne gerade \{target\}|spricht nur \{target\}",
    "fr": r"mon \{target\}|des cours|débrouille",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_nobody_calls_the_language_that_they_write_foreign(language):
    found = [
        name
        for name, _, phrase in strings_of(language)
        if name.split(".")[-1] in FOREIGN and re.search(OF_A_LEARNER[language], phrase)
    ]
    assert found and all(name.startswith("foreign.") for name in found)


NEVER_SAID = {
    # Whose draft it is, where no fault is found: it may be a colleague's.
    "no_change": {
        "en": r"\b[Yy]our\b|\b[Yy]ou (?:got|wrote)|Well done",
        "zh": "您的|你的|你写|你第",
        "de": r"\b(?:dein|Ihr)e?\b|[Gg]ut gemacht",
        "fr": r"\b[Vv]otre\b|\b[Tt]a\b|tu l’as|Bravo",
    },
    # "The same again": the last may have been asked for with words that are not in the next one.
    "next_sentence": {
        "en": r"\b[Ss]ame (?!language)",
        "zh": "同样|照样|一样",
        "de": r"\b(?:[Gg]leiche\b(?! Sprache)|[Gg]enauso|hiermit\b)",
        "fr": r"[Mm]ême chose|autant",
    },
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("key", NEVER_SAID)
def test_phrasings_say_nothing_that_is_untrue_of_some_dialogues(language, key):
    never = NEVER_SAID[key][language]
    assert not [each for each in phrasings(language)[key] if re.search(never, each)]
