"""Following instructions over turns, in several languages: Multi-IF (He et al. 2024), from its own file.

The benchmark's data is not free for every use, so it is read from a path: its CSV, or JSON lines of the same
columns. Each turn adds instructions to those before it, which stay in force, and the answer to each turn is
checked against all of them, by rules. instruction_checks.py says how, and where it differs from the published
code.

- strict: the check holds for the answer, and the answer is not empty.
- loose: the check holds for any of eight forms of the answer: without its first line, its last line, both or
  neither, and each with and without its asterisks; empty forms do not count.
- prompt accuracy: the share of answers that follow all their instructions. Instruction accuracy: the share of
  instructions that are followed.
- overall: the mean of these two, each strict and loose. For a turn it is the mean over languages, as the
  benchmark publishes. 95 % intervals are percentiles over 10,000 bootstraps of each language's conversations.
- forgetting at turn t: of the instructions that were followed (strictly) at a turn before t and are still in
  force at t, the share that is not followed at t. This is our definition; the paper's may differ.
"""

import argparse
import csv
import json
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from rich.console import Console

from fastling.command_line import Parser
from fastling.errors import UserError
from fastling.evaluation.answering import Question, add_model_options, check_source
from fastling.evaluation.bootstrap import SEED, middle_95
from fastling.evaluation.conversation_answers import Asked, answers_to, read_name
from fastling.evaluation.instruction_checks import DISABLED, make_check
from fastling.evaluation.instruction_text import load_detector
from fastling.evaluation.records import read_records
from fastling.evaluation.result import Result, TableData, cell, percent

DESCRIPTION = "Instructions that add up over turns, in several languages, checked by rules (Multi-IF)."
TURNS = (1, 2, 3)
PARTS = ("prompt", "instruction_id_list", "kwargs")
RESAMPLES, RESAMPLES_AT_ONCE = 10_000, 500
NO_PROMPT = "turns without a prompt, or after one"
MEASURES = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")
_COLUMNS = ("key", "language", *(f"turn_{turn}_{part}" for turn in TURNS for part in PARTS))


class Instruction(NamedTuple):
    """One instruction in force at a turn."""

    name: str
    arguments: str
    """As JSON, by which the same instruction is recognised at a later turn."""
    holds: Callable[[str], bool]


class Conversation(NamedTuple):
    """A row of the benchmark: the turns of it that can be asked, and the instructions at each."""

    asked: Asked
    language: str
    turns: tuple[tuple[Instruction, ...], ...]


def add_options(parser: Parser) -> None:
    """Add --questions, and the options for where the answers come from."""
    parser.add_argument(
        "--questions", type=Path, required=True, metavar="F", help="Multi-IF's .csv, or .jsonl of its columns"
    )
    parser.add_argument(
        "--predictions", type=Path, metavar="F.jsonl", help='rows of "key" and "answers", one per turn'
    )
    add_model_options(parser)


def evaluate(options: argparse.Namespace, console: Console) -> Result:
    """Score answers, given or by a model, which is asked each turn with its earlier answers as history."""
    check_source(options, "predictions")
    load_detector()  # fail now if it is missing, before a model spends hours on answers
    left_out: Counter[str] = Counter()
    conversations = list(read_conversations(options.questions, left_out))
    if options.model is not None:
        conversations = conversations[: options.limit]
    if not conversations:
        raise UserError(str(options.questions), "holds no conversation that can be asked")
    answers = answers_to(options, [each.asked for each in conversations], "key", console)
    followed = [
        [follow(turn, answer) for turn, answer in zip(each.turns, texts, strict=True)]
        for each, texts in zip(conversations, answers.texts, strict=True)
    ]
    scores = score(conversations, followed) | {"left_out": dict(left_out)} | answers.counts
    notes = [
        "where Multi-IF's code depends on chance or on English, checks follow the instruction instead; "
        "numbers are near published ones, not the same: Chinese commas and forbidden words differ most",
        "each turn has the answers before it as history",
        *answers.notes,
        *(f"left out: {count:,} {what}" for what, count in left_out.items()),
    ]
    return Result("instructions", scores, _tables(scores), tuple(notes))


# Reading --------------------------------------------------------------------------------------------


def read_conversations(path: Path, left_out: Counter) -> Iterator[Conversation]:
    """Yield the benchmark's rows; what cannot be asked or scored is counted in `left_out`, by description.

    Raises UserError, with the row's place, for anything that the benchmark does not have.
    """
    for location, row in _rows(path):
        missing = [column for column in _COLUMNS if column not in row]
        if missing:
            raise UserError(location, f"has no {missing[0]}", "Give Multi-IF's file, with all its columns.")
        prompts, turns = [], []
        for turn in TURNS:
            prompt, names, arguments = (row[f"turn_{turn}_{part}"] for part in PARTS)
            prompt = _prompt(prompt, f"{location}: turn_{turn}_prompt")
            if prompt is None:
                left_out[NO_PROMPT] += len(TURNS) - len(turns)
                break
            try:
                turns.append(_instructions(names, arguments, left_out))
            except ValueError as error:
                raise UserError(f"{location}: turn {turn}", f"{error}") from None
            prompts.append(prompt)
        if prompts:
            asked = Asked(read_name(row, "key", location), Question(tuple(prompts)))
            yield Conversation(asked, str(row["language"] or "unknown"), tuple(turns))


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield (file:line, row)."""
    if path.suffix.lower() != ".csv":
        yield from read_records(path)
        return
    csv.field_size_limit(sys.maxsize)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                yield f"{path}:{reader.line_num}", row
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"is not UTF-8 at byte {error.start}", "Save it as UTF-8.") from None
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}", f"broken CSV: {error}") from None
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}") from None


def _prompt(value: Any, where: str) -> str | None:
    """The text of a turn's message; None if there is no such turn: empty, null, or a word for it."""
    if value is None or isinstance(value, str) and value.strip() in ("", "None", "null", "nan"):
        return None
    try:
        message = _decoded(value)
        content = message["content"]
    except (ValueError, TypeError, KeyError):
        fix = 'Expected a message in JSON: {"role": "user", "content": "..."}.'
        raise UserError(where, f"no message: {str(value)[:80]!r}", fix) from None
    if not isinstance(content, str) or not content.strip():
        raise UserError(where, f"the message has no text: {str(content)[:80]!r}")
    return content


def _instructions(names: Any, arguments: Any, left_out: Counter) -> tuple[Instruction, ...]:
    """The instructions of a turn; those that are not scored are counted in `left_out` instead.

    Raises ValueError unless they are a list of known instructions, each with its arguments.
    """
    names, arguments = _decoded(names), _decoded(arguments)
    if not isinstance(names, list) or not isinstance(arguments, list) or len(names) != len(arguments):
        raise ValueError("needs as many kwargs as instruction ids, both as lists")
    found = []
    for name, given in zip(names, arguments, strict=True):
        given = _decoded(given)
        if not isinstance(name, str) or not isinstance(given, dict):
            raise ValueError(f"no instruction with its kwargs: {str(name)[:80]!r}, {str(given)[:80]!r}")
        if name in DISABLED:
            left_out[f"instructions that the benchmark does not score: {name}"] += 1
            continue
        holds = make_check(name, given)
        found.append(Instruction(name, json.dumps(given, sort_keys=True), holds))
    return tuple(found)


def _decoded(value: Any) -> Any:
    """The value of a column, decoded if it is text with JSON. Raises ValueError if that is broken."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"broken JSON: {value[:80]!r}") from None


# Scoring --------------------------------------------------------------------------------------------


class Followed(NamedTuple):
    """Whether an answer follows an instruction."""

    instruction: Instruction
    strict: bool
    loose: bool


def follow(instructions: Sequence[Instruction], answer: str) -> list[Followed]:
    """For each instruction at a turn, whether the answer follows it."""
    forms = loose_forms(unicodedata.normalize("NFC", answer))
    return [
        Followed(each, strict, strict or any(each.holds(form) for form in forms[1:] if form.strip()))
        for each in instructions
        for strict in [bool(answer.strip()) and each.holds(forms[0])]
    ]


def loose_forms(answer: str) -> list[str]:
    """The answer; without its first line, its last line, and both; and these four without asterisks."""
    lines = answer.split("\n")
    forms = [answer, *("\n".join(rest).strip() for rest in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*forms, *(form.replace("*", "") for form in forms)]


def score(conversations: Sequence[Conversation], followed: Sequence[Sequence[Sequence[Followed]]]) -> dict:
    """Accuracies in percent: of each turn, each language in a turn, and each check; and forgetting."""
    groups: dict[int, dict[str, list[Sequence[Followed]]]] = {turn: defaultdict(list) for turn in TURNS}
    for conversation, turns in zip(conversations, followed, strict=True):
        for turn, found in enumerate(turns, start=1):
            if found:
                groups[turn][conversation.language].append(found)
    turns = {str(turn): _turn_scores(languages) for turn, languages in groups.items() if languages}
    forgotten = forgetting(followed)
    return {
        "conversations": len(conversations),
        **{f"overall_turn_{turn}": found["overall"] for turn, found in turns.items()},
        **{f"forgetting_turn_{turn}": rate for turn, (rate, _) in forgotten.items()},
        "turns": turns,
        "forgetting": {str(turn): {"rate": rate, "of": of} for turn, (rate, of) in forgotten.items()},
        "checks": _by_check(followed),
    }


def _turn_scores(languages: Mapping[str, Sequence[Sequence[Followed]]]) -> dict:
    """The scores of one turn: the means over languages, and those of each language."""
    found, drawn = {}, []
    generator = numpy.random.default_rng(SEED)  # one for all, so that languages are not drawn alike
    for language in sorted(languages):
        counts = numpy.array([_counts(answer) for answer in languages[language]], dtype=float)
        resampled = resampled_overall(counts, generator)
        drawn.append(resampled)
        measures = accuracies(counts.sum(axis=0))
        found[language] = {
            "conversations": len(counts),
            **dict(zip(MEASURES, measures.tolist(), strict=True)),
            "overall": float(measures.mean()),
            "overall_interval": middle_95(resampled),
        }
    names = (*MEASURES, "overall")
    return {
        "conversations": sum(each["conversations"] for each in found.values()),
        **{name: float(numpy.mean([each[name] for each in found.values()])) for name in names},
        "overall_interval": middle_95(numpy.mean(drawn, axis=0)),
        "languages": found,
    }


def _counts(answer: Sequence[Followed]) -> tuple[int, ...]:
    """Of one answer: (all strictly, how many strictly, all loosely, how many loosely, 1, instructions)."""
    strict, loose = sum(each.strict for each in answer), sum(each.loose for each in answer)
    return (strict == len(answer), strict, loose == len(answer), loose, 1, len(answer))


def accuracies(counts: numpy.ndarray) -> numpy.ndarray:
    """[..., 6] sums of `_counts` -> [..., 4] accuracies in percent, as MEASURES names them."""
    return 100 * counts[..., :4] / counts[..., [4, 5, 4, 5]]


def resampled_overall(counts: numpy.ndarray, generator: numpy.random.Generator) -> numpy.ndarray:
    """[conversations, 6] counts -> [10,000] overall accuracies, resampling conversations with replacement."""
    size, share = len(counts), numpy.full(len(counts), 1 / len(counts))
    found = []
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):
        times = generator.multinomial(size, share, size=RESAMPLES_AT_ONCE)
        found.append(accuracies(times @ counts).mean(axis=-1))
    return numpy.concatenate(found)


def forgetting(followed: Sequence[Sequence[Sequence[Followed]]]) -> dict[int, tuple[float | None, int]]:
    """Turn -> (percent forgotten, or None; number that could be forgotten), from the second turn on."""
    forgotten: Counter[int] = Counter()
    known: Counter[int] = Counter()
    for turns in followed:
        before: set[tuple[str, str]] = set()
        for turn, found in enumerate(turns, start=1):
            for each in found:
                if each.instruction[:2] in before:
                    known[turn] += 1
                    forgotten[turn] += not each.strict
            before |= {each.instruction[:2] for each in found if each.strict}
    return {turn: (percent(forgotten[turn], known[turn]), known[turn]) for turn in TURNS[1:]}


def _by_check(followed: Sequence[Sequence[Sequence[Followed]]]) -> dict:
    found: dict[str, list[Followed]] = defaultdict(list)
    for each in (each for turns in followed for answer in turns for each in answer):
        found[each.instruction.name].append(each)
    return {
        name: {
            "strict": 100 * sum(one.strict for one in each) / len(each),
            "loose": 100 * sum(one.loose for one in each) / len(each),
            "instructions": len(each),
        }
        for name, each in sorted(found.items())
    }


# Tables ---------------------------------------------------------------------------------------------


def _tables(scores: dict) -> tuple[TableData, ...]:
    columns = ("", "turn", "overall", "95 % from", "to", *(name.replace("_", ", ") for name in MEASURES), "n")
    rows = []
    for turn, found in scores["turns"].items():
        for name, each in (("all languages", found), *found["languages"].items()):
            numbers = (each["overall"], *each["overall_interval"], *(each[measure] for measure in MEASURES))
            rows.append((name, turn, *(f"{number:.1f}" for number in numbers), f"{each['conversations']:,}"))
    forgotten = tuple(
        (turn, cell(each["rate"]), f"{each['of']:,}") for turn, each in scores["forgetting"].items()
    )
    checks = tuple(
        (name, f"{each['strict']:.1f}", f"{each['loose']:.1f}", f"{each['instructions']:,}")
        for name, each in scores["checks"].items()
    )
    return (
        TableData("instructions followed, %", columns, tuple(rows)),
        TableData("instructions forgotten", ("turn", "forgotten, %", "of"), forgotten),
        TableData("by check", ("check", "strict, %", "loose, %", "instructions"), checks),
    )
