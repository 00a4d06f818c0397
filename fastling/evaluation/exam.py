"""Scores exams in AGIEval's format, multiple choice and cloze, zero-shot, by accuracy in percent.

A question is a row {"passage", "question", "options": ["(A)...", ...] or null, "label": "B", "AC" or
["A", "C"], "answer": of a cloze}. If no answer can be read from a prediction, it is counted as unanswered;
nothing is guessed.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import NamedTuple

from rich.console import Console

from fastling.command_line import Parser
from fastling.errors import UserError
from fastling.evaluation import cloze
from fastling.evaluation.answering import (
    Question,
    add_model_options,
    answer_questions,
    check_source,
    failures_of,
    model_name,
)
from fastling.evaluation.characters import HAN
from fastling.evaluation.choices import Choice, extract_choice
from fastling.evaluation.records import Record, check_same_number, read_records
from fastling.evaluation.result import Result, TableData, cell, percent

DESCRIPTION = (
    "Score answers to exams in AGIEval's format. The choice is read out of each text; a text without a clear "
    "one is unanswered, and counted as wrong. Cloze answers must be equal after normalisation, or as numbers."
)
MARK = re.compile(r"^\s*[(（][A-Z][)）]|^\s*[A-Z][.．、:：](?=\s|[^\x00-\x7f])")
"""The mark before an option's text. It is sometimes wrong, so an option's position decides its letter."""
CHINESE = re.compile(f"[{HAN}]")
START_TOKENS = re.compile(r"\A(?:\s*(?:<s>|<\|\w+\|>)(?:assistant)?)+")
END_TOKEN = re.compile(r"</s>|<\|\w+\|>|<(?:end|start)_of_turn>")
REASONING = re.compile("<(?:think|thinking|thought|reasoning)>", re.I)
REASONED = re.compile("</(?:think|thinking|thought|reasoning)>", re.I)
NEXT_QUESTION = re.compile(
    r"\n\s*(?:#+\s*|\*\*)?(?:question|q|human|user|instruction|问题|题目|问|用户)\s*\d*\s*(?:\*\*)?[:：]",
    re.I,
)
ASKS_FOR_WRONG = re.compile("(?:错误|不正确|不恰当|不符合[^，。]{0,6}|有误|不当)的")
WRONG_ONE = re.compile(
    "(?:错误|不正确|不恰当|不符合[^，。]{0,6}|有误|不当)的(?:说法|一项|选项|描述|表述|判断|结论)?(?:应该|应|就)?"
    r"(?:是|为|有)\s*[:：]?\s*(?=(?:选项)?\s*[(（]?[A-ZＡ-Ｚ])"
)
"""How a text names the incorrect option, which is the answer if the question asks for it."""

WISHES = {
    (False, True): 'Choose the right option. End with "The answer is" and its letter.',
    (False, False): 'Fill in the blank. End with "The answer is" and the result; '
    "put semicolons between several.",
    (True, True): "请选出正确的选项，最后以“答案是”加选项字母结尾。",
    (True, False): "请填空，最后以“答案是”加结果结尾；有多个空时用分号隔开。",
}
"""The last line of a prompt; it depends on whether the question is Chinese and has options."""


@dataclass(frozen=True)
class Item:
    """One question of an exam."""

    question: str
    passage: str
    options: tuple[str, ...]
    """The options' texts, without letters; none for a cloze."""
    letters: Choice
    """The letters of the right options; none for a cloze."""
    answer: str
    """The right answer of a cloze, with semicolons between several blanks; else empty."""


class Score(NamedTuple):
    """Counts for one file, or for all of them."""

    questions: int
    answered: int
    right: int
    expected_of_guessing: float
    """Expected number of right guesses: 1 / options for a question with one right letter, else 0."""


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--questions", type=Path, nargs="+", required=True, metavar="F", help="AGIEval's JSON lines")
    add(
        "--predictions", type=Path, nargs="+", metavar="F",
        help="JSON lines with text, one per question, in order; a file for each file of questions",
    )  # fmt: skip
    add_model_options(parser)


def evaluate(options: argparse.Namespace, console: Console) -> Result:
    """Score the answers. Raises UserError for wrong options and rows, before a model is asked."""
    check_source(options, "predictions")
    exams = [[read_item(record) for record in read_records(path)] for path in options.questions]
    if options.model:
        exams = [items[: options.limit] for items in exams]
        texts, counts, notes = _ask(options, exams, console)
    else:
        texts, counts, notes = _read_predictions(options, exams), {}, ()
    scores = [score_items(items, said) for items, said in zip(exams, texts, strict=True)]
    total = Score(*map(sum, zip(*scores, strict=True)))
    by_file = [
        {"file": path.name, **_as_scores(score)}
        for path, score in zip(options.questions, scores, strict=True)
    ]
    unanswered = total.questions - total.answered
    if unanswered:
        notes = (
            *notes,
            f"{unanswered:,} of {total.questions:,} without a clear answer: counted as wrong, not guessed",
        )
    name = model_name(options.model) if options.model else options.predictions[0].name
    return Result(
        "exam",
        _as_scores(total) | {"by_file": by_file} | counts,
        (_table(f"{name}: in percent", by_file, total),),
        notes,
    )


def read_item(record: Record) -> Item:
    """The question of a row. Raises UserError, with file and line, for a row that is no question."""
    options = record.fields.get("options")
    question = record.text("question")
    passage = record.text("passage") if record.fields.get("passage") else ""
    if not options:
        if record.fields.get("answer") is None:
            raise UserError(record.location, "has neither options nor an answer", "A cloze needs its answer.")
        answer = record.text("answer")
        if not answer.strip():
            raise UserError(record.location, "answer is empty")
        return Item(question, passage, (), frozenset(), answer)
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise UserError(record.location, "options must be a list of texts")
    if not 2 <= len(options) <= 26:
        raise UserError(record.location, f"has {len(options)} options; expected 2 to 26")
    letters = ascii_uppercase[: len(options)]
    texts = [MARK.sub("", option, count=1).strip() for option in options]
    return Item(question, passage, tuple(texts), _label(record, letters), "")


def _label(record: Record, letters: str) -> Choice:
    label = record.fields.get("label")
    if label is None:
        raise UserError(record.location, "lacks label, the letter of the right option")
    parts = label if isinstance(label, list) else [label]
    text = " ".join(part for part in parts if isinstance(part, str))
    found = frozenset(re.findall("[A-Z]", text.upper()))
    if (
        not found
        or not found <= set(letters)
        or re.search(r"[^A-Za-z\s(),、;]", text)
        or not all(isinstance(part, str) for part in parts)
    ):
        raise UserError(
            record.location, f"label must name options, {letters[0]} to {letters[-1]}: {label!r:.60}"
        )
    return found


def prompt_of(item: Item) -> str:
    """The prompt for a question. Its last line says how the answer should end, in Chinese or in English."""
    is_chinese = bool(CHINESE.search("".join([item.question, *item.options])))
    lines = [item.passage, item.question]
    lines += [f"({letter}) {option}" for letter, option in zip(ascii_uppercase, item.options, strict=False)]
    wish = WISHES[is_chinese, bool(item.options)]
    return "\n".join([*(line.strip() for line in lines if line.strip()), wish])


def _ask(
    options: argparse.Namespace, exams: Sequence[Sequence[Item]], console: Console
) -> tuple[list[list[str]], dict[str, int], tuple[str, ...]]:
    questions = [Question((prompt_of(item),)) for items in exams for item in items]
    answers = answer_questions(options, questions, console)
    texts = iter(answer.text for [answer] in answers)
    counts, notes = failures_of(answers)
    return [[next(texts) for _ in items] for items in exams], counts, notes


def _read_predictions(options: argparse.Namespace, exams: Sequence[Sequence[Item]]) -> list[list[str]]:
    if len(options.predictions) != len(options.questions):
        what = f"{len(options.predictions)} files for {len(options.questions)} of --questions"
        raise UserError("--predictions", what, "Name one for each, in their order.")
    texts = []
    for path, questions, items in zip(options.predictions, options.questions, exams, strict=True):
        said = [record.text("text") for record in read_records(path)]
        check_same_number(path, said, "predictions", questions, items)
        texts.append(said)
    return texts


def score_items(items: Sequence[Item], texts: Sequence[str]) -> Score:
    """Count the questions that the texts answer, and those that they answer right."""
    verdicts = [verdict(item, text) for item, text in zip(items, texts, strict=True)]
    guessing = sum(1 / len(item.options) for item in items if len(item.letters) == 1)
    answered = sum(each is not None for each in verdicts)
    return Score(len(items), answered, verdicts.count(True), guessing)


def verdict(item: Item, text: str) -> bool | None:
    """Whether a text is right; None if it gives no clear answer. It must give all of several right letters.

    A model that does not stop may continue with its own question, so the text before that is read first.
    """
    text = answer_of(text)
    before = NEXT_QUESTION.split(text, maxsplit=1)[0]
    found = _verdict(item, before)
    return _verdict(item, text) if found is None and before != text else found


def _verdict(item: Item, text: str) -> bool | None:
    if not item.options:
        return cloze.is_right(text, item.answer)
    if ASKS_FOR_WRONG.search(item.question):
        text = WRONG_ONE.sub("正确的是", text)
    choice = extract_choice(text, item.options)
    return None if choice is None else choice == item.letters


def answer_of(text: str) -> str:
    """A text without the reasoning before its answer, and without control tokens at its beginning and end.

    Reasoning that was cut off has no answer after it.
    """
    text = END_TOKEN.split(START_TOKENS.sub("", text), maxsplit=1)[0]
    text = text[max((match.end() for match in REASONED.finditer(text)), default=0) :]
    return REASONING.split(text, maxsplit=1)[0]


def _as_scores(score: Score) -> dict:
    """Counts, and percentages of all questions, and of those answered (None if there are none)."""
    return {
        "accuracy": 100 * score.right / score.questions,
        "answered": 100 * score.answered / score.questions,
        "accuracy_of_answered": percent(score.right, score.answered),
        "random_guess": 100 * score.expected_of_guessing / score.questions,
        "questions": score.questions,
        "right": score.right,
        "unanswered": score.questions - score.answered,
    }


def _table(title: str, by_file: Sequence[dict], total: Score) -> TableData:
    columns = ("exam", "accuracy", "random guess", "answered", "of answered", "questions", "unanswered")
    rows = []
    for each in [*by_file, *([{"file": "all", **_as_scores(total)}] if len(by_file) > 1 else [])]:
        names = ("accuracy", "random_guess", "answered", "accuracy_of_answered")
        shares = (cell(each[name], digits=2) for name in names)
        rows.append((each["file"], *shares, f"{each['questions']:,}", f"{each['unanswered']:,}"))
    return TableData(title, columns, tuple(rows))
