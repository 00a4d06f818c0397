"""Answers to the user turns of conversations: read from a file of predictions, or asked of a model."""

import argparse
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from fastling.errors import UserError
from fastling.evaluation.answering import Question, answer_questions, failures_of
from fastling.evaluation.records import read_records

ANSWER_FORMS = '"answers": [one text a user turn], "messages", or "text" where there is one turn'


class Asked(NamedTuple):
    """A conversation that is to be answered, turn by turn."""

    name: str
    """Its id or key; where several have the same, their order tells them apart."""
    question: Question


class Answers(NamedTuple):
    """What was answered to every turn of every conversation."""

    texts: list[list[str]]
    counts: dict[str, int]
    """Answers that are empty, did not fit the context, or were cut."""
    notes: tuple[str, ...]
    """The same in words."""


def answers_to(options: argparse.Namespace, asked: Sequence[Asked], key: str, console: Console) -> Answers:
    """The answers in --predictions, or the model's, its own earlier answers being the history.

    `key` is the column of the conversations' names. Raises UserError for predictions that do not fit.
    """
    if options.model is None:
        texts = read_predictions(options.predictions, asked, key)
        counts, notes = failures_of([])
    else:
        answers = answer_questions(options, [each.question for each in asked], console)
        texts = [[answer.text for answer in turns] for turns in answers]
        counts, notes = failures_of(answers)
    total = sum(map(len, texts))
    empty = sum(not text.strip() for turns in texts for text in turns)
    if empty:
        notes += (f"{empty:,} of {total:,} answers are empty, and scored as such",)
    return Answers(texts, {"answers": total, "empty": empty, **counts}, notes)


def read_predictions(path: Path, asked: Sequence[Asked], key: str) -> list[list[str]]:
    """Rows that name a conversation by `key` and give the answers to its turns; in any order.

    Rows of conversations that are not asked are passed over.
    """
    found: dict[str, deque[tuple[str, list[str]]]] = defaultdict(deque)
    for location, record in read_records(path):
        found[read_name(record, key, location)].append((location, _answers_of(record, location)))
    missing = [each.name for each in asked if each.name not in found]
    if missing:
        what = f"has no answers to {len(missing):,} of {len(asked):,} conversations: {missing[0]:.80}"
        raise UserError(str(path), what, "An empty answer is an empty text.")
    return [_taken(path, found[each.name], each, key) for each in asked]


def _answers_of(record: dict, location: str) -> list[str]:
    answers: Any = record.get("answers")
    if answers is None and isinstance(record.get("messages"), list):
        said = [each for each in record["messages"] if isinstance(each, dict)]
        answers = [each.get("content") for each in said if each.get("role") == "assistant"]
    elif answers is None:
        answers = [record.get("text")]
    if not isinstance(answers, list) or not all(isinstance(text, str) for text in answers):
        raise UserError(location, "has no answers that are texts", f"Give {ANSWER_FORMS}.")
    return answers


def _taken(path: Path, rows: deque[tuple[str, list[str]]], asked: Asked, key: str) -> list[str]:
    if not rows:
        raise UserError(str(path), f"has fewer rows than questions of the {key} {asked.name:.80}")
    location, answers = rows.popleft()
    if len(answers) != len(asked.question.turns):
        raise UserError(
            location,
            f"{len(answers)} answers to the {len(asked.question.turns)} user turns of {key} {asked.name:.80}",
            "Give one answer for each turn of the user.",
        )
    return answers


def read_name(record: dict, key: str, location: str) -> str:
    """What a row is called, as text; 1 and "1" are the same. Raises UserError where it is called nothing."""
    name = record.get(key)
    if isinstance(name, bool) or not isinstance(name, (int, str)) or not str(name).isprintable():
        raise UserError(location, f"has no {key}", f"Each row needs the {key} of its conversation.")
    return str(name)


def percent(part: int, whole: int) -> float | None:
    """None where there is nothing to take a share of."""
    return 100 * part / whole if whole else None
