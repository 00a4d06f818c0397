"""`fastling evaluate dialogue`: multi-turn answers, judged pairwise against a baseline's.

As in the BayLing paper's evaluation on BayLing-80, a judge scores both answers of a pair. The result has
wins, ties and losses, and the ratio of the sums of scores.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from fastling.command_line import Parser, check_positive
from fastling.errors import UserError, needing
from fastling.evaluation.answering import (
    Question,
    add_model_options,
    answer_questions,
    check_source,
    failures_of,
)
from fastling.evaluation.conversation_answers import ANSWER_FORMS, answers_of, read_name, texts_of
from fastling.evaluation.records import read_records
from fastling.evaluation.result import Result
from fastling.terminal import make_progress

DESCRIPTION = "Judge answers of one or more turns against a baseline's, through an OpenAI-compatible server."
PAPERS_JUDGE = "gpt-4"


class Asked(NamedTuple):
    """What a user asks, turn by turn."""

    category: str
    turns: tuple[str, ...]


def add_options(parser: Parser) -> None:
    """Add the options for files, for the judge, and for a model that answers if no answers are given."""
    add = parser.add_argument
    add("--questions", type=Path, required=True, metavar="F", help='rows: question_id, "text" or "turns"')
    add("--answers", type=Path, metavar="F", help=f"rows: question_id and {ANSWER_FORMS}")
    add("--baseline", type=Path, required=True, metavar="F", help="answers to compare with, in the same form")
    add("--judge-url", required=True, metavar="U", help="OpenAI-compatible server, up to /v1")
    add("--judge-model", default=PAPERS_JUDGE, metavar="M", help=f"the judge (default: {PAPERS_JUDGE})")
    add(
        "--judge-cache",
        type=Path,
        metavar="F",
        help="where the answers of this address and model are kept, so that none is paid for twice "
        "(default: beside --out or --answers, .judge.sqlite)",
    )
    add("--judge-budget-tokens", type=int, metavar="N", help="for all kept answers, prompts included")
    add(
        "--judge-requests",
        type=int,
        default=16,
        metavar="N",
        help="requests in flight (default: 16)",
    )
    add(
        "--judge-timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds to wait for an answer (default: 120)",
    )
    add(
        "--judge-prompts",
        type=Path,
        metavar="DIR",
        help="folder of your own prompt, named as in fastling/evaluation/prompts: dialogue.txt; it asks for "
        "two scores from 1 to 10, or for [[A]], [[B]] or, for a tie, [[C]]",
    )
    add_model_options(parser)


def evaluate(options: argparse.Namespace, console: Console) -> Result:
    """Read or generate the answers, have them judged, and sum up.

    Raises UserError for invalid options and files, and RunError if nothing can be judged.
    """
    check_source(options, "answers")
    check_positive(options, ("judge_budget_tokens", "judge_requests", "judge_timeout"))
    with needing("eval", "--judge-url"):
        from fastling.evaluation.judge import Pair, judge_pairs, load_prompt
        from fastling.evaluation.judge_summary import summarize
        from fastling.remote import Server, check_address
    check_address(options.judge_url, "--judge")  # before a model spends hours on answers
    prompt = load_prompt(options.judge_prompts)
    questions = read_questions(options.questions)
    baseline, baseline_notes = read_answers(options.baseline, questions)
    ours, failed, notes = _our_answers(options, questions, console)
    questions = {key: asked for key, asked in questions.items() if key in ours}
    pairs = [Pair(key, *asked, ours[key], baseline[key]) for key, asked in questions.items()]
    with make_progress(console) as progress:
        task = progress.add_task("judging", total=len(pairs))
        judgements, failures, tokens = judge_pairs(
            pairs,
            lambda: Server(
                options.judge_url,
                options.judge_model,
                _cache(options),
                option="--judge",
                budget_tokens=options.judge_budget_tokens,
                requests_in_flight=options.judge_requests,
                timeout_seconds=options.judge_timeout,
            ),
            prompt,
            lambda tokens: progress.update(task, advance=1, description=f"judging, {tokens:,} tokens"),
        )
    if failures.stopped and not judgements:
        raise failures.stopped
    result = summarize(pairs, judgements, failures, judge=options.judge_model, tokens=tokens)
    return replace(result, scores=result.scores | failed, notes=result.notes + notes + baseline_notes)


def _cache(options: argparse.Namespace) -> Path:
    beside = options.out or options.answers or Path("dialogue")
    return options.judge_cache or beside.with_name(beside.name + ".judge.sqlite")


def _our_answers(
    options: argparse.Namespace, questions: dict[str, Asked], console: Console
) -> tuple[dict[str, tuple[str, ...]], dict, tuple[str, ...]]:
    """(question_id -> answers, read or generated; failures of the model that generated them; notes)."""
    if options.answers:
        answers, notes = read_answers(options.answers, questions)
        return answers, {}, notes
    asked = dict(list(questions.items())[: options.limit])
    answered = answer_questions(options, [Question(question.turns) for question in asked.values()], console)
    counts, notes = failures_of(answered)
    texts = [tuple(answer.text for answer in answers) for answers in answered]
    return dict(zip(asked, texts, strict=True)), {"answers": counts}, notes


# Files ----------------------------------------------------------------------------------------------


def read_questions(path: Path) -> dict[str, Asked]:
    """question_id -> question. Raises UserError with file and line."""
    questions = {}
    for where, key, row in _named_rows(path):
        turns = texts_of(row.get("text", row.get("turns")))
        if not turns or not all(turn.strip() for turn in turns):
            raise UserError(where, "asks nothing", 'Expected "text": a question, or a list of one a turn.')
        category = row.get("category") or "none"
        if not isinstance(category, str):
            raise UserError(where, f"category must be text: {category!r:.80}")
        questions[key] = Asked(category, tuple(turns))
    return questions


def read_answers(
    path: Path, questions: dict[str, Asked]
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """(question_id -> an answer for each turn, for all questions; a note if rows answer no question).

    An answer may be empty. Raises UserError with file and line.
    """
    answers, others = {}, 0
    for where, key, row in _named_rows(path):
        if key not in questions:
            others += 1
            continue
        found = answers_of(row, where)
        turns = questions[key].turns
        if len(found) != len(turns):
            raise UserError(where, f"holds {len(found)} answers; the turns are {len(turns)}")
        answers[key] = tuple(found)
    missing = [key for key in questions if key not in answers]
    if missing:
        named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        what = f"{len(missing)} of {len(questions)} questions have no answer: {named:.200}"
        raise UserError(str(path), what, "Nothing was judged yet; an empty answer is a row with empty text.")
    note = f"answers in {path.name} that no question asks for: {others:,}"
    return answers, (note,) if others else ()


def _named_rows(path: Path) -> Iterator[tuple[str, str, dict]]:
    """Yield (file:line, question_id, row). Raises UserError for a question_id that comes twice."""
    seen: dict[str, str] = {}
    for where, row in read_records(path):
        key = read_name(row, "question_id", where)
        if key in seen:
            raise UserError(where, f"question_id {key:.80} is given twice", f"First in {seen[key]}.")
        seen[key] = where
        yield where, key, row
