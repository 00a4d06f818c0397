"""Makes an HTML page of results: tables and plots, and the paper's figures, which are marked as such.

The page is self-contained: its plots are inline SVG, and it loads nothing. All text of results is escaped.
"""

import html
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from fastling.errors import UserError
from fastling.evaluation.result import TableData

PAPER = "the paper's (arXiv 2306.10968), BayLing-13B"


class PaperFigure(NamedTuple):
    """A number that the paper publishes. Ours are measured differently."""

    kinds: tuple[str, ...]
    percent: float
    words: str


PAPER_FIGURES = (
    PaperFigure(("translation",), 95, "of GPT-4 on single-turn translation (automatic)"),
    PaperFigure(("constrained", "refinement"), 96, "of GPT-3.5-turbo on interactive translation (human)"),
    PaperFigure(("dialogue",), 89, "of GPT-3.5-turbo on BayLing-80"),
)
# Kind -> (key in the scores, name) of each plotted number. All are in percent.
PLOTTED = {
    "translation": (("bleu", "BLEU"), ("chrf", "chrF2"), ("chrf_plus_plus", "chrF2++")),
    "constrained": (
        ("word_accuracy", "words met"), ("sentence_accuracy", "sentences with all met"), ("bleu", "BLEU"),
    ),
    "exam": (("accuracy", "accuracy"), ("random_guess", "random guess"), ("answered", "answered")),
    "dialogue": (("score_ratio", "score, of the baseline's"), ("position_bias", "orders disagree")),
    "refinement": (
        ("fix_rate", "errors fixed"), ("harm_rate", "right tokens lost"),
        ("no_op_accuracy", "right drafts unchanged"), ("wishes_granted", "wishes granted"),
        ("retention", "earlier wishes kept"),
    ),
    "instructions": (
        ("overall_turn_1", "overall, turn 1"), ("overall_turn_2", "overall, turn 2"),
        ("overall_turn_3", "overall, turn 3"), ("forgetting_turn_2", "forgotten, turn 2"),
        ("forgetting_turn_3", "forgotten, turn 3"),
    ),
}  # fmt: skip
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c}"
    "table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
    "caption{text-align:left;font-weight:600;padding:.3rem 0}td,th{padding:.25rem .8rem;text-align:right;"
    "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left;padding-left:0}"
    ".notes{color:#555}.paper{background:#f5efe0;padding:.6rem 1rem;border-left:4px solid #b8862b}"
    ".wide{overflow-x:auto}svg{max-width:100%;height:auto}h2{margin-top:2.5rem}"
)


def escaped(text: str) -> str:
    """A text escaped for HTML and XML, and for attributes in quotation marks."""
    return html.escape(_NOT_IN_XML.sub("\ufffd", text))


def page_html(title: str, parts: Sequence[str], *, head: str = "", style: str = "") -> str:
    """An HTML page with these parts; `head` and `style` are added to those that every page has."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{head}'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}{style}</style></head><body>\n<h1>{title}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def table_html(table: TableData, looks: Sequence[str] = ()) -> str:
    """A table in HTML; `looks` has the attributes of each column's cells, with a space before them."""
    looks = looks or [""] * len(table.columns)
    lines = [
        "".join(f"<{tag}{look}>{escaped(cell)}</{tag}>" for cell, look in zip(cells, looks, strict=True))
        for tag, cells in [("th", table.columns), *(("td", row) for row in table.rows)]
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    caption = f"<caption>{escaped(table.title)}</caption>" if table.title else ""
    return f'<div class="wide"><table>{caption}{body}</table></div>'


def read_result(path: Path) -> dict:
    """The result in a file that --out wrote. Raises UserError for any other file."""
    fix = "Give files that --out of an evaluation wrote."
    try:
        result = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise UserError(str(path), "no such file", fix) from None
    except (ValueError, RecursionError):
        raise UserError(str(path), "is no JSON", fix) from None
    if not isinstance(result, dict) or not isinstance(result.get("kind"), str):
        raise UserError(str(path), "is no result of an evaluation", fix)
    try:
        _tables(result)
        _notes(result)
    except (TypeError, KeyError, AttributeError, ValueError):
        raise UserError(str(path), "has tables or notes of another form", fix) from None
    return result


def _tables(result: dict) -> list[TableData]:
    tables = [TableData(each["title"], each["columns"], each["rows"]) for each in result.get("tables", ())]
    for table in tables:
        cells = [table.title, *table.columns, *(cell for row in table.rows for cell in row)]
        if not all(isinstance(cell, str) for cell in cells):
            raise TypeError
        if any(len(row) != len(table.columns) for row in table.rows):
            raise ValueError
    return tables


def _notes(result: dict) -> list[str]:
    notes = list(result.get("notes", ()))
    if not all(isinstance(note, str) for note in notes):
        raise TypeError
    return notes


def page_of(results: Sequence[tuple[str, dict]]) -> str:
    """The HTML page of results, which are given as (name, what --out keeps)."""
    kinds = list(dict.fromkeys(result["kind"] for _, result in results))
    parts = [_section(kind, [each for each in results if each[1]["kind"] == kind]) for kind in kinds]
    return page_html("Evaluation", parts)


def _section(kind: str, results: Sequence[tuple[str, dict]]) -> str:
    parts = [f"<h2>{escaped(kind.capitalize())}</h2>", _plot(kind, results)]
    for number, (name, result) in enumerate(results, start=1):
        parts.append(f"<h3>{number}. {escaped(name)}</h3>")
        parts += [table_html(table) for table in _tables(result)]
        parts += [f'<p class="notes">{escaped(note)}</p>' for note in _notes(result)]
    for figure in PAPER_FIGURES:
        if kind in figure.kinds:
            parts.append(
                f'<p class="paper"><b>{figure.percent:g} %</b> {escaped(figure.words)}: {PAPER}, as its '
                "public summaries give it. Not measured here, and not on the scale of the numbers above.</p>"
            )
    return "\n".join(part for part in parts if part)


def _plot(kind: str, results: Sequence[tuple[str, dict]]) -> str:
    """An SVG plot of a kind's headline numbers: a group of bars for each, with a colour for each result."""
    wanted = PLOTTED.get(kind, ())
    bars = [each for each in wanted if not all(math.isnan(_number(found, each[0])) for _, found in results)]
    if not bars:
        return ""
    figure = Figure(figsize=(9, 0.9 + 0.34 * len(bars) * (len(results) + 0.6)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(results)
    for number, (_, result) in enumerate(results):
        values = [_number(result, key) for key, _ in bars]
        places = [group + number * height for group in range(len(bars))]
        drawn = axes.barh(places, values, height=0.9 * height, label=f"{number + 1}.")
        axes.bar_label(drawn, fmt="%.1f", padding=3)
    middle = 0.4 - height / 2
    axes.set_yticks([group + middle for group in range(len(bars))], [shown for _, shown in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * max(100, axes.dataLim.xmax))  # a ratio may be above 100
    axes.set_xlabel("percent, measured here")
    axes.spines[["top", "right"]].set_visible(False)
    if len(results) > 1:
        axes.legend(frameon=False)
    drawing = io.StringIO()
    # The plot holds no text of the user's: matplotlib's fonts have no Chinese, and $ begins a formula there.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": kind}):
        figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    svg = drawing.getvalue()
    return svg[svg.index("<svg") :]


def _number(result: dict, key: str) -> float:
    """A number of a result, or NaN if it is missing, for which nothing is drawn."""
    value = result.get(key)
    return float(value) if type(value) in (int, float) else math.nan
