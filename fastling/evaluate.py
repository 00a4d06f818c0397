"""`fastling evaluate`: scores given outputs, or generates them with a model first, and reports results."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastling import files
from fastling.command_line import Parser, option_of
from fastling.errors import UserError, needing, run_program, visible
from fastling.evaluation.result import Result, TableData
from fastling.json_files import json_text
from fastling.terminal import make_console, print_result


class Kind(NamedTuple):
    """A kind of evaluation, which is in fastling/evaluation/<name>.py; `report` is in report_page.py."""

    summary: str
    usage: str
    """The options that it needs, as --help shows them."""


KINDS = {
    "translation": Kind(
        "BLEU, chrF and, by your own command, COMET",
        "--references F --target-lang L (--hypotheses F | --model DIR --sources F)",
    ),
    "constrained": Kind(
        "share of the required words that are in the translations, and BLEU",
        "--target-lang L (--predictions F | --model DIR --questions F)",
    ),
    "exam": Kind(
        "accuracy on multiple choice and cloze, in AGIEval's format",
        "--questions F [F ...] (--predictions F [F ...] | --model DIR)",
    ),
    "dialogue": Kind(
        "pairwise judging of multi-turn answers by a model behind a server",
        "--questions F (--answers F | --model DIR) --baseline F --judge-url U",
    ),
    "refinement": Kind(
        "what a model does to a draft when asked to correct it",
        "--questions F (--predictions F | --model DIR)",
    ),
    "instructions": Kind(
        "instructions over several turns and languages, checked by rules (Multi-IF)",
        "--questions F (--predictions F | --model DIR)",
    ),
    "report": Kind("a page of the results that --out saved", "--results F [F ...] --report F.html"),
}

PAGE_ENDINGS = (".html", ".htm")


def usage() -> str:
    lines = [
        "usage: fastling evaluate KIND [options]",
        "",
        "Score given outputs, or outputs that a model generates first.",
        "",
        *(f"  {name:<13} {kind.summary}" for name, kind in KINDS.items()),
        "",
        "fastling evaluate KIND --help shows the options of a kind. All but report have --out F.json,",
        "--report F.html and --json, which prints the scores as one JSON object on stdout.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    name, *rest = arguments
    if name not in KINDS:
        fix = f"The kinds are: {', '.join(KINDS)}."
        raise UserError("fastling evaluate", f"unknown kind: {name}", fix)
    console = make_console()
    if name == "report":
        _report(_report_options(rest), console)
        return
    with needing("eval", f"fastling evaluate {name}"):
        module = importlib.import_module(f"fastling.evaluation.{name}")
    options = _parse(name, module, rest)
    result = module.evaluate(options, console)
    _deliver(result, options, console)


def _parse(name: str, module: ModuleType, arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        f"fastling evaluate {name}", module.DESCRIPTION, f"fastling evaluate {name} {KINDS[name].usage}"
    )
    parser.set_defaults(kind=name)
    module.add_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="F.json", help="save the result, also for a report")
    group.add_argument("--json", action="store_true", help="print the scores as one JSON object on stdout")
    group.add_argument("--report", type=Path, metavar="F.html", help="write a page with tables and plots")
    options = parser.parse_args(arguments)
    if options.out:
        files.check_can_be_made("--out", options.out, ".json")
    if options.report:
        files.check_can_be_made("--report", options.report, *PAGE_ENDINGS)
    for option in ("out", "report"):
        _check_replaces_none(option, options)
    return options


def _check_replaces_none(option: str, options: argparse.Namespace) -> None:
    """Raise UserError if a result would replace a file that another option names."""
    written = getattr(options, option)
    for name, given in vars(options).items():
        paths = [path for path in (given if isinstance(given, list) else [given]) if isinstance(path, Path)]
        if written and name != option and written.resolve() in (path.resolve() for path in paths):
            what = f"is also {option_of(name)}, which it would replace: {written}"
            raise UserError(option_of(option), what, "Name another file.")


def _deliver(result: Result, options: argparse.Namespace, console: Console) -> None:
    """Print tables and notes to stderr; write the files, and with --json the scores to stdout.

    Raises the result's `failure`, if it has one, at the end.
    """
    for table in result.tables:
        console.print(_as_rich(table))
    for note in result.notes:
        console.print(note, soft_wrap=True)
    kept = result.as_json()
    if options.out:
        files.write_text(options.out, json_text(kept))
    if options.report:
        from fastling.evaluation.report_page import page_of

        files.write_text(options.report, page_of([(options.report.stem, kept)]))
    for path in (options.out, options.report):
        if path:
            console.print(f"written: {path}", soft_wrap=True)
    if options.json:
        print_result({"kind": result.kind, **result.scores})
    if result.failure:
        raise result.failure


def _as_rich(data: TableData) -> Table:
    table = Table(title=Text(visible(data.title)), title_justify="left")
    for number, name in enumerate(data.columns):
        # Folded if there is no room, not cut: 10… may be 100.0, and a signature is there to be copied.
        table.add_column(Text(visible(name)), justify="right" if number else "left", overflow="fold")
    for row in data.rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def _report_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "fastling evaluate report",
        "Write a page of the results that --out saved, for one model or several.",
        f"fastling evaluate report {KINDS['report'].usage}",
    )
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        required=True,
        metavar="F.json",
        help="files written by --out; the page calls them by their names",
    )
    parser.add_argument("--report", type=Path, required=True, metavar="F.html", help="page to write")
    options = parser.parse_args(arguments)
    files.check_can_be_made("--report", options.report, *PAGE_ENDINGS)
    return options


def _report(options: argparse.Namespace, console: Console) -> None:
    from fastling.evaluation.report_page import page_of, read_result

    results = [(path.stem, read_result(path)) for path in options.results]
    files.write_text(options.report, page_of(results))
    console.print(f"written: {options.report}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run_program(main))
