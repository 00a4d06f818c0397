"""Continuations of prompts: in batches, with a cache of keys and values, packed without padding.

Each step is one forward over a stream of one token of every unfinished answer, followed by the whole prompts
that take the places of finished answers. Shapes: R rows, T tokens of a step, V vocab.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fastling.errors import RunError, UserError
from fastling.model.beam_search import BeamSearch
from fastling.model.cache import CacheStep, KVCache, bytes_per_token
from fastling.model.decoding import Completion, Decoding
from fastling.model.llama import Llama, is_sharded, reshard
from fastling.model.sampling import Sampler, SeenTokens

CACHE_BYTES = 2 * 2**30
PREFILL_TOKENS = 4096
"""Most tokens of prompts in one step; a prompt that is longer has a step of its own."""
MOST_ROWS = 256
"""Most answers at once, however many the cache could hold: each has logits over the whole vocabulary."""


def stream(model: Llama, prompt: list[int], decoding: Decoding, *, stop_ids: set[int]) -> Iterator[int]:
    """Yield each id of one completion as soon as it is known, without the stop id.

    The ids are those that `generate` returns; with beam search they are known only at the end. Closing the
    iterator frees the cache. Raises UserError as `generate` does, already when it is called.
    """
    generation = _Generation(model, [prompt], decoding, stop_ids, CACHE_BYTES)
    return _ids(generation)


def _ids(generation: "_Generation") -> Iterator[int]:
    sent = 0
    for [(_, said, completion)] in generation.steps():
        if completion is not None:
            said = completion.ids
        yield from said[sent:]
        sent = len(said)


def generate(
    model: Llama,
    prompts: list[list[int]],
    decoding: Decoding,
    *,
    stop_ids: set[int],
    on_completion: Callable[[int, Completion], None] | None = None,
    cache_bytes: int = CACHE_BYTES,
    draws: Sequence[str] | None = None,
) -> list[Completion]:
    """Continue each prompt; `on_completion(index of the prompt, completion)` is called as each one is done.

    If tokens are sampled, prompts[i] draws from the decoding's seed and the name draws[i], by default i. By
    that name a prompt keeps its random numbers, whichever others it is continued with.
    A continuation ends before a stop id, after max_new_tokens, or at the model's longest sequence.
    A sequence in flight takes 2 * layers * kv_heads * head_dim * bytes * (prompt + max_new_tokens) bytes of
    cache, times beams. As many are in flight as fit into `cache_bytes`, at least one, and at most 256 rows.
    Further memory is needed for logits (rows, vocab) and for the activations of a step, which has at most
    4096 tokens of prompts, or one longer prompt.
    Prompts may differ between the ranks of a sharded model, which all make the same number of forward calls.
    Raises UserError for a prompt that is empty, too long, or has ids that the model does not have, and
    RunError if the model's scores are not finite numbers.
    """
    generation = _Generation(model, prompts, decoding, stop_ids, cache_bytes, draws)
    completions: list[Completion | None] = [None] * len(prompts)
    for step in generation.steps():
        for index, _, completion in step:
            if completion is not None:
                completions[index] = completion
                if on_completion:
                    on_completion(index, completion)
    return completions


@dataclass
class _Slot:
    """A sequence in flight: the index of its prompt, and how many of its tokens are in the cache."""

    index: int
    length: int


@dataclass
class _Wave:
    """Prompts that share a cache with room for `slots` sequences of `positions` tokens."""

    indices: deque[int]
    slots: int
    positions: int


class _Generation:
    def __init__(
        self,
        model: Llama,
        prompts: list[list[int]],
        decoding: Decoding,
        stop_ids: Iterable[int],
        cache_bytes: int,
        draws: Sequence[str] | None = None,
    ):
        _check(model, prompts, decoding, cache_bytes)
        self.model, self.prompts, self.decoding = model, prompts, decoding
        self.stop_ids = set(stop_ids)
        self.draws = [str(index) for index in range(len(prompts))] if draws is None else draws
        self.device = model.rotary_cos.device
        self.full = [i for i, prompt in enumerate(prompts) if len(prompt) == model.config.longest_sequence]
        self.waves = self._waves(cache_bytes)
        self.wave = _Wave(deque(), 0, 0)
        self.slots: list[_Slot] = []
        self.tokens: list[int] = []  # one for each row: the last that was chosen

    def steps(self) -> Iterator[list[tuple[int, list[int], Completion | None]]]:
        """Yield after each forward, for each sequence in flight: (index of its prompt, the ids that are
        certain so far, its completion if it has ended)."""
        if self.full:
            yield [(index, [], Completion([], "length")) for index in self.full]
        try:
            while _on_any_rank(self.model, bool(self.slots or self.wave.indices or self.waves)):
                if not self.slots and not self.wave.indices and self.waves:
                    self._begin_wave()
                if self.slots or self.wave.indices:
                    yield self._step()
                else:  # this rank is done: it still takes part in gathering the weights
                    self._forward([0], torch.tensor([0, 1], dtype=torch.int32), max_seqlen=1, lengths=[1])
        finally:
            reshard(self.model)

    def _most_tokens(self, index: int) -> int:
        room = self.decoding.max_new_tokens
        return min(len(self.prompts[index]) + room, self.model.config.longest_sequence)

    def _waves(self, cache_bytes: int) -> deque[_Wave]:
        """Put the prompts into waves, the short ones first.

        All rows of a wave's cache have one length, so its longest sequence is at most twice as long as its
        shortest: less than half of the cache is wasted. If all prompts fit at once, there is one wave.
        """
        with_room = set(range(len(self.prompts))) - set(self.full)
        ordered = sorted(with_room, key=lambda index: (len(self.prompts[index]), index))
        element_size = next(self.model.parameters()).element_size()
        position_bytes = bytes_per_token(self.model.config, element_size) * self.decoding.beams

        def slots(positions: int) -> int:
            at_most = min(cache_bytes // (position_bytes * positions), MOST_ROWS // self.decoding.beams)
            return max(1, min(at_most, len(ordered)))

        waves: deque[_Wave] = deque()
        if not ordered:
            return waves
        one_is_enough = slots(self._most_tokens(ordered[-1])) == slots(1)
        for index in ordered:
            positions = self._most_tokens(index)
            if not waves or (positions > 2 * self._most_tokens(waves[-1].indices[0]) and not one_is_enough):
                waves.append(_Wave(deque(), 0, 0))
            waves[-1].indices.append(index)
            waves[-1].positions = positions
        for wave in waves:
            wave.slots = min(slots(wave.positions), len(wave.indices))
        return waves

    def _begin_wave(self) -> None:
        self.cache = None  # before the next is made
        self.wave = self.waves.popleft()
        config, rows = self.model.config, self.wave.slots * self.decoding.beams
        self.cache = KVCache(config, rows, self.wave.positions)
        penalty, seen = self.decoding.repetition_penalty, None
        if penalty != 1:
            seen = SeenTokens(rows, config.vocab_size, penalty, self.device)
        search = BeamSearch if self.decoding.beams > 1 else Sampler
        self.search = search(self.decoding, self.stop_ids, seen)

    def _admit(self) -> list[list[int]]:
        """Prompts for the free slots, as many as one step may read."""
        admitted: list[list[int]] = []
        num_tokens = 0
        while self.wave.indices and len(self.slots) < self.wave.slots:
            index = self.wave.indices[0]
            prompt = self.prompts[index]
            num_tokens += len(prompt)
            if admitted and num_tokens > PREFILL_TOKENS:
                break
            self.wave.indices.popleft()
            self.search.admit(self.draws[index], prompt, self._most_tokens(index) - len(prompt))
            self.slots.append(_Slot(index, 0))
            admitted.append(prompt)
        return admitted

    def _step(self) -> list[tuple[int, list[int], Completion | None]]:
        going_on = len(self.slots)
        admitted = self._admit()
        logits_RV = self._logits(going_on, admitted)
        _check_scores(self.model, logits_RV)
        for slot in self.slots[:going_on]:
            slot.length += 1
        for slot, prompt in zip(self.slots[going_on:], admitted, strict=True):
            slot.length = len(prompt)
        advance = self.search.advance(logits_RV)
        self.tokens = advance.tokens
        said = [
            (slot.index, self.search.said(number), advance.completions.get(number))
            for number, slot in enumerate(self.slots)
        ]
        self._continue_parents(advance.parents)
        for number in sorted(advance.completions, reverse=True):
            self._leave(number)
        return said

    def _logits(self, going_on: int, admitted: list[list[int]]) -> Tensor:
        """Logits (R, V) of all rows, by one forward of each continued row's last token and whole prompts."""
        width = self.search.width
        num_rows = going_on * width
        lengths = [len(prompt) for prompt in admitted]
        row_lengths = [slot.length + 1 for slot in self.slots[:going_on] for _ in range(width)]
        rows, positions = list(range(num_rows)), [length - 1 for length in row_lengths]
        tokens = list(self.tokens)
        for number, prompt in enumerate(admitted, going_on):
            tokens += prompt
            rows += [number * width] * len(prompt)
            positions += range(len(prompt))
        rows_T, positions_T = torch.tensor([rows, positions]).to(self.device)
        longest = max(lengths + row_lengths)
        ends = torch.tensor([0, *lengths]).cumsum(0)
        logits_RV = self._forward(
            tokens,
            ends.int(),
            positions=positions_T,
            max_seqlen=max(lengths, default=0),
            lengths=lengths,
            logit_index=torch.cat([torch.arange(num_rows), num_rows + ends[1:] - 1]) if admitted else None,
            cache=CacheStep(self.cache, rows_T, positions_T, row_lengths, longest),
        )
        if width == 1 or not admitted:
            return logits_RV
        # Every beam begins as the prompt.
        first = [number * width for number in range(going_on, len(self.slots))]
        others = [(row, row + beam) for row in first for beam in range(1, width)]
        self.cache.copy_rows(*map(list, zip(*others, strict=True)), 0, max(lengths))
        return torch.cat([logits_RV[:num_rows], logits_RV[num_rows:].repeat_interleave(width, 0)])

    def _continue_parents(self, parents: list[int] | None) -> None:
        """Copy each row's parent into the row, without the prompt, which all rows of a slot share."""
        moved = [(parent, row) for row, parent in enumerate(parents or []) if parent != row]
        if moved:
            start = min(len(self.prompts[slot.index]) for slot in self.slots)
            stop = max(slot.length for slot in self.slots)
            self.cache.copy_rows(*map(list, zip(*moved, strict=True)), start, stop)

    def _leave(self, number: int) -> None:
        width = self.search.width
        last = self.slots.pop()
        last_tokens = self.tokens[-width:]
        del self.tokens[-width:]
        if number < len(self.slots):
            self.slots[number] = last
            self.tokens[number * width : (number + 1) * width] = last_tokens
            self.cache.move_rows(len(self.slots) * width, number * width, width, last.length)
        self.search.leave(number)

    def _forward(self, tokens: list[int], cu_seqlens: Tensor, *, logit_index=None, **more) -> Tensor:
        if logit_index is not None:
            logit_index = logit_index.to(self.device)
        tokens_T = torch.tensor(tokens).to(self.device)
        with torch.no_grad(), _without_compiling(self.model):
            return self.model(tokens_T, cu_seqlens.to(self.device), logit_index=logit_index, **more)


def _check(model: Llama, prompts: list[list[int]], decoding: Decoding, cache_bytes: int) -> None:
    if cache_bytes < 1:
        raise UserError("generation.cache_bytes", f"must be above 0: {cache_bytes}")
    if decoding.beams > min(MOST_ROWS, model.config.vocab_size // 2):
        raise UserError("decoding.beams", f"more than can be told apart or held: {decoding.beams}")
    for prompt in prompts:
        if not prompt:
            raise UserError("generation", "a prompt is empty: it needs at least one token")
        if not 0 <= min(prompt) <= max(prompt) < model.config.vocab_size:
            strange = next(token for token in prompt if not 0 <= token < model.config.vocab_size)
            raise UserError("generation", f"the model has {model.config.vocab_size} tokens, not {strange}")
        model.config.check_sequence_length(len(prompt))


def _check_scores(model: Llama, logits_RV: Tensor) -> None:
    """Raise RunError if scores are not finite: greedy decoding would take token 0, and sampling none.

    A sharded model is not checked: if one rank ended, the others would wait for it.
    """
    if is_sharded(model) or logits_RV.isfinite().all():
        return
    dtype = str(logits_RV.dtype).removeprefix("torch.")
    what = f"gives scores that are no numbers in {dtype}"
    raise RunError("the model", what, "Where float16 is too narrow for it, bfloat16 or float32 is not.")


def _without_compiling(model: Llama):
    """Run layers that were compiled for training without their graphs: the shapes of steps vary too much."""
    compiled = any(layer._compiled_call_impl is not None for layer in model.model.layers)
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _on_any_rank(model: Llama, busy: bool) -> bool:
    if not is_sharded(model):
        return busy
    flag = torch.tensor(int(busy), device=model.rotary_cos.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)
