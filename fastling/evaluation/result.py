"""What an evaluation found: numbers for a program, tables for a person, and what the numbers are not."""

from dataclasses import dataclass
from typing import NamedTuple

from fastling.errors import RunError


class TableData(NamedTuple):
    """A table as it is read, every cell as text. The first column names the rows; the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def percent(part: float, whole: float) -> float | None:
    """None where there is nothing to take a share of."""
    return 100 * part / whole if whole else None


def cell(value: float | None, digits: int = 1) -> str:
    """A number as a table has it."""
    return "-" if value is None else f"{value:.{digits}f}"


@dataclass(frozen=True)
class Result:
    """Of one evaluation."""

    kind: str
    """translation, constrained, exam, dialogue, refinement or instructions."""
    scores: dict
    """What --json prints and --out keeps: JSON types only, the headline numbers at the top level."""
    tables: tuple[TableData, ...] = ()
    notes: tuple[str, ...] = ()
    """What was counted as failed, what a number is not, which signature; a sentence each."""
    failure: RunError | None = None
    """What failed while the rest was done: raised once the scores are delivered."""

    def as_json(self) -> dict:
        """`scores` with the rest beside it, as --out keeps it."""
        tables = [{"title": title, "columns": columns, "rows": rows} for title, columns, rows in self.tables]
        return {"kind": self.kind, **self.scores, "tables": tables, "notes": self.notes}
