"""Regular expressions for the ways in which a text may state which option it chooses."""

import functools
import re
from typing import NamedTuple

ALL = "[A-Z]"
OPEN, _CLOSE = r"[(\[{<\"'“‘「【《]{0,4}", r"[)\]}>\"'”’」】》]{0,4}"
_LETTER = rf"{OPEN}(?:(?i:option|choice|选项)\s*)?{OPEN}LETTER{_CLOSE}"
_JOIN = (
    r"(?:\s*(?:,|、|;|&|\+)\s*(?:and\s+|和)?|\s+and\s+|\s*[和与及]\s*|\s+(?=\W|(?!A\s+[a-z])[A-Z])"
    r"|(?<=[)\]])(?=[(\[]))"
)
# Letters and what joins them: "A", "(A)", "A, C and D", "ACD", "A C". All are matched, not only the first.
# The A of "(B) A cat" is an article.
_EXPRESSION = (
    r"(?P<expression>(?<![A-Za-z0-9_\\])"
    rf"(?:{OPEN}LETTER{{2,26}}{_CLOSE}|{_LETTER}(?:{_JOIN}{_LETTER}(?![A-Za-z0-9_])){{0,9}}+)"
    r"(?![A-Za-z0-9_]|['’][a-z]))"
)
LEAD = (
    r"(?:[\s,]*(?:either|both|definitely|clearly|probably|likely|most likely|certainly|therefore|option"
    r"|choice|letter|indeed|actually|in fact|of course|obviously|simply)\b,?)*"
)
LEAD_PATTERN = re.compile(LEAD + r"\s*", re.I)
_ENGLISH = (
    r"(?:(?:(?:(?:correct|right|best|my|final)\s+)*answers?"
    r"|(?:correct|right|best|my|final|closest|most\s+(?:accurate|appropriate|fitting|likely|plausible|suitable))"
    r"\s+(?:choices?|options?|responses?|letters?|selection|statement))"
    r"(?:\s+(?:to|for|that|which)\s[^.:\n]{0,60}?|\s+here|\s+choice|\s+option|[\"'])?\s*"
    r"(?:\bis|\bare|\bwas|:|=|would be|should be|must be|will be|could be|may be|might be|has to be"
    r"|would have to be|can only be|turns out to be|→|->|=>)(?:\s*:)?"
    r"|(?:final|correct|right|best)\s+answer(?:\s+[-–—])?"
    r"|^[^\S\n]*(?:answer(?:\s*:|\s+[-–—])?|correct\s*:|ans\s*[.:]|result\s*:(?=\W*[A-Z]\W*\Z))"
    r"|\b(?:choose|chose|select|selected|pick|picked|go with|going with|go for|opt for|settle on)"
    r"(?:\s+(?:the\s+)?(?:answer|option|choice))?\s*:?"
    r"|\b(?:I|I'd|I would)\s+(?:think|believe|guess|say|conclude)(?:\s+that)?"
    r"(?:\s+(?:it|this|that)(?:'s|\s+is|\s+must be))?)"
)
_CHINESE = (
    r"(?:(?:答案(?:选项)?|正确选项|正确的选项|正解)[】\]]?"
    r"(?:应该|应当|应|就|只能|可能|很可能|显然|最终|无疑|肯定|一定|当然)*(?:是|为|选择|选|即)?\s*:?\s*"
    r"|(?<![遴挑筛评入竞])(?:选择|选)(?:的(?:选项|答案)?(?:应该|应|就)?(?:是|为)|为|是|了|出)?\s*:?\s*(?:答案|选项)?"
    r"|^[^\S\n]*(?:答|解答)\s*:\s*)"
)
_REMAINS = r"\s+remains[^\w?]*\Z"
_ONLY = r"\s*(?:项|选项)?(?:[.。!\n]|$|\s(?:as|because|since)\b)"
_CONCLUSION = (
    r"(?:\b(?:therefore|thus|hence|so|consequently)\b,?\s*(?:(?:it|this|that)(?:'s|\s+is|\s+must be)\s*)?"
    r"|\b(?:wait|no|actually|rather|correction|on\s+(?:second\s+thoughts?|reflection"
    r"|reconsideration))\s*[,:]\s*"
    rf"(?:(?:it|this|that)(?:'s|\s+is|\s+must be)\s*)?(?!{_LETTER}\s*:)"
    rf"|(?:\b(?:leaves?|leaving|left(?=\s+with\b))\s+(?:(?:us|me|only|just|with)\s+){{0,3}}"
    rf"|只剩下?|剩下)(?={_LETTER}{_ONLY})"
    rf"|(?:\A\s*|\bonly\s+|\b(?:eliminat(?:e|ed|ing)|incorrect|out|wrong)\b[^.\n]{{0,40}}[.,;]\s*)(?={_LETTER}{_REMAINS})"
    r"|(?<![^\s,。.;!?])还是\s*"
    r"|\b(?:it|that|this)(?:'s|\s+is|\s+(?:must|should|has to|would|can only) be)\s*"
    r"|(?:应该|应当|认为|觉得|因此|所以|而是|故|综上|结论|符合题意的|合适的|恰当的"
    r"|正确的(?:说法|一项|描述|表述)?(?!\n))[,:\s]*(?:应该)?(?:是|为|有|包括)?\s*:?\s*)"
)
_END = rf"(?=\s*(?:项|选项)?吧?\s*(?:[.。!,，;:\n]|$|because\b|since\b|as the only\b|因为)|{_REMAINS})"
# "Among A, B and C, B is ...": the letters before the last one are those to choose from.
_AMONG = (
    rf"(?:\b(?i:among|between|out\s+of|of|from|unlike)\s+(?:\w{{2,}}\s+){{0,3}}:?{_LETTER}"
    rf"(?:{_JOIN}{_LETTER}){{1,9}}\s*,\s*"
    rf"(?={_LETTER}\s+(?:is|seems|looks|would|must|has|fits|best)\b))?"
)
_VERDICT = (
    r"(?:\s*\((?!(?:LETTER|option)\b)[^()\n]{1,60}\))?"
    r"\s*(?:[.:、)]\s*(?=correct\b|right\b|[^a-z]))?(?:项|选项)?\s*"
    r"(?:(?:(?:is|are|(?:would|must|should|has\s+to)\s+be|(?:seems?|looks?|appears?)(?:\s+to\s+be)?)\s+"
    r"(?:both\s+|all\s+)?"
    r"(?:therefore\s+|clearly\s+|definitely\s+)?(?:the\s+)?|(?<=[.:)]\s))"
    r"(?:correct|right|best|true)\b(?!\s*(?:\?|if\b))"
    r"|(?:is|must be|has to be)\s+(?:therefore\s+|clearly\s+|definitely\s+)?(?:the|my)"
    r"(?=\s+(?:final\s+)?answer\b)"
    r"|fits?\s+(?:\w+\s+){0,3}best\b"
    r"|best\s+(?:answers|captures|describes|explains|expresses|fits|matches|reflects|summarizes|supports)\b"
    r"|(?:都|均|是|为|才是)*(?:正确|对的|(?:最|更|较|最为)?符合题意|最符合|最为?(?:合适|恰当|佳|好|准确|贴切)"
    r"|对(?=[.。,，;!]|$)|符合(?=[.。,，;!]|$)|(?:本题|此题)的?(?=答案))(?!吗|与否|的是|不))"
)
DENIED = re.compile(
    r"\s*(?:项|选项)?\s*(?:(?:is|are|was|were|do|does|did|can|could|would)(?:n't|\s*not\b|\s+never\b)|cannot\b"
    r"|(?:is|are)\s+(?:\w+\s+)?(?:wrong|incorrect|false|out)\b|(?:都|均|是|也)*(?:错|不|误|有误|排除))",
    re.I,
)
REFUSED_BEFORE = re.compile(
    r"(?:\b(?:not|never|cannot|if|whether|why|suppose|supposing|assume|assuming|unless|nor|avoid|rather than"
    r"|instead of|all\b[^.\n]{0,20}\b(?:but|except))\b"
    r"|n't\b|不|别|勿|除|如果|假如|假设|假定|若|是否|为什么|为何|排除|误)[^.。!?:;,，\n]{0,24}$",
    re.I,
)
OR = re.compile(r"\s*(?:,\s*)?(?:(?:and/)?or\b|/|或|还是)\s*(?:maybe\s+|perhaps\s+|possibly\s+)?", re.I)
ASKED = re.compile(r"\s*(?:项|选项)?\s*(?:\?|吗)")
# What follows a letter that belongs to something else and is not an answer: mathematics, "B-flat", "A型血".
PART_OF_MORE = re.compile(r"\s*[=∩∪⊂⊆∈≤≥<>^_+*|]|-\w|[型类组级队班点角面线区市国股座栋罩]|\s*\\")
# What stands before the last letter of a formula or an abbreviation: "4 a", "b>a", "A \subseteq B", "(x) d",
# "D.C".
IN_A_FORMULA = re.compile(
    r"(?:(?:[\d=<+*/^{}°]|(?<![-=])>|(?<=[a-z])\))[^\S\n]*|-|[A-Z]\.|\\[a-z]+[^\S\n]+)\Z"
)
AFTER_LETTER = frozenset(
    "because since as for which due based with given is are and but although though while the by in on "
    "so therefore thus hence according it this that here from when if not remains".split()
)
NAMED = re.compile(r"\s*的?(?:final\s+)?(?:answer|choice|option|答案|选项)", re.I)
# The end of a text after an option's text, as in "Berlin is the answer."
IS_THE_ANSWER = re.compile(
    r"(?:\s(?:is|was)\s+(?:the|my)\s+(?:(?:correct|right|best|final)\s+)*(?:answer|choice|option)"
    r"|(?:是|为)(?:本题的?|正确的?|最佳)?(?:答案|选项))[^\w?]*\Z",
    re.I,
)
BARE = re.compile(r"^[\s\W_]*$")
NUMBERED = re.compile(r"\A\s*\d{1,3}[.)、]\s+(?=\S{1,4}\s*\Z)")
# "which corresponds to option C", "对应选项C": words that lead to an answer without calling it one.
_HINT = (
    r"(?:\b(?:corresponds?|corresponding|leads|points)\s+to|\bmatch(?:es|ing)?|\balign(?:s|ing)?\s+with|\bsupports"
    r"|\bi\.e\.,?|对应(?:的是|的?为)?)\s*(?:the\s+)?(?=\(|option\b|choice\b|选项)"
)
_MARKED_LINE = (
    rf"^\s*{OPEN}(?P<expression>LETTER)"
    r"(?:(?:[)\]】」]+[.。:、,]?|[.。:、,])(?!\s*LETTER(?![A-Za-z]))(?=\s|\W|[^\x00-\x7f]|[A-Z]|$)"
    r"|\s+(?=because\b|since\b|因为))"
)
# A letter with a mark or a space after it, before an option's text: "(B)25", "Option B: 25", "B - 25".
LETTERED = re.compile(
    rf"\s*(?P<word>(?i:option|choice|选项)\s*)?{OPEN}(?P<letter>[A-Za-z])"
    rf"(?P<mark>{_CLOSE}[.。:、,]?\s*(?:[-–—]\s*)?)(?<![A-Za-z])"
)
ENDS_WRONG = re.compile(
    r"[:(–—-]\s*(?:incorrect|wrong|false|no|not\s+correct|错误?|不正确|不对)\W*$|[✗✘×❌]\W*$", re.I
)
OTHER_LETTER = re.compile(r"(?<![A-Za-z0-9_])[A-Z][)\].。:、]")
# Marks at the end of an option's text that `_compared` (choices.py) leaves out.
CLOSERS = r"[\"'”’()]*"
AFTER_TEXT = re.compile(r"\s*(?:[.。,;:!]|(?:because|since)\b|因为)")
# After an option's text that was announced: words that say what it is, or "since", which is no time there.
WHAT_IT_IS = re.compile(r"\s*(?:,\s*(?:the|a|an|as|where|who|located|in)|,?\s*since)\b", re.I)
# After an option's text: its letter, or a reason.
MORE_SAID = re.compile(
    r"\s*(?:\((?:option\s+|选项)?(?P<letter>[a-z])(?:\)|$)|,?\s*(?:i\.e\.,?|or)\s+(?P<other>[a-z])\W*$"
    r"|,?\s*(?:because|which|not|rather than|instead of)\b|,?\s*(?:因为|而不是|而非)|,\s*不是)"
)
COURTESY = re.compile(r"\A\s*(?:(?:sure|certainly|of course|okay|ok)\b|好的)\s*[!,.:。]+\s*", re.I)


class Patterns(NamedTuple):
    """The patterns for one number of options."""

    announcement: re.Pattern
    conclusion: re.Pattern
    verdict: re.Pattern
    marked_line: re.Pattern
    expression: re.Pattern
    contrast: re.Pattern
    hint: re.Pattern


@functools.cache  # it takes a tenth of a second
def patterns_to(last: str) -> Patterns:
    """The patterns for options with the letters A to `last`."""
    letter = f"[A-{last}a-{last.lower()}]"
    upper = f"[A-{last}]"

    def pattern(text: str, flags: int = 0) -> re.Pattern:
        return re.compile(text.replace("LETTER{2,26}", upper + "{2,26}").replace("LETTER", letter), flags)

    return Patterns(
        re.compile(rf"(?:{_ENGLISH}|{_CHINESE})\s*", re.I | re.M),
        pattern(f"(?i:{_CONCLUSION}){_EXPRESSION}{_END}"),
        pattern(f"{_AMONG}{_EXPRESSION}(?i:{_VERDICT})"),
        pattern(_MARKED_LINE),
        pattern(_EXPRESSION),
        pattern(rf"(?i:(?:not|不是))\s*{_EXPRESSION}\s*,?\s*(?i:but|而是|而应是|而应选)\s*"),
        pattern(f"(?i:{_HINT}){_EXPRESSION}{_END}"),
    )
