"""Extends the vocabulary of a model with rows for new tokens, made from the rows of old ones.

Old ids and the rows of old tokens stay the same, bit for bit, and so do the logits of old tokens for text
without new ones. New tokens get the ids after the tokenizer's last one. If the embedding already has rows
there, as padding, they are overwritten.

Memory: one written shard (1 GiB, or one tensor that is larger) and two embeddings.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from fastling import files
from fastling.data.tokenizer import load_tokenizer
from fastling.errors import RunError, UserError
from fastling.json_files import json_text, read_json
from fastling.model.huggingface import read_config
from fastling.surgery.folders import (
    EMBEDDINGS,
    Weights,
    copy_small_files,
    narrowed,
    new_folder,
    write_weights,
)
from fastling.surgery.progress import progress_over
from fastling.surgery.tokens import NewTokens

INITS = ("mean-of-pieces", "mean", "zip-tie-approximation", "copy:TOKEN")


def row_sources(added: NewTokens, init: str) -> list[list[int]] | None:
    """For each new token the old ids whose rows' mean is the new row; None for the mean of all rows.

    Raises UserError for an unknown `init`, or if the rows that it asks for are not there.
    """
    if init == "mean-of-pieces":
        for text, parts in zip(added.texts, added.parts, strict=True):
            if not parts:
                raise UserError("--init", f"the old tokenizer has no tokens for {text!r}", "Use --init mean.")
        return added.parts
    if init == "mean":
        return None
    if init == "zip-tie-approximation":
        return added.byte_parts()
    kind, _, token = init.partition(":")
    if kind != "copy" or not token:
        raise UserError("--init", f"is none of {', '.join(INITS)}: {init}")
    token_id = added.old.control_id(token)
    if token_id is None:
        raise UserError(
            "--init", f"the vocabulary has no such token: {token!r}", "A space is written ▁ or Ġ."
        )
    return [[token_id]] * len(added.texts)


def num_rows(old_rows: int, added: NewTokens, multiple: int) -> int:
    """Rows of the new embedding: enough for all ids, not fewer than before, and a multiple of `multiple`."""
    needed = max(old_rows, added.first_id + len(added.texts))
    return -(-needed // multiple) * multiple


def extended_rows(table: Tensor, added: NewTokens, sources: list[list[int]] | None, rows: int) -> Tensor:
    """Embedding or head (old rows, H) -> (rows, H) in its dtype. Means are computed in float64.

    Rows beyond the last token are the mean of all old rows, so that their logits are never the highest.
    """
    mean = table[: added.first_id].mean(0, dtype=torch.float64).to(table.dtype)
    longer = mean.repeat(rows, 1)
    longer[: len(table)] = table
    for number in range(len(added.texts)):
        row = mean if sources is None else table[sources[number]].to(torch.float64).mean(0)
        longer[added.first_id + number] = row.to(table.dtype)
    return longer


def extend_model(folder: Path, out: Path, added: NewTokens, init: str, multiple: int = 1) -> dict:
    """Write the model of `folder` with rows and tokenizer files for new tokens; return what was done."""
    with ExitStack() as stack:
        weights = stack.enter_context(Weights(folder))
        weights.refuse_meta("Convert it first.")
        old_rows = weights.config.vocab_size
        if added.first_id > old_rows:
            what = f"its tokenizer has {added.first_id} tokens, but its embedding only {old_rows} rows"
            raise UserError(str(folder), what, "They do not belong together.")
        sources, rows = row_sources(added, init), num_rows(old_rows, added, multiple)
        num_tables = len(weights.shapes.keys() & set(EMBEDDINGS))  # one, where they are tied
        num_weights = weights.num_weights + num_tables * (rows - old_rows) * weights.config.hidden_size
        aside = stack.enter_context(new_folder(out, num_weights * weights.dtype.itemsize))
        advance = stack.enter_context(progress_over("extending", weights.num_weights))
        write_weights(_tensors(weights, added, sources, rows, advance), aside, weights.dtype)
        _write_small_files(folder, aside, added, rows)
        _check(aside, added, rows)
    return {
        "out": str(out),
        "tokens": len(added.texts),
        "first_id": added.first_id,
        "rows": rows,
        "rows_before": old_rows,
        "init": init,
        "known": added.known,
        "helpers": added.helpers,
        "unreached": added.unreached,
        "pieces_per_token_before": sum(map(len, added.parts)) / len(added.parts),
    }


def _tensors(
    weights: Weights,
    added: NewTokens,
    sources: list[list[int]] | None,
    rows: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[str, Tensor]]:
    dtype = weights.dtype
    for name in weights.shapes:
        tensor = weights.read(name)
        advance(tensor.numel())
        if name in EMBEDDINGS:
            tensor = extended_rows(tensor, added, sources, rows)
        yield name, narrowed(name, tensor, dtype, weights.folder)


def _write_small_files(folder: Path, aside: Path, added: NewTokens, rows: int) -> None:
    copy_small_files(folder, aside)
    for name, content in added.files.items():
        (aside / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    config = read_json(folder / "config.json") | {"vocab_size": rows}
    files.write_text(aside / "config.json", json_text(config))


def _check(aside: Path, added: NewTokens, rows: int) -> None:
    """Open the finished folder as its readers will. Raises RunError where it does not know a token."""
    tokenizer = load_tokenizer(aside)
    for number, text in enumerate(added.texts, added.first_id):
        if number not in (tokenizer.control_id(text), tokenizer.control_id(text.replace(" ", "▁"))):
            raise RunError(str(aside), f"failed its check: {text!r} is not token {number} of its tokenizer")
    if read_config(aside).vocab_size != rows or tokenizer.vocab_size > rows:
        raise RunError(str(aside), f"failed its check: its config.json does not say {rows} rows")
