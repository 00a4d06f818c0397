"""Character classes for evaluations, each written as the inside of a regular expression's brackets."""

import unicodedata

HAN = r"々〆〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003347f"
KANA = r"\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9d"
HANGUL = r"\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"
DEVANAGARI = r"\u0900-\u097f"
SOUTH_EAST_ASIAN = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Burmese and Khmer, which put no spaces between words."""
CLOSERS = r"\"'”’»›）)」』】\]*_"
"""Marks that may follow a sentence's final punctuation and still belong to it."""


def _marks() -> str:
    """Combining marks. `\\w` leaves them out, and vowel signs with them, so it splits हिन्दी into three."""
    ranges: list[list[int]] = []
    for code in range(0x300, 0x20000):
        if unicodedata.category(chr(code)) in ("Mn", "Mc"):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


MARKS = _marks()
JOINERS = "\u200c\u200d"
"""Within a word they change how letters join; they do not end the word."""
