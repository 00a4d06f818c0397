"""Extracts the letters that a text gives as its answer to a multiple-choice question, if that is clear.

It looks for four kinds of statement, and the first kind that it finds decides:
 1. announcements: "The answer is (B)", "答案是选项(D)。", "故选C", \\boxed{A}; what is announced may
    be letters or the very text of an option. The last one counts: a text may think aloud and correct itself;
 2. lines that are nothing but letters, or begin with a letter and a mark, "C. Paris"; they must agree;
 3. verdicts: "B is correct", "B项正确"; they must agree;
 4. hints: "which corresponds to option B", "对应选项B"; they must agree.
If there is none of them, the text may be an option's text, or begin with one and then give its letter or a
reason. Two letters joined by "or" are not an answer. Letters that are denied, supposed or asked about are
skipped. Nothing is guessed: a letter that is merely mentioned is not an answer.
"""

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence

from fastling.evaluation.choice_patterns import (
    AFTER_LETTER,
    AFTER_TEXT,
    ALL,
    ASKED,
    BARE,
    CLOSERS,
    COURTESY,
    DENIED,
    ENDS_WRONG,
    IN_A_FORMULA,
    IS_THE_ANSWER,
    LEAD,
    LEAD_PATTERN,
    LETTERED,
    MORE_SAID,
    NAMED,
    NUMBERED,
    OPEN,
    OR,
    OTHER_LETTER,
    PART_OF_MORE,
    REFUSED_BEFORE,
    WHAT_IT_IS,
    Patterns,
    patterns_to,
)

Choice = frozenset[str]
"""The letters that are chosen; empty for a statement that leaves the choice open."""

LONGEST_END = 4000
"""Characters that are read at each end of a long text."""


def extract_choice(text: str, options: Sequence[str]) -> Choice | None:
    """Return the letters that a text chooses among options (texts without letters), or None if unclear.

    If a text has more than 8,000 characters, only the first and the last 4,000 are read.
    """
    if len(text) > 2 * LONGEST_END:  # such as one by a model that repeats itself up to its limit
        text = f"{text[:LONGEST_END]}\n{text[-LONGEST_END:]}"
    text = COURTESY.sub("", plain(text))
    patterns = patterns_to(string.ascii_uppercase[len(options) - 1])
    options = [_compared(option) for option in options]
    for kind in (_announced, _lines, _verdicts, _hints):
        choice = kind(text, patterns, options)
        if choice is not None:
            return choice or None
    return _repeated(text, options) or _begun_with(text, options) or None


def plain(text: str) -> str:
    """A text in NFKC (for full-width and circled letters), without marks of Markdown, LaTeX and HTML."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'").replace("\u200b", "").replace("\ufeff", "")
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|rm|bf|mathsf|textit)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[()\[\]]|\*+|__+|`+|\$+|^\s*#+", "", text, flags=re.M)
    return re.sub(r"</?(?:b|strong|em|i|answer|p|br)\s*/?>", " ", text, flags=re.I).strip()


def _announced(text: str, patterns: Patterns, options: list[str]) -> Choice | None:
    """The choice of the last announcement that says something; it is empty if that one leaves it open."""
    found: list[tuple[int, Choice]] = []
    for match in re.finditer(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", text):
        inside = match[1].strip()
        choice = _bare(inside, patterns) or _repeated(inside, options)
        found += [(match.start(), choice)] if choice is not None else []
    for match in patterns.announcement.finditer(text):
        if not _refused_before(text, match.start()):
            choice = _said_behind(text, match, patterns, options)
            found += [(match.start(), choice)] if choice is not None else []
    for match in patterns.conclusion.finditer(text):
        choice = _judge(text, match, options)
        if choice and not _refused_before(text, match.start()):
            found.append((match.start(), choice))
    for match in _said_of_letters(text, patterns, options):
        choice = _judge(text, match, options) if NAMED.match(text, match.end()) else None
        found += [(match.start(), choice)] if choice is not None else []
    if (end := IS_THE_ANSWER.search(text)) and (choice := _last_said(text[: end.start()], options)):
        found.append((end.start(), choice))
    return max(found, key=lambda each: each[0])[1] if found else None


def _refused_before(text: str, start: int) -> bool:
    """Whether the clause before `start` denies or supposes what follows, or asks for its reason."""
    return bool(REFUSED_BEFORE.search(text[max(0, start - 60) : start]))


def _said_of_letters(text: str, patterns: Patterns, options: list[str]) -> Iterator[re.Match]:
    """Verdicts like "B is correct", not "4 a is correct", nor "vitamin C is correct" if that is an option."""
    for match in patterns.verdict.finditer(text):
        start = match.start("expression")
        before = text[max(0, start - 60) : start]
        words = _compared(" ".join([*before.split()[-1:], match["expression"]]))
        is_part = IN_A_FORMULA.search(before) or any(words in option for option in options if " " in words)
        if not is_part and not _refused_before(text, match.start()):
            yield match


def _last_said(text: str, options: list[str]) -> Choice | None:
    """The option that a text, or else its last sentence, repeats."""
    for sentence in (text, re.split(r"[.。!?;\n]\s*", text)[-1]):
        said = re.sub(r"^(?:(?:so|thus|hence|therefore)\b|所以|因此|故),?\s*", "", sentence, flags=re.I)
        is_letter = len(_compared(said)) == 1 and not said.islower()
        if not is_letter and (choice := _repeated(said, options)):
            return choice
    return None


def _said_behind(text: str, announcement: re.Match, patterns: Patterns, options: list[str]) -> Choice | None:
    """The choice in the words after an announcement: letters, or an option's text."""
    start = announcement.end()
    window = text[start : start + 200 + 2 * max(map(len, options))]
    line = window.lstrip(" :").split("\n")[0]
    repeated = _repeated(line, options) or _repeated(re.split(r"(?<!\d)\.\s|[。;!]", line)[0], options)
    if repeated and line[:1].islower():  # in an option's text, "a" is not the letter A
        return repeated
    contrast = patterns.contrast.match(text, start)
    lead = LEAD_PATTERN.match(text, contrast.end() if contrast else start)
    match = patterns.expression.match(text, lead.end())
    choice = _judge(text, match, options) if match else None
    if choice is None and match and re.search("answer|[答选]", announcement[0], re.I):
        choice = _before_what_is_denied(text, match)
    if choice is None:
        return _begun_with(line, options, is_announced=True) if repeated is None else repeated
    return repeated if repeated and repeated < choice else choice  # "(B) A NEXUS card" chooses B only


def _before_what_is_denied(text: str, match: re.Match) -> Choice | None:
    """The one letter before others that are denied: A, if a text says "A, B and C are wrong"."""
    first, _, others = match["expression"].partition(",")
    letters = _letters(first)
    if len(letters) == 1 and others and "," not in others and DENIED.match(text, match.end("expression")):
        return letters
    return None


def _judge(text: str, match: re.Match, options: list[str]) -> Choice | None:
    """The choice of an expression, seen in its context: empty if "or" follows, None if it is no choice."""
    stop = match.end("expression")
    expression, rest = match["expression"], text[stop : stop + 200 + 2 * sum(map(len, options))]
    letters = _letters(expression)
    if not letters or ASKED.match(rest) or DENIED.match(rest):
        return None
    if PART_OF_MORE.match(rest) and not _is_followed_by_its_text(letters, rest, options):
        return None
    if (other := OR.match(rest)) and re.match(
        rf"{LEAD}\s*{OPEN}{ALL}(?![A-Za-z])", rest[other.end() :], re.I
    ):
        return frozenset()
    if _is_a_word(expression, rest, options) or _lists_the_options(letters, rest, options):
        return None
    return letters


def _is_followed_by_its_text(letters: Choice, rest: str, options: list[str]) -> bool:
    """Whether the text of the one option follows its letter, though it may look like mathematics: "(B)-3"."""
    own = options[ord(min(letters)) - ord("A")]
    return len(letters) == 1 and bool(own) and _compared(rest).startswith(own)


def _letters(expression: str) -> Choice:
    """The letters of an expression; none if some are not in alphabetical order, and so rather a word."""
    expression = re.sub(r"option|choice|\band\b", " ", expression, flags=re.I)
    for run in re.findall("[A-Z]{2,}", expression):
        if list(run) != sorted(set(run)):
            return frozenset()
    return frozenset(re.findall("[A-Z]", expression.upper()))


def _is_a_word(expression: str, rest: str, options: list[str]) -> bool:
    """Whether a single letter without marks is a word, such as the article of "A cat", and no choice."""
    following = re.match(r"[ \t]+([A-Za-z][\w'-]*)", rest)
    if len(expression) > 1 or not following or following[1].lower() in AFTER_LETTER:
        return False
    number = ord(expression.upper()) - ord("A")
    said, own = _compared(rest), options[number]
    if own and said.startswith(own):
        return False
    whole = _compared(expression + rest)
    begins_an_option = any(option and whole.startswith(option) for option in options)
    return begins_an_option or expression.islower() or expression in "AI"


def _lists_the_options(letters: Choice, rest: str, options: list[str]) -> bool:
    """Whether all options follow, each with its letter and text, so that they are repeated, not chosen."""
    if letters != {"A"} or len(options) < 2:
        return False
    said = _compared(rest)
    return said.startswith(options[0]) and all(
        re.search(rf"{string.ascii_lowercase[number]}\W*{re.escape(option)}", said) if option else False
        for number, option in enumerate(options[1:], start=1)
    )


def _bare(text: str, patterns: Patterns) -> Choice | None:
    """The choice of a text that is only letters: "C", "(b).", "A and C", "A or C" (an empty choice)."""
    text = text[LEAD_PATTERN.match(text).end() :]
    match = patterns.expression.search(text)
    if not match or not BARE.match(text[: match.start()]):
        return None
    rest = re.sub(r"\A(?:选项|项)", "", text[match.end() :])
    if BARE.match(rest):
        return None if "?" in rest else _letters(match["expression"]) or None
    other = OR.match(rest)
    if other and _bare(rest[other.end() :], patterns) is not None:
        return frozenset()
    return None


def _lines(text: str, patterns: Patterns, options: list[str]) -> Choice | None:
    """The choice of the lines of letters alone, else of those that begin with a letter and a mark.

    All of them must agree.
    """
    lines = [line for line in NUMBERED.sub("", text).split("\n") if line.strip()]
    bare = {choice for line in lines if (choice := _bare(line, patterns)) is not None}
    if bare:
        return bare.pop() if len(bare) == 1 else frozenset()
    marked = []
    for line in lines:
        if match := patterns.marked_line.match(line):
            rest = line[match.end() :]
            letters = _letters(match["expression"])
            if _lists_the_options(letters, rest, options) or _goes_through_them(letters, rest):
                return None
            is_wrong = re.match(r"\s*(?:incorrect|wrong|false)\b", rest, re.I) or ENDS_WRONG.search(rest)
            is_denied = DENIED.match(rest) or DENIED.match(rest, _end_of_its_text(letters, rest, options))
            if not is_denied and not is_wrong:
                marked.append(letters)
        elif choice := _with_its_text(line, options):
            marked.append(choice)
    return marked[0] if marked and len(set(marked)) == 1 else None


def _goes_through_them(letters: Choice, rest: str) -> bool:
    """Whether a line says something of A and then of B, so that it weighs the options and chooses none."""
    return letters == {"A"} and any(match[0][0] == "B" for match in OTHER_LETTER.finditer(rest))


def _end_of_its_text(letters: Choice, rest: str, options: list[str]) -> int:
    """Where in `rest` the text of the one option that is named ends; 0 if `rest` does not begin with it."""
    option = options[ord(min(letters)) - ord("A")] if len(letters) == 1 else ""
    words = r"\W+".join(map(re.escape, option.split()))
    its_text = re.match(rf"\W*{words}{CLOSERS}", rest, re.I) if option else None
    return its_text.end() if its_text else 0


def _verdicts(text: str, patterns: Patterns, options: list[str]) -> Choice | None:
    text = _by_letters_alone(text, options)
    found = {
        letters
        for match in _said_of_letters(text, patterns, options)
        if (letters := _letters(match["expression"]))
        and not OR.search(text[max(0, match.start() - 5) : match.start()])
    }
    if not found:
        return None
    return found.pop() if len(found) == 1 else frozenset()


def _by_letters_alone(text: str, options: list[str]) -> str:
    """Remove the mark and the option's text between a letter and what is said of it: "(B) London is correct"
    becomes "B is correct".
    """
    for letter, option in zip(string.ascii_uppercase, options, strict=False):
        if option:
            words = r"\s+".join(map(re.escape, option.split()))
            marked = rf"(?<![A-Za-z0-9_])[(\[]?{letter}[)\].:、]\W*(?i:{words}){CLOSERS}[\s.。]*"
            text = re.sub(rf"{marked}(?=\b(?:is|are)\b|[是为都均才正对])", f"{letter} ", text)
    return text


def _hints(text: str, patterns: Patterns, options: list[str]) -> Choice | None:
    """The choice that a text leads to without naming an answer; all its hints must agree."""
    found = {
        choice
        for match in patterns.hint.finditer(text)
        if (choice := _judge(text, match, options)) and not _refused_before(text, match.start())
    }
    return found.pop() if len(found) == 1 else None


def _begun_with(text: str, options: list[str], is_announced: bool = False) -> Choice | None:
    """The letter of the one option that a text begins with, if its letter or a reason follows.

    After an announcement, words that say what the option is may follow as well. The choice is empty if the
    letter that follows is another option's.
    """
    said = _compared(text)
    begun = {option for option in options if option and said.startswith(option)}
    own = max(
        (
            each
            for each in begun
            if MORE_SAID.match(said, len(each)) or (is_announced and WHAT_IT_IS.match(said, len(each)))
        ),
        key=len,
        default="",
    )
    if not own or options.count(own) > 1:
        return None
    letter, more = string.ascii_uppercase[options.index(own)], MORE_SAID.match(said, len(own))
    named = more and (more["letter"] or more["other"])
    return frozenset(letter) if not named or named.upper() == letter else frozenset()


def _repeated(text: str, options: list[str]) -> Choice | None:
    """The letter of the one option that a text repeats, with the option's letter before it or without."""
    said = _compared(text)
    same = [number for number, option in enumerate(options) if option and option == said]
    if not same:
        return _with_its_text(text, options)
    return frozenset(string.ascii_uppercase[same[0]]) if len(same) == 1 else None


def _with_its_text(text: str, options: list[str]) -> Choice | None:
    """The letter that a text begins with, if the text of that option follows it, and no other letter."""
    match = LETTERED.match(text)
    number = ord(match["letter"].upper()) - ord("A") if match else len(options)
    if number >= len(options) or not options[number] or _compared(text) in options:
        return None
    rest, own = text[match.end() :], options[number]
    said, naked = _compared(rest), not match["mark"].strip() and not match["word"]
    more = said.startswith(own) and AFTER_TEXT.match(said, len(own)) and not OTHER_LETTER.search(rest)
    # without a mark, "A cat, ..." may be an article with its noun
    chosen = match["letter"].isupper() and said == own if naked else said == own or more
    return frozenset(match["letter"].upper()) if chosen else None


def _compared(text: str) -> str:
    """A text without what may differ when it repeats an option: case, spaces, marks around it."""
    text = " ".join(plain(text).casefold().split())
    return text.strip(" .。,;:!\"'“”‘()（）")
