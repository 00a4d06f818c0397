"""Measures how drafts are revised over several turns, on held-out dialogues of `fastling dialogues`.

The users of these dialogues send drafts, with known errors or without any, and ask for words that later
answers must keep; each row records this in its `turns`. The measures compare the version, the revised text
that `version_of` finds in an answer, by the tokens that revision.py defines:

- fix rate: of all errors, those whose wrong tokens are gone and whose right ones are there.
- harm rate: of the right tokens of faulty drafts, those outside a longest common subsequence with the
  version.
- over-edit ratio: TER of the version / TER of the reference, both with the draft as TER's reference text, so
  that both count edits of the same text; without TER's moves if a long version is no revision. 1 is ideal,
  less means too little editing; the median is reported.
- no-op accuracy: of all right drafts, those that come back unchanged.
- gain: mean chrF of the versions - mean chrF of the drafts, to the references; a bootstrap over dialogues,
  1,000 times, gives its 95 % interval.
- retention at turn t: of the words that were asked for before turn t, were there when they were asked for,
  and are still required at t, those that are there at t. Forgetting is 1 - retention.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from rich.console import Console

from fastling.command_line import Parser
from fastling.data.conversation import Refused, parse_row
from fastling.errors import UserError
from fastling.evaluation.answering import Question, add_model_options, check_source
from fastling.evaluation.bootstrap import RESAMPLES, interval_of_ratio
from fastling.evaluation.conversation_answers import Asked, answers_to, read_name
from fastling.evaluation.records import Record, read_records
from fastling.evaluation.result import Result, TableData, cell, percent
from fastling.evaluation.revision import (
    Draft,
    Error,
    chrf,
    edit_rate,
    holds,
    is_fixed,
    is_unchanged,
    lost_tokens,
    make_draft,
    signatures,
    tokens,
    version_of,
)

DESCRIPTION = "How drafts are revised over turns: errors fixed, the rest left alone, earlier wishes kept."
_REMEDY = "Write the dialogues with `fastling dialogues`, from rules; it records what each turn holds."


class Wish(NamedTuple):
    """Words that a version must hold from a turn on (turns count from 0)."""

    words: str
    turn: int
    any_case: bool


class Known(NamedTuple):
    """What a row records about the text that one turn asks for."""

    draft: Draft | None
    wishes: tuple[Wish, ...]


class Dialogue(NamedTuple):
    """A row of the questions; None for a turn about which nothing is recorded."""

    asked: Asked
    turns: tuple[Known | None, ...]


def add_options(parser: Parser) -> None:
    """Add --questions, and the options for where the answers come from."""
    parser.add_argument(
        "--questions", type=Path, required=True, metavar="F.jsonl", help="dialogues of `fastling dialogues`"
    )
    parser.add_argument(
        "--predictions", type=Path, metavar="F.jsonl", help='rows of "id" and "answers", one per user turn'
    )
    add_model_options(parser)


def evaluate(options: argparse.Namespace, console: Console) -> Result:
    """Score answers to the dialogues that have a draft or a wish in them.

    A model is asked each turn with its own earlier answers as history, as for a user: an answer that missed a
    wish is not corrected for the turns after it.
    """
    check_source(options, "predictions")
    dialogues, passed_over = read_dialogues(options.questions)
    if options.model is not None:
        dialogues = dialogues[: options.limit]
    answers = answers_to(options, [each.asked for each in dialogues], "id", console)
    scores = score(dialogues, answers.texts) | {"passed_over": passed_over} | answers.counts
    notes = [
        "fix rate and harm rate take other right words for wrong ones: they compare with one reference",
        "letter case counts; each turn has the answers before it as history",
        signatures(),
        *answers.notes,
    ]
    if passed_over:
        notes.append(f"{passed_over:,} dialogues have no draft and no wish, and were skipped")
    return Result("refinement", scores, _tables(scores), tuple(notes))


# Reading --------------------------------------------------------------------------------------------


def read_dialogues(path: Path) -> tuple[list[Dialogue], int]:
    """(dialogues that can be measured, number of others). Raises UserError for rows that are no dialogue."""
    dialogues, passed_over = [], 0
    for record in read_records(path):
        dialogue = _read_dialogue(record)
        if any(known and (known.draft or known.wishes) for known in dialogue.turns):
            dialogues.append(dialogue)
        else:
            passed_over += 1
    if not dialogues:
        raise UserError(str(path), "holds no dialogue with a draft or a wish", _REMEDY)
    return dialogues, passed_over


def _read_dialogue(record: Record) -> Dialogue:
    location, row = record
    name = read_name(row, "id", location)
    try:
        conversation = parse_row(row)
    except Refused as refused:
        raise UserError(location, f"no conversation: {refused.reason} {refused.detail}".strip()) from None
    said = [turn.content for turn in conversation.turns]
    requests, answers, turns = said[::2], said[1::2], row.get("turns")
    if not isinstance(turns, list) or not len(turns) == len(requests) == len(answers):
        raise UserError(location, "has no record of its turns, or of more or fewer of them", _REMEDY)
    known = []
    for number, (request, answer, turn) in enumerate(zip(requests, answers, turns, strict=True)):
        try:
            known.append(_read_turn(turn, number, request, answer))
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(location, f"turn {number + 1} is no record: {what:.200}", _REMEDY) from None
    question = Question(tuple(requests), conversation.system)
    return Dialogue(Asked(name, question), tuple(known))


def _read_turn(turn: Any, number: int, request: str, answer: str) -> Known | None:
    """The record of turn `number` (from 0), whose messages are `request` and `answer`; or None.

    Raises KeyError, TypeError or ValueError for a record that is wrong or does not fit the messages.
    """
    if turn is None:
        return None
    lead = _typed(turn.get("lead", ""), str) if isinstance(turn, dict) else _typed(turn, dict)
    if lead and not answer.startswith(lead + "\n"):
        raise ValueError(f"the answer does not begin with the lead {lead!r}")
    reference = answer[len(lead) + 1 :] if lead else answer
    wishes = []
    for wish in _typed(turn.get("constraints", []), list):
        since = _typed(wish["turn"], int)
        if not 0 <= since <= number:
            raise ValueError(f"a constraint of turn {since}, which does not come before")
        wishes.append(Wish(_typed(wish["words"], str), since, any_case=wish["step"] != "keep"))
        if not holds(reference, wishes[-1].words, any_case=wishes[-1].any_case):
            raise ValueError(f"the reference lacks {wishes[-1].words!r}")
    if "errors" not in turn:
        return Known(None, tuple(wishes))
    errors = [
        Error(*(_typed(error[name], kind) for name, kind in Error.__annotations__.items()))
        for error in _typed(turn["errors"], list)
    ]
    draft = make_draft(reference, errors)
    if draft.text not in request:
        raise ValueError(f"the draft is not in the user's turn: {draft.text[:80]!r}")
    return Known(draft, tuple(wishes))


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{str(value)[:80]!r} should be of the type {kind.__name__}")
    return value


# Scoring --------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Counts over all dialogues."""

    errors: Counter = field(default_factory=Counter)
    fixed: Counter = field(default_factory=Counter)
    """All errors, and those that were fixed, by kind."""
    right_tokens: int = 0
    lost: int = 0
    right_drafts: int = 0
    unchanged: int = 0
    ratios: list[float] = field(default_factory=list)
    """Over-edit ratio of every faulty draft."""
    chrf: list[list[tuple[float, float]]] = field(default_factory=list)
    """chrF of (draft, version) of every faulty draft, by dialogue."""
    wished: int = 0
    granted: int = 0
    """All wishes in the turns in which they are made, and those that were granted there."""
    bound: Counter = field(default_factory=Counter)
    kept: Counter = field(default_factory=Counter)
    """Earlier wishes that were granted, by each later turn (from 1) that requires them; those kept there."""


def score(dialogues: Sequence[Dialogue], answers: Sequence[Sequence[str]]) -> dict:
    """All scores. Rates are in percent, and None if there is nothing to count."""
    tally = Tally()
    for dialogue, texts in zip(dialogues, answers, strict=True):
        tally.chrf.append([])
        granted: dict[tuple[str, int], bool] = {}
        for number, (known, answer) in enumerate(zip(dialogue.turns, texts, strict=True)):
            if known:
                version = version_of(answer, known.draft.text) if known.draft else answer
                if known.draft:
                    _add_draft(tally, known.draft, version)
                _add_wishes(tally, known.wishes, version, number, granted)
    return {"dialogues": len(dialogues)} | _rates(tally)


def _add_draft(tally: Tally, draft: Draft, version: str) -> None:
    if not draft.faults:
        tally.right_drafts += 1
        tally.unchanged += is_unchanged(version, draft.text)
        return
    of_version, of_reference = tokens(version), tokens(draft.reference)
    for fault in draft.faults:
        tally.errors[fault.kind] += 1
        tally.fixed[fault.kind] += is_fixed(fault, of_reference, of_version)
    tally.right_tokens += len(draft.right_tokens)
    tally.lost += lost_tokens(draft, of_version)
    tally.ratios.append(edit_rate(version, draft.text) / edit_rate(draft.reference, draft.text))
    tally.chrf[-1].append((chrf(draft.text, draft.reference), chrf(version, draft.reference)))


def _add_wishes(
    tally: Tally, wishes: Sequence[Wish], version: str, number: int, granted: dict[tuple[str, int], bool]
) -> None:
    for wish in wishes:
        met = holds(version, wish.words, any_case=wish.any_case)
        if wish.turn == number:
            tally.wished += 1
            tally.granted += met
            granted[wish.words, wish.turn] = met
        elif granted.get((wish.words, wish.turn)):
            tally.bound[number + 1] += 1
            tally.kept[number + 1] += met


def _rates(tally: Tally) -> dict:
    pairs = [pair for of_dialogue in tally.chrf for pair in of_dialogue]
    before, after = numpy.mean(pairs, axis=0).tolist() if pairs else (None, None)
    return {
        "drafts": len(pairs),
        "errors": tally.errors.total(),
        "fix_rate": percent(tally.fixed.total(), tally.errors.total()),
        "harm_rate": percent(tally.lost, tally.right_tokens),
        "over_edit_ratio": float(numpy.median(tally.ratios)) if tally.ratios else None,
        "over_edited": percent(sum(ratio > 2 for ratio in tally.ratios), len(tally.ratios)),
        "right_drafts": tally.right_drafts,
        "no_op_accuracy": percent(tally.unchanged, tally.right_drafts),
        "chrf_of_drafts": before,
        "chrf_of_versions": after,
        "gain": after - before if pairs else None,
        "gain_interval": interval(tally.chrf) if pairs else None,
        "wishes": tally.wished,
        "wishes_granted": percent(tally.granted, tally.wished),
        "retention": percent(tally.kept.total(), tally.bound.total()),
        "retention_by_turn": {
            str(turn): {"retention": percent(tally.kept[turn], bound), "wishes": bound}
            for turn, bound in sorted(tally.bound.items())
        },
        "kinds": {
            kind: {"fix_rate": percent(tally.fixed[kind], count), "errors": count}
            for kind, count in sorted(tally.errors.items())
        },
    }


def interval(pairs: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    """95 % bootstrap interval of the gain, mean second - mean first, resampling whole dialogues."""
    gains = [sum(after - before for before, after in each) for each in pairs if each]
    return interval_of_ratio(gains, [len(each) for each in pairs if each])


# Tables ---------------------------------------------------------------------------------------------


def _tables(scores: dict) -> tuple[TableData, ...]:
    low, high = scores["gain_interval"] or (None, None)
    rows = (
        ("errors fixed, %", cell(scores["fix_rate"]), f"{scores['errors']:,} errors"),
        ("right tokens lost, %", cell(scores["harm_rate"]), f"{scores['drafts']:,} faulty drafts"),
        ("over-edit ratio, median", cell(scores["over_edit_ratio"], 2), "1 is ideal"),
        ("edited over twice as much, %", cell(scores["over_edited"]), f"{scores['drafts']:,} faulty drafts"),
        ("right drafts unchanged, %", cell(scores["no_op_accuracy"]), f"{scores['right_drafts']:,} drafts"),
        ("gain in chrF", cell(scores["gain"]), f"{scores['drafts']:,} faulty drafts"),
        ("gain in chrF, 95 % from", cell(low), f"{RESAMPLES:,} resamples"),
        ("gain in chrF, 95 % to", cell(high), f"{RESAMPLES:,} resamples"),
        ("wishes granted, %", cell(scores["wishes_granted"]), f"{scores['wishes']:,} wishes"),
        *(
            (f"earlier wishes kept in turn {turn}, %", cell(kept["retention"]), f"{kept['wishes']:,} wishes")
            for turn, kept in scores["retention_by_turn"].items()
        ),
    )
    kinds = tuple(
        (kind, cell(found["fix_rate"]), f"{found['errors']:,}") for kind, found in scores["kinds"].items()
    )
    return (
        TableData("refinement", ("measure", "value", "of"), rows),
        TableData("errors fixed by kind", ("kind", "fixed, %", "errors"), kinds),
    )
