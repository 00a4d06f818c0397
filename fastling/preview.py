"""`fastling preview`: see, token by token, what is trained on, and why a row is cut or refused."""

import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy
from rich.console import Console
from rich.text import Text
from rich.theme import Theme

from fastling import files
from fastling.config import build_parser, parse
from fastling.data.conversation import KEYS, Refused
from fastling.data.encode_files import ROWS_PER_TASK, encode_rows
from fastling.data.encoding import Encoded, Encoder
from fastling.data.part import WHOLE, Part
from fastling.data.rows import read_rows
from fastling.data.store import SourceFile
from fastling.errors import UserError, run_program, visible
from fastling.prepare import make_encoder, source_files
from fastling.terminal import print_result

TRAINED, MASKED, CONTROL, REASON = "trained", "masked", "control", "reason"
"""Names of styles, whose colours are the terminal's or the page's."""
TERMINAL = Theme({TRAINED: "black on green3", MASKED: "dim", CONTROL: "bold magenta", REASON: "red"})
PAGE = Theme({TRAINED: "on #bfeccb", MASKED: "#5f6368", CONTROL: "bold #9c27b0", REASON: "#b3261e"})
PAGE_FORMAT = """<!DOCTYPE html>
<html lang="en"><head><meta charset="UTF-8"><meta name="viewport" content="width=device-width">
<title>fastling preview</title><style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; background: white; }}
pre {{ font: 0.9rem/1.6 ui-monospace, Menlo, Consolas, monospace; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
{stylesheet}
</style></head><body>
<pre>{code}</pre>
</body></html>
"""
OPEN, CLOSE = "[[", "]]"
"""Marks around what is trained on, for terminals without colours."""


@dataclass(frozen=True)
class PreviewRow:
    """A row of a source, and what encoding made of it."""

    row: int
    source: str
    location: str
    result: Encoded | Refused | None
    """None for a row that is held out."""

    @property
    def status(self) -> str:
        if self.result is None:
            return "held-out"
        if isinstance(self.result, Refused):
            return "refused"
        return "cut" if self.result.dropped else "kept"

    @property
    def reason(self) -> str | None:
        if self.result is None:
            return "data.held_out_share"
        if isinstance(self.result, Refused):
            return f"{self.result.reason}: {self.result.detail}" if self.result.detail else self.result.reason
        cuts = [f"{reason}: {count} tokens dropped" for reason, count in self.result.dropped.items()]
        return "; ".join(cuts) or None

    def turns(self) -> numpy.ndarray:
        """(tokens,) number of the assistant turn in which each token is supervised, -1 for none."""
        turns = numpy.full(len(self.result.tokens), -1)
        for number, (start, stop) in zip(self.result.turns, self.result.spans, strict=True):
            turns[start:stop] = number
        return turns

    def as_dict(self, encoder: Encoder) -> dict:
        tokens = []
        if isinstance(self.result, Encoded):
            tokens = [
                [int(token), encoder.tokenizer.piece(int(token)), bool(turn >= 0), int(turn)]
                for token, turn in zip(self.result.tokens, self.turns(), strict=True)
            ]
        return {
            "row": self.row,
            "source": self.source,
            "status": self.status,
            "reason": self.reason,
            "tokens": tokens,
        }


def preview_rows(
    encoder: Encoder, sources: Sequence[SourceFile], first: int, last: int, part: Part = WHOLE
) -> Iterator[PreviewRow]:
    """Rows first to last (inclusive) of every source, encoded as training on this part encodes them."""
    for source in sources:
        asked = islice(read_rows(source.path, KEYS), first, last + 1)
        while rows := list(islice(asked, ROWS_PER_TASK)):
            results = encode_rows(encoder, [row.payload for row in rows], part)
            for row, result in zip(rows, results, strict=True):
                yield PreviewRow(row.index, source.name, row.location, result and result[0])


class _Console(Console):
    """Leaves a closed pipe, as of `| head`, to run_command; rich would exit with an error."""

    def __init__(self, *, beside_a_page: bool):
        super().__init__(soft_wrap=True, theme=TERMINAL)
        self.beside_a_page = beside_a_page

    def on_broken_pipe(self) -> None:
        if not self.beside_a_page:
            raise BrokenPipeError
        self.quiet = True  # print no more, but go on for the page


def show(row: PreviewRow, encoder: Encoder, *, brackets: bool = False) -> Text:
    """A row: its title, why it was cut or refused, and its tokens, each in one of the styles above.

    With `brackets`, for terminals without colours, trained tokens are in double brackets.
    """
    title = f"{row.source} row {row.row}: {row.status}"
    if isinstance(row.result, Encoded):
        title += f", {row.result.supervised} of {len(row.result.tokens)} tokens trained on"
    text = Text.assemble((visible(title), "bold"))
    if row.reason:
        text.append(visible(f" ({row.reason})"), style=REASON)
    text.append("\n")
    if isinstance(row.result, Encoded):
        begins, inside = True, False
        for ids, supervised, control in _stretches(row, encoder):
            if brackets and supervised != inside:
                text.append(OPEN if supervised else CLOSE)
                inside = supervised
            style = TRAINED if supervised else CONTROL if control else MASKED
            text.append(visible(_readable(ids, control, begins, encoder)), style=style)
            begins = control
        text.append(f"{CLOSE}\n" if inside else "\n")
    return text


def _stretches(row: PreviewRow, encoder: Encoder) -> Iterator[tuple[list[int], bool, bool]]:
    """Yield (ids, supervised, control) of neighbouring tokens that look alike; control tokens come singly."""
    held: list[int] = []
    state = None
    for token, turn in zip(row.result.tokens.tolist(), row.turns().tolist(), strict=True):
        new = (turn >= 0, token in encoder.control_ids)
        if held and (new != state or new[1]):
            yield held, *state
            held = []
        state = new
        held.append(token)
    if held:
        yield held, *state


def _readable(ids: list[int], control: bool, begins: bool, encoder: Encoder) -> str:
    """The text of a stretch. `begins`: it is first or after a control token, so SentencePiece has put a space
    before it, which is left out."""
    if control:
        return encoder.tokenizer.piece(ids[0])
    text = encoder.tokenizer.decode([ids])[0]
    if not begins:  # decoding leaves the first space out here, too, where it is the text's own
        pieces = "".join(map(encoder.tokenizer.piece, ids))
        marks, spaces = len(pieces) - len(pieces.lstrip("▁")), len(text) - len(text.lstrip(" "))
        text = " " * (marks - spaces) + text
    return text


def _parse_rows(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", text, re.ASCII)
    if not match or int(match[2] or match[1]) < int(match[1]):
        raise UserError("--rows", f"must be a row or a range such as 0-9: {text}")
    return int(match[1]), int(match[2] or match[1])


def _show_all(rows: Iterable[PreviewRow], encoder: Encoder, html: str | None) -> None:
    """Print a legend and the rows to stdout, and write them to the page `html`, if there is to be one."""
    console = _Console(beside_a_page=bool(html))
    page = Console(record=True, soft_wrap=True, file=io.StringIO(), theme=PAGE) if html else None
    brackets = console.no_color or console.color_system is None
    legend = Text.assemble(
        ("trained on", TRAINED), "  ", ("read only", MASKED), "  ", ("control token", CONTROL)
    )
    console.print(f"{OPEN}trained on{CLOSE}  read only" if brackets else legend, markup=False)
    if page:
        page.print(legend)
    for row in rows:
        console.print(show(row, encoder, brackets=brackets))
        if page:
            page.print(show(row, encoder))
    if page:
        try:
            _write_page(page, Path(html).resolve())
        except OSError as error:
            raise UserError("--html", f"cannot be written: {html}: {error.strerror}") from None


def _write_page(page: Console, path: Path) -> None:
    """Replace a file as a whole; write into a pipe or a device, which must not be replaced."""
    if path.is_file() or not path.exists():
        files.write_text(path, page.export_html(code_format=PAGE_FORMAT))
    else:
        page.save_html(str(path), code_format=PAGE_FORMAT)


def main(arguments: Sequence[str]) -> None:
    parser = build_parser("fastling preview", "Show, token by token, what is trained on.")
    words = "rows of each source, counted from 0 (default: 0-4)"
    parser.add_argument("--rows", type=str, default="0-4", help=words)
    words = "only this source, of training or held-out data (default: all of training)"
    parser.add_argument("--source", type=str, help=words)
    parser.add_argument("--html", type=str, help="also write the rows as an HTML page")
    parser.add_argument("--json", action="store_true", help="print one JSON object per row on stdout")
    config, options = parse(parser, arguments)
    if options.html and options.json:
        raise UserError("--html", f"has no effect beside --json: {options.html}", "Remove one of the two.")
    sources = config.data.sources
    if options.source:
        everything = [*sources, *config.data.validation]
        named = [source for source in everything if source.name == options.source]
        if not named:
            names = ", ".join(source.name for source in everything)
            raise UserError("--source", f"no such source: {options.source}", f"There are: {names}.")
        sources = named
    if not sources:
        raise UserError("data.sources", "names no data", "Give a list of {name, path}.")
    encoder = make_encoder(config)
    part = Part(config.data.held_out_share or 0.0)
    rows = preview_rows(encoder, source_files(sources), *_parse_rows(options.rows), part)
    first = next(rows, None)
    if first is None:
        raise UserError("--rows", f"no source has these rows: {options.rows}", "Rows are counted from 0.")
    rows = chain([first], rows)
    if options.json:
        for row in rows:
            print_result(row.as_dict(encoder))
        return
    _show_all(rows, encoder, options.html)


if __name__ == "__main__":
    sys.exit(run_program(main))
