"""The result of an evaluation: numbers for programs, tables for people, notes on what the numbers mean."""

from dataclasses import dataclass
from typing import NamedTuple

from fastling.errors import RunError


class TableData(NamedTuple):
    """A table with all cells as text. The first column names the rows; the others are aligned right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def percent(part: float, whole: float) -> float | None:
    """100 * part / whole, or None if `whole` is 0."""
    return 100 * part / whole if whole else None


def cell(value: float | None, digits: int = 1) -> str:
    """A number as a cell of a table; None is shown as "-"."""
    return "-" if value is None else f"{value:.{digits}f}"


@dataclass(frozen=True)
class Result:
    """The result of one evaluation."""

    kind: str
    """translation, constrained, exam, dialogue, refinement or instructions."""
    scores: dict
    """What --json prints and --out keeps: JSON types only, the headline numbers at the top level."""
    tables: tuple[TableData, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences on what was counted as failed, what a number does not mean, and which signature it has."""
    failure: RunError | None = None
    """An error that left the rest usable. It is raised after the scores are printed and kept."""

    def as_json(self) -> dict:
        """`scores`, with kind, tables and notes beside them, as --out keeps them."""
        tables = [{"title": title, "columns": columns, "rows": rows} for title, columns, rows in self.tables]
        return {"kind": self.kind, **self.scores, "tables": tables, "notes": self.notes}
