"""Greedy generation, in its simplest correct form: the whole forward again for every new token.

There is no KV cache yet: n new tokens after a prompt of p cost n * (p + n / 2) tokens of forward.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from fastling.errors import UserError
from fastling.model.llama import Llama, reshard


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen; the defaults are greedy."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 for all."""
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    seed: int = 0


class Completion(NamedTuple):
    """What a model said."""

    ids: list[int]
    """Without the stop id that ended it."""
    finish_reason: Literal["stop", "length"]


def stream(model: Llama, prompt: list[int], decoding: Decoding, *, stop_ids: set[int]) -> Iterator[int]:
    """Each id of one completion as soon as it is known, without the stop id."""
    yield from generate(model, [prompt], decoding, stop_ids=stop_ids)[0].ids


@torch.no_grad()
def generate(
    model: Llama, prompts: list[list[int]], decoding: Decoding, *, stop_ids: set[int]
) -> list[Completion]:
    """Return the most likely continuation of each prompt, without the stop id that ended it.

    A continuation also ends where the model's longest sequence does. Prompts may differ between the
    ranks of a sharded model: all ranks make the same number of forward calls. Raises UserError for
    an empty or overlong prompt.
    """
    for prompt in prompts:
        if not prompt:
            raise UserError("generation", "a prompt is empty: it needs at least one token")
        model.config.check_sequence_length(len(prompt))
    answers: list[list[int]] = [[] for _ in prompts]
    unfinished = list(range(len(prompts)))
    ended = [False] * len(prompts)
    for _ in range(decoding.max_new_tokens):
        if not _anyone_unfinished(model, bool(unfinished)):
            break
        # A rank that is done still takes part in gathering the weights, with one idle token.
        documents = [prompts[i] + answers[i] for i in unfinished] or [[0]]
        next_ids = _next_tokens(model, documents)
        still = []
        for i, token in zip(unfinished, next_ids, strict=False):
            if token in stop_ids:
                ended[i] = True
                continue
            answers[i].append(token)
            if len(prompts[i]) + len(answers[i]) < model.config.longest_sequence:
                still.append(i)
        unfinished = still
    reshard(model)
    return [
        Completion(ids, "stop" if stopped else "length") for ids, stopped in zip(answers, ended, strict=True)
    ]


def _next_tokens(model: Llama, documents: list[list[int]]) -> list[int]:
    """One packed forward over all documents; the head runs on their last tokens only."""
    device = model.rotary_cos.device
    lengths = [len(document) for document in documents]
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    tokens = torch.tensor([token for document in documents for token in document])
    logits_DV: Tensor = model(
        tokens.to(device),
        cu_seqlens.to(device),
        max_seqlen=max(lengths),
        lengths=lengths,
        logit_index=(cu_seqlens[1:].long() - 1).to(device),
    )
    return logits_DV.argmax(dim=-1).tolist()


def _anyone_unfinished(model: Llama, unfinished: bool) -> bool:
    if not isinstance(model, FSDPModule):
        return unfinished
    flag = torch.tensor(int(unfinished), device=model.rotary_cos.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)
