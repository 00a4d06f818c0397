"""Scores translations against references: BLEU and chrF by sacrebleu, COMET by a command of the user's."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fastling.command_line import Parser
from fastling.errors import RunError, UserError
from fastling.evaluation.answering import (
    Question,
    add_model_options,
    answer_questions,
    check_source,
    failures_of,
    model_name,
)
from fastling.evaluation.bleu import (
    LANGUAGES,
    check_target_language,
    language_code,
    notes_of_language,
    notes_of_scores,
    one_line,
    score_translations,
    table_of_scores,
)
from fastling.evaluation.comet import check_command, comet
from fastling.evaluation.records import check_same_number, read_lines
from fastling.evaluation.result import Result, TableData

DESCRIPTION = "Score translations by BLEU and chrF, with the tokenizer of the target language, and by COMET."


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--references", type=Path, required=True, metavar="F", help="text, one sentence per line")
    add("--hypotheses", type=Path, metavar="F", help="the translations, line by line")
    add("--sources", type=Path, metavar="F", help="the text that was translated: for --model and COMET")
    add_target_language(parser, "references")
    add("--bootstrap", type=int, metavar="N", help="resample N times for intervals of 95 %% (default: none)")
    add("--comet-command", metavar="C", help="comet-score, with its path and options, for COMET too")
    add_user_language(parser)
    add_model_options(parser)


def add_target_language(parser: Parser, of_what: str) -> None:
    """Add --target-lang, which chooses BLEU's tokenizer."""
    words = f"language of the {of_what}: any code; zh, ja and ko are cut into words, others at spaces"
    parser.add_argument("--target-lang", type=language_code, required=True, metavar="L", help=words)


def add_user_language(parser: Parser) -> None:
    """Add --user-lang, the language in which a model is asked."""
    parser.add_argument(
        "--user-lang", choices=("en", "zh"), help="with --model: language of the requests (default: en)"
    )


def check_user_language(options: argparse.Namespace) -> None:
    if options.user_lang and not options.model:
        raise UserError("--user-lang", "has no effect without --model")


def request(source: str, target_language: str, user_language: str) -> str:
    """The request for a translation, as the paper's evaluation words it."""
    names = LANGUAGES[target_language]
    if user_language == "zh":
        return f"提供这句话的{names.chinese}翻译：{source}"
    return f"Provide the {names.english} translation for this sentence: {source}"


def evaluate(options: argparse.Namespace, console: Console) -> Result:
    """Score translations. Raises UserError for wrong options and files, before a model is asked."""
    command = _check(options)
    references = read_lines(options.references)
    sources = read_lines(options.sources) if options.sources else None
    if sources is not None:
        check_same_number(options.sources, sources, "sources", options.references, references)
    if options.model:
        references, sources = references[: options.limit], sources[: options.limit]
        user_language = options.user_lang or "en"
        requests = [request(source, options.target_lang, user_language) for source in sources]
        hypotheses, counts, notes = translate(options, requests, console)
    else:
        hypotheses, counts, notes = read_lines(options.hypotheses), {}, ()
        check_same_number(options.hypotheses, hypotheses, "hypotheses", options.references, references)
    with console.status("scoring"):
        scores = score_translations(
            hypotheses, references, options.target_lang, bootstrap=options.bootstrap or 0
        )
    scores = {"target_lang": options.target_lang, **scores, **counts}
    name = model_name(options.model) if options.model else options.hypotheses.name
    table = table_of_scores(scores, f"{name}: {len(references):,} sentences into {options.target_lang}")
    notes = (*notes, *notes_of_scores(scores), *notes_of_language(options.target_lang))
    result = Result("translation", scores, (table,), notes)
    return _with_comet(result, command, sources, hypotheses, references, console) if command else result


def _check(options: argparse.Namespace) -> list[str] | None:
    """Check the options. Returns COMET's command as words, if one was given."""
    check_target_language(options.target_lang, asks_model=bool(options.model))
    check_source(options, "hypotheses")
    check_user_language(options)
    if options.bootstrap is not None and options.bootstrap < 2:
        raise UserError("--bootstrap", f"must be at least 2: {options.bootstrap}")
    needs = "--model" if options.model else "--comet-command" if options.comet_command else None
    if needs and not options.sources:
        raise UserError("--sources", f"is needed with {needs}")
    if options.sources and not needs:
        raise UserError("--sources", "has no effect without --model or --comet-command")
    return None if options.comet_command is None else check_command(options.comet_command)


def translate(
    options: argparse.Namespace, requests: Sequence[str], console: Console
) -> tuple[list[str], dict[str, int], tuple[str, ...]]:
    """(a model's translations, each on one line; counts of what went wrong; the same in words, as notes)."""
    answers = answer_questions(options, [Question((text,)) for text in requests], console)
    counts, notes = failures_of(answers)
    return [one_line(answer.text) for [answer] in answers], counts, notes


def _with_comet(
    result: Result,
    command: list[str],
    sources: list[str],
    hypotheses: list[str],
    references: list[str],
    console: Console,
) -> Result:
    """The result with COMET's score, or with COMET's error as `failure`, so that BLEU is not lost."""
    try:
        with console.status("COMET"):
            found = comet(command, sources, hypotheses, references)
    except RunError as error:
        scores = result.scores | {"comet": None}
        return dataclasses.replace(result, scores=scores, failure=error)
    table = TableData(
        "COMET, as its command gives it",
        ("model", "score"),
        ((found["comet_model"], f"{found['comet']:.4f}"),),
    )
    return dataclasses.replace(result, scores=result.scores | found, tables=(*result.tables, table))
