"""How scores of the next token become a token: the rules of transformers, in their order.

Repetition penalty (Keskar et al. 2019, over prompt and answer), temperature, top-k, top-p (Holtzman et al.
2020), then a draw; or the likeliest token. Shapes: R rows, V vocab.
"""

import random
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fastling.model.decoding import Completion, Decoding

LEAST_TEMPERATURE = 1e-6
"""Lower temperatures act like this one, where the likeliest token has all probability: scores divided by less
would overflow float32."""


class Advance(NamedTuple):
    """What one step has decided."""

    tokens: list[int]
    """The next token of each row."""
    parents: list[int] | None
    """The row that each row continues; None where each continues itself."""
    completions: dict[int, Completion]
    """Slot -> its completion, for the slots that are done."""


class SeenTokens:
    """Which tokens each row has in its prompt and answer, (rows, V) booleans, to penalise them."""

    def __init__(self, rows: int, vocab_size: int, penalty: float, device: torch.device):
        self.penalty = penalty
        self.seen_RV = torch.zeros(rows, vocab_size, dtype=torch.bool, device=device)

    def begin(self, row: int, prompt: list[int], width: int = 1) -> None:
        """Start over with the tokens of a prompt, in `width` rows from `row` on."""
        self.seen_RV[row : row + width] = False
        self.seen_RV[row : row + width, prompt] = True

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy rows `sources` into rows `targets`."""
        self.seen_RV[targets] = self.seen_RV[sources]

    def add(self, tokens: list[int]) -> None:
        """Add the next token of each of the first rows."""
        rows = torch.arange(len(tokens), device=self.seen_RV.device)
        self.seen_RV[rows, torch.tensor(tokens, device=self.seen_RV.device)] = True

    def penalise(self, scores_RV: Tensor) -> Tensor:
        """Divide positive scores of seen tokens by the penalty, multiply negative ones with it."""
        penalised = torch.where(scores_RV < 0, scores_RV * self.penalty, scores_RV / self.penalty)
        return torch.where(self.seen_RV[: len(scores_RV)], penalised, scores_RV)


def probabilities(scores_RV: Tensor, decoding: Decoding) -> Tensor:
    """Probabilities (R, V) float32: the softmax over tokens that top-k and top-p leave; 0 for the others.

    top-k keeps all tokens that tie with the k-th. top-p drops the least likely tokens whose probabilities sum
    to at most 1 - top_p, and keeps at least one token.
    """
    scores_RV = scores_RV / max(decoding.temperature, LEAST_TEMPERATURE)
    if decoding.top_k:
        kth_R1 = scores_RV.topk(min(decoding.top_k, scores_RV.shape[-1])).values[:, -1:]
        scores_RV = scores_RV.masked_fill(scores_RV < kth_R1, float("-inf"))
    if decoding.top_p < 1:
        ascending_RV, order_RV = scores_RV.sort()
        dropped_RV = ascending_RV.softmax(-1).cumsum(-1) <= 1 - decoding.top_p
        dropped_RV[:, -1] = False
        scores_RV = scores_RV.masked_fill(dropped_RV.scatter(1, order_RV, dropped_RV), float("-inf"))
    return scores_RV.softmax(-1)


def draw(probabilities_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """Draw tokens (R,) int64 by the inverse of the cumulative distribution, never one of probability 0.

    `uniform_R` (R,) float64 are random numbers in [0, 1).
    """
    cumulative_RV = probabilities_RV.double().cumsum(-1)
    total_R = cumulative_RV[:, -1]
    wanted_R = torch.minimum(uniform_R * total_R, total_R.nextafter(torch.zeros_like(total_R)))
    return torch.searchsorted(cumulative_RV, wanted_R[:, None], right=True)[:, 0]


@dataclass
class _Answer:
    room: int
    random: random.Random
    ids: list[int] = field(default_factory=list)


class Sampler:
    """Greedy decoding and sampling: a slot is one row."""

    width = 1

    def __init__(self, decoding: Decoding, stop_ids: set[int], seen: SeenTokens | None):
        self.decoding, self.stop_ids, self.seen = decoding, stop_ids, seen
        self.answers: list[_Answer] = []

    def admit(self, draws: str, prompt: list[int], room: int) -> None:
        """Begin a prompt in the next slot, with room for `room` new tokens.

        Its random numbers depend on the seed and on `draws` alone, not on its neighbours.
        """
        if self.seen:
            self.seen.begin(len(self.answers), prompt)
        self.answers.append(_Answer(room, random.Random(f"{self.decoding.seed} {draws}")))

    def leave(self, slot: int) -> None:
        """The last slot takes the place of one that is done."""
        last = self.answers.pop()
        if slot < len(self.answers):
            self.answers[slot] = last
            if self.seen:
                self.seen.move([len(self.answers)], [slot])

    def said(self, slot: int) -> list[int]:
        """The ids of a slot's answer that are certain so far."""
        return self.answers[slot].ids

    def advance(self, logits_RV: Tensor) -> Advance:
        """Choose a token for each row from its logits."""
        tokens = self._choose(logits_RV.float())
        if self.seen:
            self.seen.add(tokens)
        completions = {}
        for slot, (answer, token) in enumerate(zip(self.answers, tokens, strict=True)):
            if token in self.stop_ids:
                completions[slot] = Completion(answer.ids, "stop")
                continue
            answer.ids.append(token)
            if len(answer.ids) == answer.room:
                completions[slot] = Completion(answer.ids, "length")
        return Advance(tokens, None, completions)

    def _choose(self, scores_RV: Tensor) -> list[int]:
        if self.seen:
            scores_RV = self.seen.penalise(scores_RV)
        if not self.decoding.temperature:
            return scores_RV.argmax(-1).tolist()
        uniform = [answer.random.random() for answer in self.answers]
        uniform_R = torch.tensor(uniform, dtype=torch.float64, device=scores_RV.device)
        return draw(probabilities(scores_RV, self.decoding), uniform_R).tolist()
