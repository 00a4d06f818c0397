"""Rows of results: read from JSON lines, checked, and sorted into the runs that they were measured in.

What two rows of one run say can be compared: same machine, same minutes. Rows of two runs cannot.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from benchmarks.providers import OURS
from benchmarks.timing import KEYS, Machine
from fastling.errors import UserError

RATES = ("copy_gb_s", "matrix_tflops")
MACHINE = (
    *(field.name for field in dataclasses.fields(Machine) if field.name not in (*RATES, "commit", "dirty")),
    "threads",
    "transformers",
)
"""Fields that say where a row was measured and with what."""
LONGEST_PAUSE = timedelta(minutes=10)
"""Longest pause between two rows of one run, which are written together or soon after each other."""
FINITE = 1e300


# Reading --------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict]:
    """The rows of a file; a last line without a line end, which was never finished, is passed over.

    Raises UserError, naming file:line, for any other line that is no row.
    """
    lines = path.read_bytes().split(b"\n")
    numbered = enumerate(lines[:-1], start=1)
    return [_parse(f"{path}:{number}", line) for number, line in numbered if line.strip()]


def _parse(location: str, line: bytes) -> dict:
    fix = "Remove the line, or measure again."
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # halves of characters could not be printed
    except (ValueError, RecursionError) as error:
        raise UserError(location, f"no JSON: {str(error)[:120]}", fix) from None
    if not isinstance(row, dict):
        raise UserError(location, "no object", fix)
    for name, kind in _fields(row).items():
        if not kind.fits(row.get(name)):
            raise UserError(location, f"{name} must be {kind.words}: {repr(row.get(name))[:60]}", fix)
    if row.get("bench") == "train" or is_of_kernels(row):
        return row
    # of the keys that every row has, those with nothing to show
    return {name: value for name, value in row.items() if value is not None or name not in KEYS}


class Kind(NamedTuple):
    words: str
    fits: Callable[[object], bool]


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and not a truth value."""
    return type(value) in (int, float) and abs(value) < FINITE


def _is_date(value: object) -> bool:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


TEXT = Kind("text", lambda value: isinstance(value, str))
TEXT_IF_ANY = Kind("text or nothing", lambda value: value is None or isinstance(value, str))
DATE = Kind("a date", _is_date)
NUMBER = Kind("a number", is_number)
POSITIVE = Kind("a number > 0", lambda value: is_number(value) and value > 0)
WORD_IF_ANY = Kind(
    "a number, its name or null", lambda value: value is None or isinstance(value, str) or is_number(value)
)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
NUMBERS = Kind(
    "an object of numbers", lambda value: isinstance(value, dict) and all(map(is_number, value.values()))
)

OF_EVERY_ROW = {"commit": TEXT, "date": DATE}
OF_TRAINING = dict.fromkeys(("case", "device", "provider", "status"), TEXT)
OF_TRAINING |= dict.fromkeys(("run", "settings", "versions"), OBJECT)
OF_MEASURED_TRAINING = dict.fromkeys(("milliseconds", "supervised_tokens_per_s"), POSITIVE)
OF_MEASURED_TRAINING |= dict.fromkeys(("spread", "tokens_per_s", "memory_gib", "loss", "tflop_per_s"), NUMBER)
OF_MEASURED_TRAINING |= {"parts": NUMBERS}
OF_KERNELS = dict.fromkeys(
    ("op", "case", "device", "pass", "provider", "verdict", "why", "driver", "torch", "triton"), TEXT
)
OF_KERNELS |= dict.fromkeys(RATES, POSITIVE)
OF_TIMED_KERNELS = {"milliseconds": POSITIVE, "spread": NUMBER, "ratio_to_floor": NUMBER}
OF_TIMED_KERNELS |= {"floor_milliseconds": NUMBER, "max_error": WORD_IF_ANY}


def _fields(row: dict) -> dict[str, Kind]:
    """Field -> the kind of value that a row must have there to be shown."""
    if is_of_kernels(row):
        is_timed = row.get("milliseconds") is not None
        more = OF_TIMED_KERNELS if is_timed else {"floor_milliseconds": WORD_IF_ANY}
        return OF_EVERY_ROW | OF_KERNELS | more
    if row.get("bench") == "train":
        is_measured = row.get("status") == "measured"
        return OF_EVERY_ROW | OF_TRAINING | (OF_MEASURED_TRAINING if is_measured else {})
    return OF_EVERY_ROW | {"bench": TEXT, "device": TEXT_IF_ANY}


def is_of_kernels(row: dict) -> bool:
    """Whether a row is of benchmarks.kernels, about a timing that was made or tried."""
    return {"op", "case", "pass", "provider"} <= row.keys()


# Runs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Rows that were measured side by side, at least one, in the order of their file."""

    rows: list[dict]

    @property
    def bench(self) -> str:
        return self.rows[0]["bench"]

    @property
    def device(self) -> str:
        """The device; "" for rows that were computed and not measured."""
        return self.rows[0].get("device") or ""

    @property
    def date(self) -> datetime:
        return date_of(self.rows[0])

    @property
    def is_ladder(self) -> bool:
        return all(map(_is_rung, self.rows))

    def subjects(self) -> set[str]:
        """What was measured; a newer run with the same subjects replaces this one."""
        return {_subject(row) for row in self.rows}


def date_of(row: dict) -> datetime:
    date = datetime.fromisoformat(row["date"])
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _subject(row: dict) -> str:
    run = row["run"] if row["bench"] == "train" else {}
    # More steps, or fewer tokens at once, answer the same question.
    asked = {name: value for name, value in run.items() if name not in ("steps", "micro_batch_tokens")}
    return json.dumps(
        [row["bench"], row.get("device"), row.get("case"), row.get("line"), asked], sort_keys=True
    )


def _is_rung(row: dict) -> bool:
    """Whether a row is a rung of a ladder of benchmarks.train, which has no peers and a name of its own."""
    return row["bench"] == "train" and row["run"].get("peers") is False and row["provider"] != OURS


def runs_of(rows: Iterable[dict]) -> list[Run]:
    """The runs of rows, the newest first; rows of kernels, which have no runs, must not be among them."""
    found: list[Run] = []
    open_runs: dict[str, Run] = {}
    for row in rows:
        place = _place(row)
        run = open_runs.get(place)
        if run is None or not _goes_on(run, row):
            run = open_runs[place] = Run([])
            found.append(run)
        run.rows.append(row)
    return sorted(found, key=lambda run: run.date, reverse=True)


def _place(row: dict) -> str:
    same = [row["bench"], row["commit"], *(row.get(name) for name in MACHINE)]
    if row["bench"] == "train":
        same += [row["case"], row["run"]]
    return json.dumps(same, sort_keys=True)


def _goes_on(run: Run, row: dict) -> bool:
    """Whether a row belongs to a run: soon after its last row, and not the second one of the same."""
    if abs(date_of(row) - date_of(run.rows[-1])) > LONGEST_PAUSE:
        return False
    if row["bench"] not in ("train", "data", "generation"):  # of others we do not know what names a row
        return True
    return all(_name(row) != _name(each) for each in run.rows)


def _name(row: dict) -> tuple:
    return row.get("case"), row.get("provider")


def newest_and_older(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """(runs that measured something last, runs that newer ones replace), from runs with the newest first."""
    newest, older, seen = [], [], set()
    for run in runs:
        (older if run.subjects() <= seen else newest).append(run)
        seen |= run.subjects()
    return newest, older
