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

ANSWER_FORMS = '"answers": [..], "choices": [{"turns": [..]}], "messages": [..] or "text": [..]'


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

    Rows of conversations that are not asked are passed over. Raises UserError for one row too many of those
    that are: which of two answers counts must not depend on their order.
    """
    found: dict[str, deque[tuple[str, list[str]]]] = defaultdict(deque)
    for location, record in read_records(path):
        found[read_name(record, key, location)].append((location, answers_of(record, location)))
    missing = [each.name for each in asked if each.name not in found]
    if missing:
        what = f"has no answers to {len(missing):,} of {len(asked):,} conversations: {missing[0]:.80}"
        raise UserError(str(path), what, "An empty answer is an empty text.")
    taken = [_taken(path, found[each.name], each, key) for each in asked]
    for each in asked:
        for location, _ in found[each.name]:
            fix = "Keep one row for each conversation of that name."
            raise UserError(location, f"{key} {each.name:.80} is answered already", fix)
    return taken


def answers_of(record: dict, location: str) -> list[str]:
    """The texts of a row of answers, one a turn; of a row of several forms the first of ANSWER_FORMS counts.

    Raises UserError where they are no texts.
    """
    if "answers" in record:
        found = record["answers"]
    elif "choices" in record:  # as FastChat writes
        found = _get(_only_choice(record["choices"], location), "turns")
    elif "messages" in record:
        messages = record["messages"] if isinstance(record["messages"], list) else [None]
        found = [_get(each, "content") for each in messages if _get(each, "role") == "assistant"]
    else:
        found = record.get("text")
    texts = texts_of(found)
    if texts is None:
        raise UserError(location, "holds no answers that are texts", f"Expected {ANSWER_FORMS}.")
    return texts


def _only_choice(choices: Any, location: str) -> Any:
    if not isinstance(choices, list) or not choices:
        return None
    if len(choices) > 1:
        raise UserError(location, f"holds {len(choices)} choices", "Keep the one that is to be judged.")
    return choices[0]


def _get(record: Any, name: str) -> Any:
    return record.get(name) if isinstance(record, dict) else None


def texts_of(value: Any) -> list[str] | None:
    """One text or several as a list; None for anything else, half characters among it."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        return None
    return texts


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
