"""Plots as SVG inside HTML: bars, and strips of marks below a roof.

Horizontal lengths are percentages, so that a plot takes the width that there is, and its text has the same
size on a telephone and on a screen. Text comes from rows, so it may have any script, and is escaped.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from fastling.evaluation.report_page import escaped

COLOURS = ("#1f5fa8", "#8a8f98", "#c07a1c", "#2e8556", "#9a4f96", "#b23b3b", "#4d4d4d", "#5b8db8")
"""Colours of providers; the first is ours."""
MEMORY_COLOUR = "#c9ccd1"
FONT = 'font-family="system-ui, sans-serif" font-size="14" fill="#1c1c1c"'
WIDEST_BAR = 56
"""Percent of the width; the rest is for the words after the bar."""


class Bar(NamedTuple):
    """A bar of length `value` > 0. `below` are value and words of a second bar, with a scale of its own."""

    label: str
    value: float
    words: str
    is_ours: bool = False
    below: tuple[float, str] | None = None


def bars(given: Sequence[Bar], title: str) -> str:
    """A bar chart from 0; the longest bar has the full width. Labels are above the bars, words after them."""
    longest = max(bar.value for bar in given)
    longest_below = max((bar.below[0] for bar in given if bar.below), default=1.0)
    parts, y = [], 0
    for bar in given:
        parts.append(_text("0", y + 15, bar.label))
        colour = COLOURS[0] if bar.is_ours else COLOURS[1]
        parts += _bar(y + 21, 18, bar.value / longest, colour, bar.words)
        y += 50
        if bar.below:
            parts += _bar(y - 7, 10, bar.below[0] / longest_below, MEMORY_COLOUR, bar.below[1])
            y += 14
    return _drawing(title, y, parts)


def _bar(y: int, height: int, share: float, colour: str, words: str) -> list[str]:
    width = f"{WIDEST_BAR * share:.2f}%"
    return [
        f'<rect x="0" y="{y}" width="{width}" height="{height}" fill="{colour}"/>',
        _text(width, y + height // 2 + 5, words, 'dx="7"'),
    ]


class Mark(NamedTuple):
    """A point on a strip."""

    value: float
    colour: str
    words: str  # shown where it is pointed at


def strips(rows: Sequence[tuple[str, Sequence[Mark]]], roof: float, roof_words: str, title: str) -> str:
    """A line from 0 for each (label, marks); a dashed line across all of them is at `roof`."""
    end = 1.04 * max(roof, *(mark.value for _, marks in rows for mark in marks))
    height = 24 + 44 * len(rows)
    at_roof = f"{100 * roof / end:.2f}%"
    ends = f'x1="{at_roof}" y1="20" x2="{at_roof}" y2="{height}"'
    parts = [
        f'<line {ends} stroke="#b23b3b" stroke-dasharray="5 4"/>',
        _text(at_roof, 14, roof_words, 'text-anchor="end"'),
    ]
    for number, (label, marks) in enumerate(rows):
        y = 24 + 44 * number
        parts.append(_text("0", y + 15, label))
        parts.append(f'<line x1="0" y1="{y + 28}" x2="100%" y2="{y + 28}" stroke="#ddd"/>')
        for mark in marks:
            circle = f'cx="{100 * mark.value / end:.2f}%" cy="{y + 28}" r="5"'
            shown = f"<title>{escaped(mark.words)}</title>"
            parts.append(f'<circle {circle} fill="{mark.colour}" fill-opacity="0.75">{shown}</circle>')
    return _drawing(title, height, parts)


def _text(x: str, y: int, words: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" {more}>{escaped(words)}</text>'


def _drawing(title: str, height: int, parts: Sequence[str]) -> str:
    opening = f'<svg role="img" width="100%" height="{height}" style="height:{height}px" {FONT}>'
    return f"{opening}<title>{escaped(title)}</title>{''.join(parts)}</svg>"


def picture(drawing: str, title: str, captions: Sequence[str]) -> str:
    """An SVG file: a drawing on white, with its title above and captions below."""
    height = int(re.search(r'height="(\d+)"', drawing)[1])
    whole = 64 + height + 20 * len(captions)
    size = f'width="760" height="{whole}" viewBox="0 0 760 {whole}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {FONT}>',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="20" y="30" font-weight="600" font-size="16">{escaped(title)}</text>',
        f'<svg x="20" y="46" width="720" height="{height}">{drawing}</svg>',
    ]
    for number, caption in enumerate(captions):
        y = 62 + height + 20 * number
        parts.append(f'<text x="20" y="{y}" font-size="12" fill="#555">{escaped(caption)}</text>')
    return "\n".join([*parts, "</svg>\n"])
