"""The 25 checks of Multi-IF: whether a response follows an instruction, by rules alone.

Each check is our own code for what IFEval (Zhou et al. 2023) and Multi-IF (He et al. 2024) define. Where
their published code depends on chance, or fails in a language of the benchmark, this follows the words of the
instruction instead:

- letter_frequency counts any letter or sign; the published code takes a random letter for one not a to z.
- response_language and the English checks use a seeded detector, on lower case, and zh is zh-cn and zh-tw.
- number_words and number_sentences recognise Chinese and Japanese by their characters, not by a detector.
  Vowel signs do not split words, "3.5" does not split a sentence, and a closing quotation mark is no sentence
  by itself. English sentences are split by rules, not by a trained model (punkt).
- forbidden_words finds Chinese, Japanese, Thai and Hindi words, which `\\b` cannot.
- keywords and section marks are taken literally, not as regular expressions.
- no_comma also finds the commas ， ﹐ ، and, in Japanese, 、.
- nth_paragraph_first_word does not number empty paragraphs, and finds first words that no space follows.
- number_bullet_lists does not count lines of hyphens (---); quotation also accepts « », „ “ and 『 』, and
  end_checker ignores closing quotation marks of several languages.
- number_highlighted_sections counts ***both*** once.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from fastling.evaluation.characters import KANA
from fastling.evaluation.instruction_text import (
    base_language,
    count_sentences,
    count_words,
    includes_word,
    knows_language,
    language_of,
)

RELATIONS: Mapping[str, Callable[[int, int], bool]] = {
    "less than": int.__lt__,
    "at least": int.__ge__,
}
DISABLED = frozenset(
    {
        "keywords:key_sentences",
        "detectable_content:rephrase_paragraph",
        "detectable_format:rephrase",
        "multi-turn:constrained_start",
    }
)
"""Instructions that the benchmark contains but does not score."""


class Check(NamedTuple):
    """A function that tells whether a response follows an instruction, and the readers of its arguments."""

    holds: Callable[..., bool]
    readers: Mapping[str, Callable[[Any], Any]]
    """Name of an argument -> function that reads its value, and raises ValueError for a wrong one."""


CHECKS: dict[str, Check] = {}
"""Instruction id, as in the benchmark's columns -> its check."""


def _check(name: str, **readers: Callable[[Any], Any]) -> Callable:
    def register(holds: Callable[..., bool]) -> Callable[..., bool]:
        CHECKS[name] = Check(holds, readers)
        return holds

    return register


def make_check(name: str, arguments: Mapping[str, Any]) -> Callable[[str], bool]:
    """A function that tells if a response follows the instruction `name` with these arguments.

    Arguments that are None count as absent: some files have a column for each. Raises ValueError for an
    unknown id, and for arguments that do not fit.
    """
    if name not in CHECKS:
        raise ValueError(f"unknown instruction: {name!r:.80}")
    holds, readers = CHECKS[name]
    given = {key: value for key, value in arguments.items() if value is not None}
    if given.keys() != readers.keys():
        wrong = sorted(given.keys() ^ readers.keys())
        takes = ", ".join(readers) or "no arguments"
        raise ValueError(f"{name} takes {takes}; wrong or missing: {wrong[0]:.80}")
    return partial(holds, **{key: read(given[key]) for key, read in readers.items()})


# Arguments ------------------------------------------------------------------------------------------


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1 or value < 0:
        raise ValueError(f"{value!r:.80} is no whole number")
    return int(value)


def _relation(value: Any) -> Callable[[int, int], bool]:
    if not isinstance(value, str) or value not in RELATIONS:
        raise ValueError(f"{value!r:.80} is no relation; they are: {', '.join(RELATIONS)}")
    return RELATIONS[value]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r:.80} is no text")
    return unicodedata.normalize("NFC", value.strip())


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r:.80} is no list of texts")
    return [_text(each) for each in value]


def _language(value: Any) -> str:
    if not knows_language(_text(value)):
        raise ValueError(f"{value!r:.80} is no language that can be told")
    return base_language(value.strip())


# Words ----------------------------------------------------------------------------------------------


@_check("keywords:existence", keywords=_texts)
def has_keywords(response: str, keywords: list[str]) -> bool:
    """Whether all keywords occur, anywhere and in any letter case."""
    return all(_occurrences(keyword, response) for keyword in keywords)


@_check("keywords:frequency", keyword=_text, frequency=_number, relation=_relation)
def has_keyword_often(response: str, keyword: str, frequency: int, relation: Callable) -> bool:
    return relation(_occurrences(keyword, response), frequency)


@_check("keywords:forbidden_words", forbidden_words=_texts)
def lacks_words(response: str, forbidden_words: list[str]) -> bool:
    """Whether none of them occurs as a whole word, in any letter case."""
    return not any(includes_word(response, word) for word in forbidden_words)


@_check("keywords:letter_frequency", letter=_text, let_frequency=_number, let_relation=_relation)
def has_letter_often(response: str, letter: str, let_frequency: int, let_relation: Callable) -> bool:
    return let_relation(response.lower().count(letter.lower()), let_frequency)


def _occurrences(words: str, response: str) -> int:
    return len(re.findall(re.escape(words), response, re.IGNORECASE))


# Language and letters -------------------------------------------------------------------------------


@_check("language:response_language", language=_language)
def is_in_language(response: str, language: str) -> bool:
    """Whether a response is in a language. One without letters passes, as in the benchmark."""
    return language_of(response) in (language, None)


@_check("change_case:english_capital")
def is_english_in_capitals(response: str) -> bool:
    return response.isupper() and is_in_language(response, "en")


@_check("change_case:english_lowercase")
def is_english_in_small_letters(response: str) -> bool:
    return response.islower() and is_in_language(response, "en")


@_check("change_case:capital_word_frequency", capital_frequency=_number, capital_relation=_relation)
def has_capital_words(response: str, capital_frequency: int, capital_relation: Callable) -> bool:
    """Counts words in capitals, "I" among them; hyphens and apostrophes do not split words."""
    words = re.findall(r"\w+(?:[-'’.&]\w+)*", response)
    return capital_relation(sum(word.isupper() for word in words), capital_frequency)


@_check("punctuation:no_comma")
def lacks_commas(response: str) -> bool:
    japanese = re.search(f"[{KANA}]", response)
    return not re.search("[,，﹐،、]" if japanese else "[,，﹐،]", response)


# Length ---------------------------------------------------------------------------------------------


@_check("length_constraints:number_words", num_words=_number, relation=_relation)
def has_length_in_words(response: str, num_words: int, relation: Callable) -> bool:
    return relation(count_words(response), num_words)


@_check("length_constraints:number_sentences", num_sentences=_number, relation=_relation)
def has_length_in_sentences(response: str, num_sentences: int, relation: Callable) -> bool:
    return relation(count_sentences(response), num_sentences)


@_check("length_constraints:number_paragraphs", num_paragraphs=_number)
def has_paragraphs(response: str, num_paragraphs: int) -> bool:
    """Whether exactly `num_paragraphs` are separated by ***, which may also begin or end the response."""
    return _count_parts(response, "***") == num_paragraphs


@_check(
    "length_constraints:nth_paragraph_first_word",
    num_paragraphs=_number,
    nth_paragraph=_number,
    first_word=_text,
)
def has_first_word(response: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Whether exactly `num_paragraphs` are separated by empty lines, and the nth begins with the word."""
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", response) if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    opening = paragraphs[nth_paragraph - 1].lstrip("'\"“”‘„«「『")[: len(first_word) + 1]
    return opening.lower().startswith(first_word.lower()) and includes_word(opening, first_word)


def _count_parts(response: str, divider: str) -> int | None:
    """Number of texts with a divider between them; None if there is no text between two dividers."""
    parts = [part.strip() for part in response.split(divider)]
    inner = parts[1:-1]
    return sum(map(bool, parts)) if all(inner) else None


# Form -----------------------------------------------------------------------------------------------


@_check("detectable_content:number_placeholders", num_placeholders=_number)
def has_placeholders(response: str, num_placeholders: int) -> bool:
    """Whether there are at least `num_placeholders` like [address], each on one line."""
    return len(re.findall(r"\[[^\[\]\n]*\]", response)) >= num_placeholders


@_check("detectable_content:postscript", postscript_marker=_text)
def has_postscript(response: str, postscript_marker: str) -> bool:
    """Whether its mark occurs, in any letter case; a space may follow each full stop in the mark."""
    marker = r"\.\s?".join(map(re.escape, postscript_marker.rstrip(".").split(".")))
    stop = r"\." if postscript_marker.endswith(".") else ""
    return re.search(rf"(?<!\w){marker}{stop}", response, re.IGNORECASE) is not None


@_check("detectable_format:number_bullet_lists", num_bullets=_number)
def has_bullets(response: str, num_bullets: int) -> bool:
    """Whether exactly `num_bullets` lines begin with one asterisk, or with a hyphen (but not ---)."""
    lines = [line.strip() for line in response.splitlines()]
    stars = [line for line in lines if re.match(r"\*[^*]", line)]
    hyphens = [line for line in lines if line.startswith("-") and not re.fullmatch(r"(-\s*){3,}", line)]
    return len(stars) + len(hyphens) == num_bullets


@_check("detectable_format:constrained_response")
def is_one_of_the_answers(response: str) -> bool:
    """Whether one of the fixed answers occurs. The benchmark has them in English for every language."""
    return any(f"My answer is {answer}." in response for answer in ("yes", "no", "maybe"))


@_check("detectable_format:number_highlighted_sections", num_highlights=_number)
def has_highlights(response: str, num_highlights: int) -> bool:
    """Whether at least `num_highlights` parts of lines are in single or double asterisks."""
    found = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", response)
    return sum(bool("".join(texts).strip()) for texts in found) >= num_highlights


@_check("detectable_format:multiple_sections", section_spliter=_text, num_sections=_number)
def has_sections(response: str, section_spliter: str, num_sections: int) -> bool:
    """Whether at least `num_sections` marks like Section 1 occur, in the letter case of `section_spliter`."""
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", response)) >= num_sections


@_check("detectable_format:json_format")
def is_json(response: str) -> bool:
    """Whether the whole response is JSON, perhaps in a fence of three backticks."""
    text = re.sub(r"^```(?:json)?|```$", "", response.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@_check("detectable_format:title")
def has_title(response: str) -> bool:
    """Whether there are words in double angle brackets on one line."""
    lines = response.split("\n")
    return any(line[line.find("<<") : line.rfind(">>") + 2].strip("<> \t") for line in lines if "<<" in line)


@_check("combination:two_responses")
def is_two_responses(response: str) -> bool:
    """Whether there are two responses that differ, with six asterisks between them."""
    parts = [part.strip() for part in response.split("******") if part.strip()]
    return _count_parts(response, "******") == 2 and parts[0] != parts[1]


@_check("combination:repeat_prompt", prompt_to_repeat=_text)
def repeats_prompt(response: str, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.lower())


@_check("startend:end_checker", end_phrase=_text)
def ends_with(response: str, end_phrase: str) -> bool:
    """Whether a response ends with a phrase, in any letter case; closing quotation marks are ignored."""
    text, phrase = response.strip().lower(), end_phrase.lower()
    return text.endswith(phrase) or text.rstrip('"“”»」』').endswith(phrase)


@_check("startend:quotation")
def is_quoted(response: str) -> bool:
    """Whether the whole response is in double quotation marks of any of the languages."""
    text = response.strip()
    return len(text) > 1 and text[0] + text[-1] in ('""', "“”", "„“", "„”", "«»", "「」", "『』")
