"""What a text says is the answer to a multiple-choice question: letters, or nothing where it is not clear.

Four kinds of statement are looked for, the first kind that is found decides:
 1. announcements: "The answer is (B)", "答案是选项(D)。", "故选C", \\boxed{A}; what is announced may
    be letters or the very text of an option. The last one counts: a text may think aloud and correct itself;
 2. lines that are nothing but letters, or begin with a letter and a mark, "C. Paris"; they must agree;
 3. verdicts: "B is correct", "B项正确"; they must agree;
 4. what a text leads to: "which corresponds to option B", "对应选项B"; they must agree.
Last, a text that is an option's text, or begins with one and gives its letter or a reason. Two letters
with "or" between them are no answer; denied, supposed and asked ones are passed over. Nothing is guessed:
a letter that is only mentioned is not an answer.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Choice = frozenset[str]
"""Letters that are chosen; empty for a statement that does not decide."""

LONGEST_END = 4000
"""Characters that are read at each end of a long text."""

_ALL = "[A-Z]"
_OPEN, _CLOSE = r"[(\[{<\"'“‘「【《]{0,4}", r"[)\]}>\"'”’」】》]{0,4}"
_LETTER = rf"{_OPEN}(?:(?i:option|choice|选项)\s*)?{_OPEN}LETTER{_CLOSE}"
_JOIN = r"(?:\s*(?:,|、|;|&|\+)\s*(?:and\s+|和)?|\s+and\s+|\s*[和与及]\s*|\s+|(?<=[)\]])(?=[(\[]))"
# Letters and what joins them: "A", "(A)", "A, C and D", "ACD", "A C".
_EXPRESSION = (
    r"(?P<expression>(?<![A-Za-z0-9_\\])"
    rf"(?:{_OPEN}LETTER{{2,26}}{_CLOSE}|{_LETTER}(?:{_JOIN}{_LETTER}(?![A-Za-z0-9_])){{0,9}})"
    r"(?![A-Za-z0-9_]|['’][a-z]))"
)
_LEAD = (
    r"(?:[\s,]*(?:either|both|definitely|clearly|probably|likely|most likely|certainly|therefore|option"
    r"|choice|letter|indeed|actually|in fact|of course|obviously|simply)\b,?)*"
)
_LEAD_PATTERN = re.compile(_LEAD + r"\s*", re.I)
_ENGLISH = (
    r"(?:(?:(?:(?:correct|right|best|my|final)\s+)*answers?"
    r"|(?:correct|right|best|my|final)\s+(?:choices?|options?|responses?|selection|statement))"
    r"(?:\s+(?:to|for)\s[^.:\n]{0,60}?|\s+here|\s+choice|\s+option|[\"'])?\s*"
    r"(?:\bis|\bare|\bwas|:|=|would be|should be|must be|will be|could be|may be|might be|has to be"
    r"|would have to be|can only be|turns out to be|→|->|=>)(?:\s*:)?"
    r"|(?:final|correct|right|best)\s+answer(?:\s+[-–—])?"
    r"|^[^\S\n]*(?:answer(?:\s*:|\s+[-–—])?|correct\s*:|ans\s*[.:])"
    r"|\b(?:choose|chose|select|selected|pick|picked|go with|going with|go for|opt for|settle on)"
    r"(?:\s+(?:the\s+)?(?:answer|option|choice))?\s*:?"
    r"|\b(?:I|I'd|I would)\s+(?:think|believe|guess|say|conclude)(?:\s+that)?"
    r"(?:\s+(?:it|this|that)(?:'s|\s+is|\s+must be))?)"
)
_CHINESE = (
    r"(?:(?:答案(?:选项)?|正确选项|正确的选项|正解)[】\]]?"
    r"(?:应该|应当|应|就|只能|可能|很可能|显然|最终|无疑|肯定|一定|当然)*(?:是|为|选择|选|即)?\s*:?\s*"
    r"|(?:选择|选)(?:的(?:选项|答案)?(?:应该|应|就)?(?:是|为)|为|是|了|出)?\s*:?\s*(?:答案|选项)?|^[^\S\n]*(?:答|解答)\s*:\s*)"
)
_CONCLUSION = (
    r"(?:\b(?:therefore|thus|hence|so|consequently)\b,?\s*(?:(?:it|this|that)(?:'s|\s+is|\s+must be)\s*)?"
    r"|\b(?:it|that|this)(?:'s|\s+is|\s+(?:must|should|has to|would|can only) be)\s*"
    r"|(?:应该|应当|认为|觉得|因此|所以|故|综上|结论|符合题意的|合适的|恰当的|正确的(?:说法|一项|描述|表述)?)[,:\s]*(?:应该)?"
    r"(?:是|为|有|包括)?\s*:?\s*)"
)
_END = r"(?=\s*(?:项|选项)?吧?\s*(?:[.。!,，;:\n]|$|because\b|since\b|因为))"
_VERDICT = (
    r"\s*(?:[.:、)]\s*(?=correct\b|right\b|[^a-z]))?(?:项|选项)?\s*"
    r"(?:(?:(?:is|are|(?:seems?|looks?|appears?)(?:\s+to\s+be)?)\s+(?:both\s+|all\s+)?"
    r"(?:therefore\s+|clearly\s+|definitely\s+)?(?:the\s+)?|(?<=[.:)]\s))(?:correct|right|best|true)\b(?!\s*\?)"
    r"|(?:is|must be|has to be)\s+(?:therefore\s+|clearly\s+|definitely\s+)?(?:the|my)"
    r"(?=\s+(?:final\s+)?answer\b)"
    r"|best\s+(?:answers|captures|describes|explains|expresses|fits|matches|reflects|summarizes|supports)\b"
    r"|(?:都|均|是|为|才是)*(?:正确|对的|(?:最|更|较|最为)?符合题意|最为?(?:合适|恰当|佳|好|准确|贴切)"
    r"|对(?=[.。,，;!]|$)|符合(?=[.。,，;!]|$)|(?:本题|此题)的?(?=答案))(?!吗|与否|的是|不))"
)
_DENIED = re.compile(
    r"\s*(?:项|选项)?\s*(?:(?:is|are|was|were|can|could|would)(?:n't|\s*not\b|\s+never\b)|cannot\b"
    r"|(?:is|are)\s+(?:\w+\s+)?(?:wrong|incorrect|false|out)\b|(?:都|均|是|也)*(?:错|不|误|有误|排除))",
    re.I,
)
_REFUSED_BEFORE = re.compile(
    r"(?:\b(?:not|never|cannot|if|whether|why|suppose|supposing|assume|assuming|unless|nor|avoid|rather than"
    r"|instead of)\b"
    r"|n't\b|不|别|勿|如果|假如|假设|假定|若|是否|为什么|为何|排除|误)[^.。!?;,，\n]{0,24}$",
    re.I,
)
_OR = re.compile(r"\s*(?:,\s*)?(?:(?:and/)?or\b|/|或|还是)\s*(?:maybe\s+|perhaps\s+|possibly\s+)?", re.I)
_ASKED = re.compile(r"\s*(?:项|选项)?\s*(?:\?|吗)")
# What follows a letter that is no answer: mathematics, "B-flat", "A型血".
_PART_OF_MORE = re.compile(r"\s*[=∩∪⊂⊆∈≤≥<>^_+*|]|-\w|[型类组级队班点角面线区市国股座栋罩]|\s*\\")
_AFTER_LETTER = frozenset(
    "because since as for which due based with given is are and but although though while the by in on "
    "so therefore thus hence according it this that here from when if not".split()
)
_NAMED = re.compile(r"\s*的?(?:final\s+)?(?:answer|choice|option|答案|选项)", re.I)
_BARE = re.compile(r"^[\s\W_]*$")
_NUMBERED = re.compile(r"\A\s*\d{1,3}[.)、]\s+(?=\S{1,4}\s*\Z)")
# "which corresponds to option C", "对应选项C": what leads to an answer, where none is named.
_HINT = (
    r"(?:\b(?:corresponds?|corresponding|leads|points)\s+to|\bmatch(?:es|ing)?|\balign(?:s|ing)?\s+with|\bsupports"
    r"|\bi\.e\.,?|对应(?:的是|的?为)?)\s*(?:the\s+)?(?=\(|option\b|choice\b|选项)"
)
_MARKED_LINE = (
    rf"^\s*{_OPEN}(?P<expression>LETTER)"
    r"(?:(?:[)\]】」]+[.。:、,]?|[.。:、,])(?!\s*LETTER(?![A-Za-z]))(?=\s|\W|[^\x00-\x7f]|[A-Z]|$)"
    r"|\s+(?=because\b|since\b|因为))"
)
# A letter with a mark or a space behind it, before an option's text: "(B)25", "Option B: 25", "B - 25".
_LETTERED = re.compile(
    rf"\s*(?P<word>(?i:option|choice|选项)\s*)?{_OPEN}(?P<letter>[A-Za-z])"
    rf"(?P<mark>{_CLOSE}[.。:、,]?\s*(?:[-–—]\s*)?)(?<![A-Za-z])"
)
_OTHER_LETTER = re.compile(r"(?<![A-Za-z0-9_])[A-Z][)\].。:、]")
_AFTER_TEXT = re.compile(r"\s*(?:[.。,;:!]|(?:because|since)\b|因为)")
# Behind an option's text: its letter once more, or a reason.
_MORE_SAID = re.compile(
    r"\s*(?:\((?:option\s+|选项)?(?P<letter>[a-z])(?:\)|$)|,?\s*(?:i\.e\.,?|or)\s+(?P<other>[a-z])\W*$"
    r"|,?\s*(?:because|which|not|rather than|instead of)\b|,?\s*(?:因为|而不是|而非|不是))"
)
_COURTESY = re.compile(r"\A\s*(?:(?:sure|certainly|of course|okay|ok)\b|好的)\s*[!,.:。]+\s*", re.I)


class _Patterns(NamedTuple):
    announcement: re.Pattern
    conclusion: re.Pattern
    verdict: re.Pattern
    marked_line: re.Pattern
    expression: re.Pattern
    contrast: re.Pattern
    hint: re.Pattern


def _compile(last: str) -> _Patterns:
    letter = f"[A-{last}a-{last.lower()}]"
    upper = f"[A-{last}]"

    def pattern(text: str, flags: int = 0) -> re.Pattern:
        return re.compile(text.replace("LETTER{2,26}", upper + "{2,26}").replace("LETTER", letter), flags)

    return _Patterns(
        re.compile(rf"(?:{_ENGLISH}|{_CHINESE})\s*", re.I | re.M),
        pattern(f"(?i:{_CONCLUSION}){_EXPRESSION}{_END}"),
        pattern(_EXPRESSION + f"(?i:{_VERDICT})"),
        pattern(_MARKED_LINE),
        pattern(_EXPRESSION),
        pattern(rf"(?i:(?:not|不是))\s*{_EXPRESSION}\s*,?\s*(?i:but|而是|而应是|而应选)\s*"),
        pattern(f"(?i:{_HINT}){_EXPRESSION}{_END}"),
    )


_PATTERNS = {chr(code): _compile(chr(code)) for code in range(ord("A"), ord("Z") + 1)}


def extract_choice(text: str, options: Sequence[str]) -> Choice | None:
    """The letters that a text chooses among options (their texts, without letters); None if not clear.

    Of a text of more than 8,000 characters the first and the last 4,000 are read.
    """
    if len(text) > 2 * LONGEST_END:  # a model that repeats itself up to its limit
        text = f"{text[:LONGEST_END]}\n{text[-LONGEST_END:]}"
    text = _COURTESY.sub("", plain(text))
    patterns = _PATTERNS[chr(ord("A") + len(options) - 1)]
    options = [_compared(option) for option in options]
    for kind in (_announced, _lines, _verdicts, _hints):
        choice = kind(text, patterns, options)
        if choice is not None:
            return choice or None
    return _repeated(text, options) or _begun_with(text, options) or None


def plain(text: str) -> str:
    """One spelling: NFKC (full-width, circled letters), no marks of Markdown and LaTeX around letters."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'").replace("\u200b", "").replace("\ufeff", "")
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|rm|bf|mathsf|textit)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[()\[\]]|\*+|__+|`+|\$+|^\s*#+", "", text, flags=re.M)
    return re.sub(r"</?(?:b|strong|em|i|answer|p|br)\s*/?>", " ", text, flags=re.I).strip()


def _announced(text: str, patterns: _Patterns, options: list[str]) -> Choice | None:
    """Of the last announcement that says something; an empty choice if that one does not decide."""
    found: list[tuple[int, Choice]] = []
    for match in re.finditer(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", text):
        inside = match[1].strip()
        choice = _bare(inside, patterns) or _repeated(inside, options)
        found += [(match.start(), choice)] if choice is not None else []
    for match in patterns.announcement.finditer(text):
        if not _refused_before(text, match.start()):
            choice = _said_at(text, match.end(), patterns, options)
            found += [(match.start(), choice)] if choice is not None else []
    for match in patterns.conclusion.finditer(text):
        choice = _judge(text, match, options)
        if choice and not _refused_before(text, match.start()):
            found.append((match.start(), choice))
    for match in _answers_named(text, patterns):
        choice = _judge(text, match, options)
        found += [(match.start(), choice)] if choice is not None else []
    return max(found, key=lambda each: each[0])[1] if found else None


def _refused_before(text: str, start: int) -> bool:
    """Whether the clause before denies, supposes or asks for a reason."""
    return bool(_REFUSED_BEFORE.search(text[max(0, start - 60) : start]))


def _answers_named(text: str, patterns: _Patterns) -> Iterator[re.Match]:
    """ "B is the correct answer", "B是正确答案": verdicts that name the answer announce it."""
    for match in patterns.verdict.finditer(text):
        if _NAMED.match(text, match.end()):
            if not _refused_before(text, match.start()):
                yield match


def _said_at(text: str, start: int, patterns: _Patterns, options: list[str]) -> Choice | None:
    """What stands behind an announcement: letters, or an option's text."""
    window = text[start : start + 200 + 2 * max(map(len, options))]
    line = window.lstrip(" :").split("\n")[0]
    repeated = _repeated(line, options) or _repeated(re.split(r"(?<!\d)\.\s|[。;!]", line)[0], options)
    if repeated and line[:1].islower():  # the option "a" is no letter A
        return repeated
    contrast = patterns.contrast.match(text, start)
    lead = _LEAD_PATTERN.match(text, contrast.end() if contrast else start)
    match = patterns.expression.match(text, lead.end())
    choice = _judge(text, match, options) if match else None
    if choice is None:
        return _begun_with(line, options) if repeated is None else repeated
    return choice


def _judge(text: str, match: re.Match, options: list[str]) -> Choice | None:
    """What an expression chooses where it stands: empty with an "or", None if it is no choice."""
    stop = match.end("expression")
    expression, rest = match["expression"], text[stop : stop + 200 + 2 * sum(map(len, options))]
    letters = _letters(expression)
    if not letters or _PART_OF_MORE.match(rest) or _ASKED.match(rest) or _DENIED.match(rest):
        return None
    if (other := _OR.match(rest)) and re.match(
        rf"{_LEAD}\s*{_OPEN}{_ALL}(?![A-Za-z])", rest[other.end() :], re.I
    ):
        return frozenset()
    if _is_a_word(expression, rest, options) or _lists_the_options(letters, rest, options):
        return None
    return letters


def _letters(expression: str) -> Choice:
    """Nothing for a run of letters that is rather a word: not in the order of the alphabet."""
    expression = re.sub(r"option|choice|\band\b", " ", expression, flags=re.I)
    for run in re.findall("[A-Z]{2,}", expression):
        if list(run) != sorted(set(run)):
            return frozenset()
    return frozenset(re.findall("[A-Z]", expression.upper()))


def _is_a_word(expression: str, rest: str, options: list[str]) -> bool:
    """Whether a single naked letter is the article of what follows, "A cat", and no choice."""
    following = re.match(r"[ \t]+([A-Za-z][\w'-]*)", rest)
    if len(expression) > 1 or not following or following[1].lower() in _AFTER_LETTER:
        return False
    number = ord(expression.upper()) - ord("A")
    said, own = _compared(rest), options[number]
    if own and said.startswith(own):
        return False
    whole = _compared(expression + rest)
    if any(option and whole.startswith(option) for option in options):
        return True
    return expression.islower() or expression in "AI"


def _lists_the_options(letters: Choice, rest: str, options: list[str]) -> bool:
    """Whether all options follow, each with its letter and text: they are repeated, not chosen."""
    if letters != {"A"} or len(options) < 2:
        return False
    said = _compared(rest)
    return said.startswith(options[0]) and all(
        re.search(rf"{chr(ord('a') + number)}\W*{re.escape(option)}", said) if option else False
        for number, option in enumerate(options[1:], start=1)
    )


def _bare(text: str, patterns: _Patterns) -> Choice | None:
    """Of a text that is nothing but letters: "C", "(b).", "A and C", "A or C" (an empty choice)."""
    text = text[_LEAD_PATTERN.match(text).end() :]
    match = patterns.expression.search(text)
    if not match or not _BARE.match(text[: match.start()]):
        return None
    rest = re.sub(r"\A(?:选项|项)", "", text[match.end() :])
    if _BARE.match(rest):
        return None if "?" in rest else _letters(match["expression"]) or None
    other = _OR.match(rest)
    if other and _bare(rest[other.end() :], patterns) is not None:
        return frozenset()
    return None


def _lines(text: str, patterns: _Patterns, options: list[str]) -> Choice | None:
    """Lines of letters alone must agree; so must the lines that begin with a letter and a mark."""
    lines = [line for line in _NUMBERED.sub("", text).split("\n") if line.strip()]
    bare = {choice for line in lines if (choice := _bare(line, patterns)) is not None}
    if bare:
        return bare.pop() if len(bare) == 1 else frozenset()
    marked = []
    for line in lines:
        if match := patterns.marked_line.match(line):
            rest = line[match.end() :]
            if _lists_the_options(_letters(match["expression"]), rest, options):
                return None
            if not _DENIED.match(rest) and not re.match(r"\s*(?:incorrect|wrong|false)\b", rest, re.I):
                marked.append(_letters(match["expression"]))
        elif choice := _with_its_text(line, options):
            marked.append(choice)
    return marked[0] if marked and len(set(marked)) == 1 else None


def _verdicts(text: str, patterns: _Patterns, options: list[str]) -> Choice | None:
    found = {
        letters
        for match in patterns.verdict.finditer(text)
        if (letters := _letters(match["expression"]))
        and not _refused_before(text, match.start())
        and not _OR.search(text[max(0, match.start() - 5) : match.start()])
    }
    if not found:
        return None
    return found.pop() if len(found) == 1 else frozenset()


def _hints(text: str, patterns: _Patterns, options: list[str]) -> Choice | None:
    """What a text leads to without naming an answer; all that it leads to must agree."""
    found = {
        choice
        for match in patterns.hint.finditer(text)
        if (choice := _judge(text, match, options)) and not _refused_before(text, match.start())
    }
    return found.pop() if len(found) == 1 else None


def _begun_with(text: str, options: list[str]) -> Choice | None:
    """The letter of the one option that a text begins with, where its letter or a reason follows.

    An empty choice where the letter is another one's.
    """
    said = _compared(text)
    begun = {option for option in options if option and said.startswith(option)}
    own = max((each for each in begun if _MORE_SAID.match(said, len(each))), key=len, default="")
    if not own or options.count(own) > 1:
        return None
    letter, more = chr(ord("A") + options.index(own)), _MORE_SAID.match(said, len(own))
    named = more["letter"] or more["other"]
    return frozenset(letter) if not named or named.upper() == letter else frozenset()


def _repeated(text: str, options: list[str]) -> Choice | None:
    """The letter of the one option whose text this is, with its letter before it or without."""
    said = _compared(text)
    same = [number for number, option in enumerate(options) if option and option == said]
    if not same:
        return _with_its_text(text, options)
    return frozenset(chr(ord("A") + same[0])) if len(same) == 1 else None


def _with_its_text(text: str, options: list[str]) -> Choice | None:
    """The letter that a text begins with, where that option's own text follows and no other letter."""
    match = _LETTERED.match(text)
    number = ord(match["letter"].upper()) - ord("A") if match else len(options)
    if number >= len(options) or not options[number] or _compared(text) in options:
        return None
    rest, own = text[match.end() :], options[number]
    said, naked = _compared(rest), not match["mark"].strip() and not match["word"]
    more = said.startswith(own) and _AFTER_TEXT.match(said, len(own)) and not _OTHER_LETTER.search(rest)
    # without a mark, "A cat, ..." may be an article with its noun
    chosen = match["letter"].isupper() and said == own if naked else said == own or more
    return frozenset(match["letter"].upper()) if chosen else None


def _compared(text: str) -> str:
    """An option's text without what may differ: case, spaces, marks around it."""
    text = " ".join(plain(text).casefold().split())
    return text.strip(" .。,;:!\"'“”‘()（）")
