"""The ledger: where every row and every token of a source went (P4)."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field

from fastling.data.conversation import Refused
from fastling.data.encoding import Encoded, Unproved


@dataclass
class Ledger:
    """Counts of one source; `check` verifies that tokens = trained + masked + dropped."""

    rows: int = 0
    kept: int = 0
    cut: int = 0
    """Kept rows that lost tokens at their end."""
    refused: Counter[str] = field(default_factory=Counter)
    """Refused rows by reason."""
    tokens: int = 0
    """Tokens of all rows that could be tokenized."""
    trained: int = 0
    masked: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Dropped tokens by reason."""

    def add(self, result: Encoded | Refused) -> None:
        """Count one row."""
        self.rows += 1
        if isinstance(result, Refused):
            self.refused[result.reason] += 1
            if isinstance(result, Unproved):
                self.tokens += result.num_tokens
                self.dropped[result.reason] += result.num_tokens
            return
        self.kept += 1
        self.cut += bool(result.dropped)
        self.tokens += len(result.tokens) + sum(result.dropped.values())
        self.trained += result.supervised
        self.masked += len(result.tokens) - result.supervised
        self.dropped.update(result.dropped)

    def check(self) -> None:
        """Raise AssertionError unless every row and every token is accounted for."""
        # Not by assert, which `python -O` leaves out.
        if self.tokens != self.trained + self.masked + self.dropped.total():
            raise AssertionError(self)
        if self.rows != self.kept + self.refused.total():
            raise AssertionError(self)

    def as_dict(self) -> dict:
        """The counts as plain values for JSON."""
        return {
            item.name: dict(value) if isinstance(value := getattr(self, item.name), Counter) else value
            for item in dataclasses.fields(self)
        }
