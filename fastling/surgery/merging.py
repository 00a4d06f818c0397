"""Merges several fine-tuned models into one: their weighted average, or TIES.

TIES (Yadav et al. 2023), for each tensor, with delta_t = W_t - W_base of model t:
  trim    keep the int(density * numel) largest |delta_t|, of equal ones the first; the rest is zero
  elect   the sign of sum_t w_t * delta_t, taken as + where that is zero
  merge   the mean, weighted by w_t, over the models whose trimmed delta has that sign; zero where none has
  scale   W = W_base + scale * merged
Trimming each tensor by itself, and w_t, are as in mergekit; the paper trims a model's tensors jointly and
has no w_t. All in float32.

Memory: one written shard (1 GiB, or one tensor that is larger) and, of the largest tensor in float32,
four for the average, and four more than there are models for TIES.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import numpy
import torch
from torch import Tensor

from fastling.data.tokenizer import added_beside, load_tokenizer
from fastling.data.tokenizer_export import probing_strings
from fastling.errors import UserError
from fastling.surgery.folders import Weights, copy_small_files, narrowed, new_folder, write_weights
from fastling.surgery.progress import progress_over

PROOF_STRINGS = 2000
"""Number of texts on which the tokenizers must agree."""
_HARMLESS = ("initializer_range", "max_position_embeddings")


def average(tensors: Iterator[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_t w_t * W_t / sum_t w_t in float32, for tensors W_t of one shape."""
    total = None
    for tensor, weight in zip(tensors, weights, strict=True):
        share = tensor.to(torch.float32) * (weight / sum(weights))
        total = share if total is None else total.add_(share)
    return total


def trimmed(delta: Tensor, density: float) -> Tensor:
    """A float32 tensor with all but its int(density * numel) largest magnitudes set to zero."""
    count = int(density * delta.numel())
    if count == delta.numel():
        return delta
    magnitude = delta.abs().flatten()
    if count == 0:
        return torch.zeros_like(delta)
    threshold = float(numpy.partition(magnitude.numpy(), delta.numel() - count)[delta.numel() - count])
    kept = magnitude > threshold
    equal = (magnitude == threshold).nonzero().flatten()
    kept[equal[: count - int(kept.sum())]] = True
    return torch.where(kept.view_as(delta), delta, 0.0)


def ties(
    base: Tensor, tensors: Iterator[Tensor], weights: Sequence[float], density: float, scale: float
) -> Tensor:
    """TIES of one tensor, in float32, as described at the top of this file."""
    base = base.to(torch.float32)
    deltas = [trimmed(tensor.to(torch.float32) - base, density) for tensor in tensors]
    total = torch.zeros_like(base)
    for delta, weight in zip(deltas, weights, strict=True):
        total.add_(delta, alpha=weight)
    positive = total >= 0
    merged, shares = total.zero_(), torch.zeros_like(base)
    for delta, weight in zip(deltas, weights, strict=True):
        agrees = (delta != 0) & ((delta > 0) == positive)
        merged += delta.mul_(agrees).mul_(weight)
        shares.add_(agrees, alpha=weight)
    merged = torch.where(shares > 0, merged / shares, 0.0)
    return base + merged.mul_(scale)


def merge_models(
    folders: Sequence[Path],
    weights: Sequence[float],
    out: Path,
    warn: Callable[[str], None],
    *,
    base_folder: Path | None = None,
    density: float = 1.0,
    scale: float = 1.0,
) -> dict:
    """Write the merged model, with the config, tokenizer and dtype of the first one. With a base, by TIES.

    `warn` is called with what cannot be checked. Raises UserError for models with different shapes, settings
    or tokenizers.
    """
    with ExitStack() as stack:
        models = [stack.enter_context(Weights(folder)) for folder in folders]
        base = stack.enter_context(Weights(base_folder)) if base_folder is not None else None
        first, *others = [*models, base] if base else models
        for other in others:
            _refuse_difference(first, other)
        folders_of_all = [first.folder, *(other.folder for other in others)]
        _check_tokenizers(folders_of_all, first.config.vocab_size, warn)
        first.refuse_meta("Only later models may be Meta's.")
        dtype = first.dtype
        aside = stack.enter_context(new_folder(out, first.num_weights * dtype.itemsize))
        advance = stack.enter_context(progress_over("merging", first.num_weights))

        def merged() -> Iterator[tuple[str, Tensor]]:
            for name in first.shapes:
                tensors = (_finite(model, name) for model in models)
                if base is None:
                    exact = average(tensors, weights)
                else:
                    exact = ties(_finite(base, name), tensors, weights, density, scale)
                yield name, narrowed(name, exact, dtype, out)
                advance(exact.numel())

        write_weights(merged(), aside, dtype)
        copy_small_files(first.folder, aside)
    return {"out": str(out), "models": [str(folder) for folder in folders], "weights": list(weights)}


def _finite(model: Weights, name: str) -> Tensor:
    tensor = model.read(name)
    if not tensor.isfinite().all():
        raise UserError(
            str(model.folder), f"{name} holds numbers that are not finite", "The model is damaged."
        )
    return tensor


def _refuse_difference(first: Weights, other: Weights) -> None:
    """Raise UserError, saying what differs, unless two models have the same settings."""
    for setting in fields(first.config):
        mine, theirs = getattr(first.config, setting.name), getattr(other.config, setting.name)
        if mine != theirs and setting.name not in _HARMLESS:
            what = f"cannot be merged with {first.folder}: {setting.name} is {theirs} here, and {mine} there"
            raise UserError(str(other.folder), what, "Merge models that were tuned from one base.")


def _check_tokenizers(folders: list[Path], rows: int, warn: Callable[[str], None]) -> None:
    """Raise UserError if two tokenizers differ; warn of folders that have none."""
    names = ("tokenizer.json", "tokenizer.model")
    holding = [folder for folder in folders if any((folder / name).is_file() for name in names)]
    bare = [str(folder) for folder in folders if folder not in holding]
    if bare:
        warn(f"no tokenizer to compare in {', '.join(bare)}: whether it is the others' cannot be checked")
    for other in holding[1:]:
        _refuse_other_tokens(holding[0], other, rows)


def _refuse_other_tokens(first: Path, other: Path, rows: int) -> None:
    """Raise UserError if two tokenizers differ; tokens beyond the `rows` of the embedding do not matter."""
    mine, theirs = load_tokenizer(first), load_tokenizer(other)
    refusal = f"cannot be merged with {first}: their tokenizers differ"
    if mine.vocab_size != theirs.vocab_size:
        what = f"{refusal}: {theirs.vocab_size} tokens here, and {mine.vocab_size} there"
        raise UserError(str(other), what)
    for number in range(mine.vocab_size):
        if mine.piece(number) != theirs.piece(number):
            pieces = f"token {number} is {theirs.piece(number)!r} here, and {mine.piece(number)!r} there"
            raise UserError(str(other), f"{refusal}: {pieces}")
    for token, number in sorted(added_beside(mine).items() ^ added_beside(theirs).items()):
        if number < rows:
            what = f"{refusal}: only one of the folders adds {token!r} as token {number}"
            raise UserError(str(other), what)
    texts = probing_strings(mine, PROOF_STRINGS)
    for text, ours, others in zip(texts, mine.encode(texts), theirs.encode(texts), strict=True):
        if ours != others:
            raise UserError(str(other), f"{refusal} on {text!r}")
