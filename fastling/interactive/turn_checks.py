"""Checks a turn that a model wrote: the right languages, and only a translation, of this text."""

import re
from dataclasses import dataclass

from fastling.interactive.languages import is_chinese, is_stop_word, reads_as, tokens
from fastling.remote import Message

LENGTH_RATIO = (0.3, 3.0)
"""Bounds of an answer's length over that of the answer before it, unless the user asks for a length."""
LEAST_IN_COMMON = 0.15
"""Least share of an answer's pieces that an earlier version also has; with less, its topic is another."""


def _any(*parts: str) -> re.Pattern[str]:
    """A pattern of alternatives that ignores case."""
    return re.compile("|".join(parts), re.IGNORECASE)


_ROLE = _any(r"(?:user|request|assistant|用户|nutzer|benutzer|utilisateur)\s*[:：]")
# What a model may say to its user at the beginning of what should be only a translation.
_ENGLISH = (
    r"(?:sure|certainly|of course|as an ai|as a language model|sorry|here(?: is|['’]s| are))\b",
    r"i(?:['’]m| am) (?:very |so )?(?:sorry|unable|not able)\b|i can(?:no|['’])t\b",
    r"(?:the |new |revised )*(?:translation|answer|assistant|response)\s*:",
)
_CHINESE = (
    "好的[，,！!]|当然|以下是|这是(?:修改|新)|很?抱歉|对不起|我(?:无法|不能)",
    r"作为(?:一个|一名)?(?:AI|人工智能|语言模型)|(?:新的?|修改后的?)?(?:译文|翻译|回答)\s*[:：]",
)
_GERMAN = (
    r"gerne[,!.]|natürlich[,!]|hier (?:ist|sind)\b|(?:es )?tut mir leid|leider kann ich|als ki\b",
    r"ich kann (?:das |dies )?(?:leider )?nicht\b|(?:die |neue )*(?:übersetzung|antwort)\s*:",
)
_FRENCH = (
    r"bien sûr|voici\b|(?:je suis )?désolée?\b|je ne peux pas\b|en tant qu['’]ia\b",
    r"(?:la |nouvelle )*(?:traduction|réponse)\s*:",
)
_OPENING = re.compile(rf"\W*(?:{'|'.join((*_ENGLISH, *_CHINESE, *_GERMAN, *_FRENCH))})", re.IGNORECASE)
_MARKDOWN = re.compile(r"\*\*|__|```|^#")
_QUOTES = "\"'“”„«»「」‘’"
# For requests for a length: what is counted, what asks for no upper bound, and what means one less.
_UNIT = _any(
    r"\d+\s*(?:%|％|(?:words?|characters?|letters?|percent)\b|个?[字词]|prozent|wört|worte|zeichen|buchstaben)",
    r"\d+\s*(?:mots?|caractères?|signes?|lettres?|pour cent)\b",
)
_CHARACTERS = _any("character|letter", "字符|字母", "zeichen|buchstabe", "caractère|signes|lettres")
_NOT_MORE = _any(
    "(?:no|not) (?:more|longer) than|nicht (?:mehr|länger) als|pas plus (?:de|long)",
    "(?:不要|不得|不能|不|别|勿)(?:超过|多于|长于)",
)
_NO_BOUND = _any(
    "at least|more than|longer|minimum|no (?:fewer|less)|exactly|sentence|percent|%|％",
    "至少|不少于|最少|以上|超过|多于|更长|正好|百分|句",
    "mindestens|mehr als|länger|nicht weniger|genau|sätze|prozent",
    "au moins|plus de|plus long|exactement|phrases|pour cent",
)
_BELOW = _any(
    r"(?:fewer|less) than|\b(?:under|below|unter)\b|(?:weniger|kürzer) als|moins de",
    "少于|不到|小于|低于|短于",
)


class Rejected(Exception):
    """A turn that is not kept. The message is the reason under which it is counted."""


@dataclass(frozen=True)
class Seed:
    """What a dialogue begins with: a request for a translation, its answer, and where they come from."""

    number: int
    source: str
    translation: str
    source_lang: str
    target_lang: str
    user_lang: str
    request: str  # the first turn of the user
    provenance: dict


def check_turn(written: dict, kind: str, start: Seed, messages: list[Message]) -> None:
    """Raise Rejected unless a turn is in the right languages, new, and only a translation of this text."""
    request, answer, before = written["request"], written["answer"], messages[-1]["content"]
    if not _plain(request):
        raise Rejected("request without words")
    if not reads_as(request, start.user_lang, _other(start, start.user_lang)):
        raise Rejected("request in another language")
    if not reads_as(answer, start.target_lang, start.source_lang):
        raise Rejected("answer in another language")
    if _ROLE.match(request):
        raise Rejected("request begins with a role")
    if _says_more(answer.strip(), start):
        raise Rejected("answer is no translation alone")
    earlier = {_plain(message["content"]) for message in messages} | {_plain(start.source)}
    if _plain(answer) in earlier:
        raise Rejected("answer is a copy")
    if _plain(answer) in _plain(request):
        raise Rejected("request holds the answer")
    known = [start.source, request, *(message["content"] for message in messages)]
    if not _numbers(answer) <= set().union(*map(_numbers, known)):
        raise Rejected("answer has a number of its own")
    texts = [message["content"] for message in messages if message["role"] == "assistant"]
    if max(_in_common(answer, text, start.target_lang) for text in texts) < LEAST_IN_COMMON:
        raise Rejected("answer speaks of something else")
    ratio = _length(answer, start.target_lang) / max(1, _length(before, start.target_lang))
    if kind != "length" and not LENGTH_RATIO[0] <= ratio <= LENGTH_RATIO[1]:
        raise Rejected("answer far shorter or longer")
    if kind == "length" or _UNIT.search(request):
        _check_length(written, start.target_lang)


def _says_more(answer: str, start: Seed) -> bool:
    """Whether an answer has more than a translation: a refusal, a word to the user, quotation marks,
    Markdown, or the source. What the seed's translation also has does not count."""
    first = start.translation
    if _OPENING.match(answer) and not _OPENING.match(first):
        return True
    if _MARKDOWN.search(answer) and not _MARKDOWN.search(first):
        return True
    if answer[0] in _QUOTES and answer[-1] in _QUOTES and first[0] not in _QUOTES:
        return True
    return start.target_lang not in ("zh", "ja", "ko") and is_chinese(answer) and not is_chinese(first)


def _numbers(text: str) -> set[str]:
    """The numbers of two or more digits, as digits alone, so that 1,000 and 1.000 are the same."""
    digits = (re.sub(r"\D", "", match) for match in re.findall(r"\d+(?:[.,\s]\d{3})*", text))
    return {number for number in digits if len(number) > 1}


def _in_common(text: str, other: str, language: str) -> float:
    """Share of a text's pieces that are in the other one, too; 1.0 if either has none.

    Pieces are pairs of Chinese characters, or the first four letters of each word that is no function word.
    """
    one, two = (_pieces(each, language) for each in (text, other))
    return len(one & two) / len(one) if one and two else 1.0


def _pieces(text: str, language: str) -> set[str]:
    if language == "zh":
        plain = _plain(text)
        return {plain[at : at + 2] for at in range(len(plain) - 1)}
    words = (word.text.casefold() for word in tokens(text, language))
    return {word[:4] for word in words if not is_stop_word(word, language)}


def _check_length(written: dict, language: str) -> None:
    """Raise Rejected unless the answer keeps to the length that the request asks for by its only number."""
    request, answer = written["request"], written["answer"]
    numbers = [int(number) for number in re.findall(r"\d{1,9}", request)]  # a longer one counts as several
    if len(numbers) != 1 or _NO_BOUND.search(_NOT_MORE.sub("", request)):
        raise Rejected("no one bound of length in the request")
    bound = numbers[0] - bool(_BELOW.search(request))
    characters = language != "zh" and _CHARACTERS.search(request)
    if (len(answer) if characters else _length(answer, language)) > bound:
        raise Rejected("bound of length not met")


def _length(text: str, language: str) -> int:
    """Words; of Chinese, characters."""
    return sum(len(token.text) if language == "zh" else 1 for token in tokens(text))


def _plain(text: str) -> str:
    """A text without punctuation, spaces and case, by which copies are recognised."""
    return re.sub(r"[\W_]+", "", text).casefold()


def _other(start: Seed, language: str) -> str:
    return start.target_lang if language == start.source_lang else start.source_lang
