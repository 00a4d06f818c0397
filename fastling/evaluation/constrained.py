"""Scores translations that must include given words, the constraints: the share of them met, and BLEU.

In the paper's count a constraint is met if it occurs in the output, in the same letter case. Part of a word
may therefore meet it, and one piece of output may meet two constraints. Our own count, by whole words,
allows neither. A row without constraints counts for BLEU alone.
"""

import argparse
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from fastling.command_line import Parser
from fastling.errors import UserError
from fastling.evaluation.answering import add_model_options, check_source, model_name
from fastling.evaluation.bleu import (
    check_target_language,
    notes_of_language,
    notes_of_scores,
    score_translations,
    table_of_scores,
)
from fastling.evaluation.characters import HAN, HANGUL, KANA, SOUTH_EAST_ASIAN
from fastling.evaluation.records import Record, read_records
from fastling.evaluation.result import Result, TableData
from fastling.evaluation.translation import (
    add_target_language,
    add_user_language,
    check_user_language,
    request,
    translate,
)

DESCRIPTION = (
    "Count the words asked for that occur in the translations, in percent: by word, and by sentence with all "
    "of them. A prediction is a row with tgt (the reference), constraint (a list of words) and hypo."
)
UNSPACED = re.compile(f"[{HAN}{KANA}{HANGUL}{SOUTH_EAST_ASIAN}]")
"""Letters of scripts that put no spaces between words, or none between words and their endings (Korean)."""


class Row(NamedTuple):
    """A reference translation, and the words that a translation must include."""

    reference: str
    constraints: tuple[str, ...]


class Shares(NamedTuple):
    """Shares of what is met, in percent."""

    of_words: float
    of_sentences: float
    """Sentences that contain all their constraints."""


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--predictions", type=Path, metavar="F", help="JSON lines with tgt, constraint and hypo")
    add("--questions", type=Path, metavar="F", help="with --model: JSON lines with src, tgt and constraint")
    add_target_language(parser, "translations")
    add_user_language(parser)
    add_model_options(parser)


def evaluate(options: argparse.Namespace, console: Console) -> Result:
    """Score translations. Raises UserError for wrong options and rows, before a model is asked."""
    check_target_language(options.target_lang, asks_model=bool(options.model))
    check_source(options, "predictions")
    check_user_language(options)
    if options.model and not options.questions:
        raise UserError("--questions", "is needed with --model")
    if options.questions and not options.model:
        raise UserError("--questions", "has no effect without --model", "--predictions hold the constraints.")
    records = read_records(options.questions or options.predictions)[: options.limit]
    rows = [_row(record) for record in records]
    free = sum(not row.constraints for row in rows)
    if free == len(rows):
        where = str(options.questions or options.predictions)
        raise UserError(where, "holds no constraints", "BLEU alone is of `fastling evaluate translation`.")
    if options.model:
        user_language = options.user_lang or "en"
        requests = [
            _request(record.text("src"), row.constraints, options.target_lang, user_language)
            for record, row in zip(records, rows, strict=True)
        ]
        outputs, counts, notes = translate(options, requests, console)
    else:
        outputs, counts, notes = [record.text("hypo") for record in records], {}, ()
    scores, tables = _score(options, rows, outputs, console)
    notes = (
        *notes,
        *notes_of_scores(scores),
        *notes_of_language(options.target_lang),
        *((f"{free:,} of {len(rows):,} rows ask for no words: counted for BLEU alone",) if free else ()),
        "by whole words, our own count: NFKC, whole words where words are spaced, longest first, no two in "
        f"one place; by it the references themselves reach {scores['reference_whole_word_accuracy']:.2f} %",
    )
    return Result("constrained", scores | counts, tables, notes)


def _row(record: Record) -> Row:
    constraints = record.fields.get("constraint")
    if not isinstance(constraints, list):
        what = "lacks constraint" if constraints is None else "constraint must be a list of words"
        raise UserError(record.location, what, 'Write "constraint": ["word", ...].')
    if not all(isinstance(each, str) and each.strip() for each in constraints):
        raise UserError(record.location, "constraint must hold words that are text and not empty")
    return Row(record.text("tgt"), tuple(constraints))


def _request(source: str, constraints: Sequence[str], target_language: str, user_language: str) -> str:
    """The request to a model, in the paper's two lines; only the first if there are no constraints."""
    if not constraints:
        return request(source, target_language, user_language)
    asked = {"en": "Make sure to include these words: ", "zh": "确保包含这些词："}[user_language]
    return f"{request(source, target_language, user_language)}\n{asked}{', '.join(constraints)}"


def _score(
    options: argparse.Namespace, rows: Sequence[Row], outputs: Sequence[str], console: Console
) -> tuple[dict, tuple[TableData, ...]]:
    references = [row.reference for row in rows]
    with console.status("scoring"):
        bleu = score_translations(outputs, references, options.target_lang)
    asked = [(row, text) for row, text in zip(rows, outputs, strict=True) if row.constraints]
    plain = shares([occurring(row.constraints, text) for row, text in asked])
    whole = shares([as_whole_words(row.constraints, text) for row, text in asked])
    ceiling = shares([as_whole_words(row.constraints, row.reference) for row, _ in asked])
    scores = {
        "target_lang": options.target_lang,
        "constraints": sum(len(row.constraints) for row in rows),
        "constrained_sentences": len(asked),
        "word_accuracy": plain.of_words,
        "sentence_accuracy": plain.of_sentences,
        "whole_word_accuracy": whole.of_words,
        "whole_word_sentence_accuracy": whole.of_sentences,
        "reference_whole_word_accuracy": ceiling.of_words,
        **bleu,
    }
    name = model_name(options.model) if options.model else options.predictions.name
    table = TableData(
        f"{name}: {scores['constraints']:,} constraints in {len(asked):,} sentences, share met in percent",
        ("counted", "by word", "by sentence"),
        (
            ("as the paper does: occurs in the output", *(f"{share:.2f}" for share in plain)),
            ("by whole words, no two in one place", *(f"{share:.2f}" for share in whole)),
        ),
    )
    return scores, (table, table_of_scores(bleu, f"translation into {options.target_lang}"))


def occurring(constraints: Sequence[str], text: str) -> list[bool]:
    """For each constraint, whether it occurs in the output, in the same letter case: the paper's count."""
    return [constraint in text for constraint in constraints]


def as_whole_words(constraints: Sequence[str], text: str) -> list[bool]:
    """For each constraint, whether it occurs as whole words in its own place; the longest choose first."""
    text = _normalize(text)
    free = [True] * len(text)
    met = [False] * len(constraints)
    normalized = [_normalize(constraint) for constraint in constraints]
    for number in sorted(range(len(constraints)), key=lambda number: -len(normalized[number])):
        constraint = normalized[number]
        start = text.find(constraint)
        while start >= 0:
            stop = start + len(constraint)
            if all(free[start:stop]) and _stands_alone(text, start, stop):
                free[start:stop] = [False] * len(constraint)
                met[number] = True
                break
            start = text.find(constraint, start + 1)
    return met


def _normalize(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _stands_alone(text: str, start: int, stop: int) -> bool:
    """Whether text[start:stop] is not part of a longer word."""
    beginning = start == 0 or not _joined(text[start - 1], text[start])
    return beginning and (stop == len(text) or not _joined(text[stop - 1], text[stop]))


def _joined(left: str, right: str) -> bool:
    """Whether two neighbouring characters are of one word: letters, numbers, marks of scripts with spaces."""
    return all(
        (unicodedata.category(each)[0] in "LNM") and not UNSPACED.match(each) for each in (left, right)
    )


def shares(met: Sequence[Sequence[bool]]) -> Shares:
    """The shares that are met; `met` has a list for each sentence, with a value for each constraint."""
    words = [each for sentence in met for each in sentence]
    return Shares(100 * sum(words) / len(words), 100 * sum(map(all, met)) / len(met))
