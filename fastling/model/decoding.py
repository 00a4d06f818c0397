"""The settings of generation (how the next token is chosen), and its result."""

import math
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from fastling.errors import UserError

LEAST_PENALTY = 0.01
"""The largest is 1 / this. Far beyond these bounds scores overflow float32, and no token can be drawn."""


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen, by default greedily. Raises UserError for settings that make no sense."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token; else scores are divided by it, and a token is drawn."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability; 1 for all."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0 for all."""
    repetition_penalty: float = 1.0
    """Scores of tokens that prompt or answer hold are divided by it if > 0, else multiplied with it."""
    beams: int = 1
    """Beams of beam search; 1 for no beam search."""
    length_penalty: float = 1.0
    """In beam search an answer's score is its log-probability / length ** length_penalty."""
    seed: int = 0
    """Seed of the draws; each prompt draws from this seed and its own index or name."""

    def __post_init__(self):
        for each in fields(self):
            value = getattr(self, each.name)
            if type(value) is not int and (each.type is int or type(value) is not float):
                self._refuse(each.name, f"must be {'an integer' if each.type is int else 'a number'}")
            if not math.isfinite(value):
                self._refuse(each.name, "must be finite")
        for name, least in (("max_new_tokens", 1), ("beams", 1), ("top_k", 0), ("temperature", 0)):
            if getattr(self, name) < least:
                self._refuse(name, f"must be at least {least}")
        if not 0 < self.top_p <= 1:
            self._refuse("top_p", "must be above 0 and at most 1")
        if not LEAST_PENALTY <= self.repetition_penalty <= 1 / LEAST_PENALTY:
            what = f"must be from {LEAST_PENALTY:g} to {1 / LEAST_PENALTY:g}"
            self._refuse("repetition_penalty", what)
        self._refuse_what_has_no_effect()

    def _refuse_what_has_no_effect(self) -> None:
        if self.beams > 1 and self.temperature:
            self._refuse("beams", "beam search draws nothing", "Set temperature 0, or beams 1.")
        for name, nothing in (("top_p", 1), ("top_k", 0), ("seed", 0)):
            if getattr(self, name) != nothing and not self.temperature:
                self._refuse(name, "has no effect where nothing is drawn", "Set a temperature above 0.")
        if self.length_penalty != 1 and self.beams == 1:
            self._refuse("length_penalty", "has no effect without beam search", "Set beams above 1.")

    def _refuse(self, name: str, what: str, fix: str = "") -> None:
        raise UserError(f"decoding.{name}", f"{what}: {getattr(self, name)!r}", fix)


class Completion(NamedTuple):
    """What a model generated for one prompt."""

    ids: list[int]
    """Without the stop id that ended it."""
    finish_reason: Literal["stop", "length"]
