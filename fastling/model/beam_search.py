"""Beam search as transformers 5.23 defines it with early_stopping=False, one prompt at a time.

Scores are sums of log-probabilities (a repetition penalty changes them, as there). Each step ranks the
(stop ids + 1, at least 2) * beams best continuations of all beams. Of them the first `beams` that do not
stop go on. Those that stop are finished if they are among the first `beams` of all; a finished answer
scores sum / length ** length_penalty, its stop id counted, and the best `beams` are kept. The search ends
with the room, or as soon as `beams` answers are finished and the best of those going on, scored at its
present length, is no better than the worst of them.
Shapes: R rows, B beams of each slot, V vocab.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastling.model.decoding import Completion, Decoding
from fastling.model.sampling import Advance, SeenTokens

NEVER = -1e9
"""The score of a beam that is not there yet."""


class _Beam(NamedTuple):
    score: float
    ids: list[int]
    finish_reason: Literal["stop", "length"] = "length"


class _Continuation(NamedTuple):
    score: float
    beam: int
    token: int


@dataclass
class _Search:
    room: int
    beams: list[_Beam]
    finished: list[_Beam] = field(default_factory=list)  # best first

    def advance(
        self, ranked: list[_Continuation], decoding: Decoding, stop_ids: set[int]
    ) -> list[_Continuation]:
        """Take the best continuations; return those that go on, best first, or none at the end."""
        length = len(self.beams[0].ids) + 1
        divisor = length**decoding.length_penalty
        last = length == self.room
        for score, beam, token in ranked[: decoding.beams]:
            ids = self.beams[beam].ids
            if token in stop_ids:
                self.finished.append(_Beam(score / divisor, ids, "stop"))
            elif last:
                self.finished.append(_Beam(score / divisor, [*ids, token]))
        self.finished.sort(key=lambda beam: -beam.score)
        del self.finished[decoding.beams :]
        if last:
            return []
        going_on = [each for each in ranked if each.token not in stop_ids][: decoding.beams]
        full = len(self.finished) == decoding.beams
        if full and going_on[0].score / divisor <= self.finished[-1].score:
            return []
        self.beams = [_Beam(score, [*self.beams[beam].ids, token]) for score, beam, token in going_on]
        return going_on


class BeamSearch:
    """Beam search: a slot is as many neighbouring rows as there are beams."""

    def __init__(self, decoding: Decoding, stop_ids: set[int], seen: SeenTokens | None):
        self.decoding, self.stop_ids, self.seen = decoding, stop_ids, seen
        self.width = decoding.beams
        self.searches: list[_Search] = []

    def admit(self, draws: str, prompt: list[int], room: int) -> None:
        """Begin a prompt in the next slot, with room for `room` new tokens."""
        if self.seen:
            self.seen.begin(len(self.searches) * self.width, prompt, self.width)
        nobody = [_Beam(NEVER, [])] * (self.width - 1)  # all beams are the same prompt: only one is continued
        self.searches.append(_Search(room, [_Beam(0.0, []), *nobody]))

    def leave(self, slot: int) -> None:
        """The last slot takes the place of one that is done."""
        last = self.searches.pop()
        if slot < len(self.searches):
            self.searches[slot] = last
            if self.seen:
                self.seen.move(self._rows(len(self.searches)), self._rows(slot))

    def said(self, slot: int) -> list[int]:
        """Nothing is certain before the end."""
        return []

    def advance(self, logits_RV: Tensor) -> Advance:
        """Choose what each row continues, and with which token."""
        tokens: list[int] = []
        parents: list[int] = []
        completions = {}
        for slot, ranked in enumerate(self._rank(logits_RV.float())):
            search = self.searches[slot]
            going_on = search.advance(ranked, self.decoding, self.stop_ids)
            if not going_on:
                completions[slot] = Completion(search.finished[0].ids, search.finished[0].finish_reason)
                going_on = ranked[: self.width]  # the rows are about to leave
            tokens += [each.token for each in going_on]
            parents += [slot * self.width + each.beam for each in going_on]
        if self.seen:
            self.seen.move(parents, list(range(len(parents))))
            self.seen.add(tokens)
        return Advance(tokens, parents, completions)

    def _rank(self, scores_RV: Tensor) -> list[list[_Continuation]]:
        """For each slot, the best continuations of its beams, best first."""
        scores_RV = scores_RV.log_softmax(-1)
        if self.seen:
            scores_RV = self.seen.penalise(scores_RV)
        so_far_R = torch.tensor([beam.score for search in self.searches for beam in search.beams])
        sums_RV = scores_RV + so_far_R.to(scores_RV.device)[:, None]
        vocab_size = sums_RV.shape[-1]
        wanted = max(2, 1 + len(self.stop_ids)) * self.width
        best = sums_RV.view(len(self.searches), -1).topk(wanted)
        return [
            [_Continuation(score, *divmod(place, vocab_size)) for score, place in zip(*pair, strict=True)]
            for pair in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _rows(self, slot: int) -> list[int]:
        return list(range(slot * self.width, (slot + 1) * self.width))
