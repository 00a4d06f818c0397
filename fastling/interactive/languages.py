"""Facts about the languages that are needed to tidy their text, split it into words, and tell them apart."""

import html
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from fastling.errors import UserError

LANGUAGES = ("en", "zh", "de", "fr")
"""Languages that users write in: they have phrasings, stop words, and rules of their own."""
OTHER_LANGUAGES = tuple(
    "ar bg bn ca cs da el es et fa fi he hi hr hu id is it ja kk ko lt lv mn ms nl no pl pt ro ru sk sl sr "
    "sv sw ta tr uk ur vi".split()
)
"""Languages that can be translated from and into, with a name in each file of phrasings."""
CASELESS = frozenset("ar bn fa he hi ja ko ta ur zh".split())
"""Languages without capital letters."""
NOT_LATIN = CASELESS | {"bg", "el", "ru", "uk"}
EITHER_SCRIPT = frozenset({"kk", "mn", "sr"})
"""Languages that are not written in Latin letters, and those that are written in either script."""
WORDLESS = CASELESS - {"zh"} | {"vi"}
"""Languages whose words are not simply the letters between two spaces: nothing is asked about their words."""

STOP_WORDS = {
    "en": (
        "a about after against all also although among an and any are as at be because been before being "
        "between both but by can could did do does down during each else even ever every few for from had "
        "has have he her here hers him his how however i if in into is it its itself just like made make "
        "many may me might more most much must my no nor not now of off on once one only onto or other "
        "our out over own per said same say says she should since so some such than that the their them "
        "then there these they this those though through thus to too two under until up upon us very via "
        "told was we well were what when where which while who whom whose why will with within without would "
        "yet you your"
    ),
    "de": (
        "ab aber alle allem allen aller alles als also am an ander andere anderen anderer anderes auch "
        "auf aus bei beim bin bis bist da dabei dadurch damit dann das dass daß davon dazu dem den denen "
        "denn der deren des dessen die dies diese diesem diesen dieser dieses doch dort du durch ein eine "
        "einem einen einer eines er es etwa etwas euch für gegen gibt hab habe haben hat hatte hatten "
        "hier ich ihm ihn ihnen ihr ihre ihrem ihren ihrer im immer in ins ist ja jede jedem jeden jeder "
        "jedes jedoch kann kein keine keinen können könnte konnte man mehr mein meine mich mir mit muss "
        "müssen nach nicht nichts noch nun nur ob oder ohne sagt sagte sagten schon sehr sein seine "
        "seinem seinen seiner seit sich sie sind so sogar soll sollen sollte sondern sowie über um und "
        "uns unter vom von vor war waren was weil wenn wer werden wie wieder will wir wird wo worden "
        "wurde wurden würde würden "
        "zu zum zur zwei zwischen"
    ),
    "fr": (
        "a à afin ai ainsi alors après au aucun aussi autre autres aux avait avant avec avoir c car ce ceci "
        "cela celle celui ces cet cette ceux chaque chez comme d dans de depuis des deux dont du elle "
        "elles en encore entre est et étaient était été être eu eux fait il ils j je l la le les leur "
        "leurs lors lui ma mais me même mes moi moins mon n ne ni non nos notre nous on ont ou où par "
        "parce pas pendant peu peut plus pour pourquoi qu quand que quel quelle qui quoi s sa sans se "
        "selon sera ses si soit son sont sous sur ta te tout toute toutes tous très trop tu un une vers "
        "vos votre vous y jusqu lorsqu puisqu quoiqu"
    ),
    "zh": (
        "的 了 在 是 和 与 及 也 就 都 而 这 那 一 有 我 你 他 她 它 们 我们 "
        "你们 他们 她们 它们 这个 那个 这些 那些 自己 不是 没有 一个 一些 一种 以及 "
        "因为 所以 但是 如果 虽然 然而 可以 可能 已经 还是 或者 并且 而且 对于 关于 "
        "由于 为了 通过 根据 其中 之间 之一 目前 同时 进行 表示 认为 这样 那么 什么 "
        "怎么 如何 以来 以后 之后 之前 不能 不会 就是 也是 都是 并不 非常 十分 这种 "
        "这一 那样 还有 只有 只是 不过 其他 其它 这是 这里 那里 很多 许多 一直 一次 "
        "之下 之中 来说 正在 将会 不要 不同 近年来 多年来 年前"
    ),
}
STOP_WORDS = {language: frozenset(words.split()) for language, words in STOP_WORDS.items()}

# Characters that hardly any Chinese word of two or more characters begins or ends with.
NO_WORD_EDGES = frozenset("的了是在和与及也就都而这那你我他她它其被把将让着很")
# Characters that no Chinese word worth asking for begins or ends with.
CHINESE_PARTICLES = frozenset(
    "的了在是和与及也就都而这那我你他她它们之其对为以于但并被把将从向让着过地得很不又还更最所等个们"
)

AND = {"en": " and ", "de": " und ", "fr": " et ", "zh": "和"}

HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_FULL_WIDTH = "\u3000-\u303f\uff01-\uff65“”‘’…—"
_TOKEN = re.compile(rf"\d+(?:[.,:]\d+)*|[{HAN}]+|[^\W\d_{HAN}]+(?:[-'’][^\W\d_{HAN}]+)*")
_FRENCH_NUMBER = r"\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)(?:,\d+)?"
_FRENCH_TOKEN = re.compile(f"{_FRENCH_NUMBER}|{_TOKEN.pattern}")
_ELIDED_WORD = r"(?:[cdjlmnst]|(?:jus|lors|puis|quoi)?qu)"
_ELIDED = re.compile(rf"{_ELIDED_WORD}(?=['’].)", re.IGNORECASE)
ELISION = re.compile(rf"(?<!\w){_ELIDED_WORD}['’]$", re.IGNORECASE)
"""The end of a text after which a French word begins without a space: l’, qu’."""
_NO_BREAK_SPACES = "\u00a0\u202f"
_HAN = re.compile(f"[{HAN}]")
_HAN_SPACES = re.compile(
    rf"(?<=[{HAN}])\s+(?=[{HAN}{_FULL_WIDTH}])|(?<=[{_FULL_WIDTH}])\s+(?=[{HAN}{_FULL_WIDTH}])|"
    r"\s+(?=[，。！？；：、）》」』])|(?<=[，。！？；：、（《「『])\s+"
)
_CSV_FIELD = re.compile(r'\s*"((?:[^"]|"")*)"\s*')
"""A line from a table in CSV: in quotation marks, with the text's own quotation marks doubled."""
_UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_QUOTE_SPACES = re.compile(r"(?<=“)\s+|\s+(?=”)|(?<=[.,!?])\s+(?=\"$)")
_HALF_WIDTH = re.compile(rf"(?<=[{HAN}])(?:([,;:!])\s*|(\?)(?=$|[”’》」』]))")
"""Punctuation after Chinese. A question mark inside a sentence is not: it stands for a lost character."""
_TO_FULL_WIDTH = str.maketrans(",;:!?", "，；：！？")
_TO_NARROW = {code: code - 0xFEE0 for code in range(ord("０"), ord("ｚ") + 1) if chr(code).isalnum()}
"""Full-width letters and digits -> ordinary ones."""
_MARK_SPACES = re.compile(r"(?<=[\w)]) +(?=[.,;!?](?:\s|$))")
_LATIN_WORD = re.compile(r"[^\W\d_]{2,}")
_SPACES = re.compile(r"\s+")
_LATIN_LETTER = re.compile("[A-Za-zªºÀ-ÖØ-öø-ɏḀ-ỿ]")
_LETTER = re.compile(rf"[^\W\d_{HAN}]")


class Word(NamedTuple):
    """A word, a number or a run of Chinese characters in a text, and where it begins."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """Where it ends: the index after its last character."""
        return self.start + len(self.text)


def check_language(option: str, code: str) -> None:
    """Raise UserError, listing the known languages, for a language that is not among them."""
    if code not in LANGUAGES + OTHER_LANGUAGES:
        known = ", ".join(LANGUAGES + OTHER_LANGUAGES)
        raise UserError(option, f"unknown language: {code}", f"Known are: {known}.")


def check_user_language(option: str, code: str) -> None:
    """Raise UserError for a language that no user writes in here."""
    if code not in LANGUAGES:
        raise UserError(option, f"no phrasings for users of: {code}", f"There are: {', '.join(LANGUAGES)}.")


def user_languages(languages: Sequence[str]) -> Sequence[str]:
    """Those of a pair's languages that users write in; English if there is none."""
    return [language for language in languages if language in LANGUAGES] or ["en"]


def tidy(text: str, language: str) -> str:
    """Remove from a line what comes from files and not from writers.

    That is the quotation marks of CSV, HTML entities, decomposed letters, invisible characters, superfluous
    spaces, full-width letters and digits and, in Chinese, punctuation of another script. `language` is the
    code of the text's language, "" if it is not known.
    """
    if '""' in text and (field := _CSV_FIELD.fullmatch(text)) and '""' in field[1]:
        text = field[1].replace('""', '"')
    if "&" in text:
        text = html.unescape(text)
    text = _UNSEEN.sub("", unicodedata.normalize("NFC", text)).translate(_TO_NARROW)
    text = _SPACES.sub(_no_break_space if language == "fr" else " ", text).strip()
    if language != "fr" and "„" not in text:  # the mark that closes in German opens in English
        text = _QUOTE_SPACES.sub("", text)
    if language in ("en", "de"):
        text = _MARK_SPACES.sub("", text)
    if language == "zh":
        text = _HALF_WIDTH.sub(lambda mark: (mark[1] or mark[2]).translate(_TO_FULL_WIDTH), text)
        text = _HAN_SPACES.sub("", text)
    return text


def _no_break_space(spaces: re.Match[str]) -> str:
    """One space for several: a no-break space, as French has before : ; ! ?, if one is among them."""
    return next((space for space in spaces[0] if space in _NO_BREAK_SPACES), " ")


def tokens(text: str, language: str = "") -> list[Word]:
    """Words and numbers of a text. Runs of Chinese stay whole, for a lexicon to cut; l’école is two words.

    Of a language in WORDLESS only the numbers are given.
    """
    if language in WORDLESS:
        return [Word(match[0], match.start()) for match in _TOKEN.finditer(text) if match[0][0].isdigit()]
    if language != "fr":
        return [Word(match[0], match.start()) for match in _TOKEN.finditer(text)]
    found = []
    for match in _FRENCH_TOKEN.finditer(text):
        word, start = match[0], match.start()
        if elided := _ELIDED.match(word):
            found.append(Word(elided[0], start))
            word, start = word[elided.end() + 1 :], start + elided.end() + 1
        found.append(Word(word, start))
    return found


def is_stop_word(word: str, language: str) -> bool:
    """Whether a word is a known function word of the language; in Chinese also whether it begins or ends with
    a particle."""
    if word.casefold() in STOP_WORDS.get(language, ()):
        return True
    return language == "zh" and (word[0] in CHINESE_PARTICLES or word[-1] in CHINESE_PARTICLES)


def is_chinese(text: str) -> bool:
    """Whether a text has at least one Chinese character."""
    return bool(_HAN.search(text))


def reads_as(text: str, language: str, other: str) -> bool:
    """Whether a text may be in `language`, and not in `other`, its translation's language, or a third one.

    Chinese is recognised by its script, the others by their stop words; a text without any stop words passes.
    A language without stop words here is only distinguished from those of another script.
    """
    if language not in STOP_WORDS:
        return language in EITHER_SCRIPT or _is_latin(text) != (language in NOT_LATIN)
    han, letters = len(_HAN.findall(text)), len(_LETTER.findall(text))
    if language == "zh":
        return 3 * han >= letters and han > 0
    if han > 0.1 * letters:
        return False
    words = [word.casefold() for word in _LATIN_WORD.findall(text)]
    own = _share(words, language)
    rivals = {"en", "de", "fr", other} & STOP_WORDS.keys() - {language, "zh"}
    return all(own >= _share(words, rival) for rival in rivals)


def _is_latin(text: str) -> bool:
    """Whether most letters of a text are Latin ones."""
    letters = [character for character in text if character.isalpha()]
    return 2 * len(_LATIN_LETTER.findall(text)) > len(letters)


def _share(words: Sequence[str], language: str) -> int:
    return sum(map(STOP_WORDS[language].__contains__, words))
