"""Attention inside documents on a CPU: PyTorch's fused one, on documents of about a length together.

    P = softmax(Q K^T / sqrt(D)), causal        O = P V        delta[t] = sum over d of dO[t, d] * O[t, d]
    dV = P^T dO        dS = P * (dO V^T - delta) / sqrt(D)        dQ = dS K        dK = dS^T Q

One call for each document would spend its time between the products. So documents are taken out of the stream
some at a time, padded to one length at their ends, where the causal mask hides the padding from every real
token; and short ones' half-precision numbers are widened to float32, since PyTorch's products of small
half-precision matrices cost more to set up than to do. Long ones are padded even alone: PyTorch compiles its
half-precision products anew for each length and keeps them for ever, some 5 MiB a length. Results are written
where they belong; no tensor is cut and joined again by autograd.
Shapes: T packed tokens, N heads, K kv heads, G = N / K query heads of a kv head, D head dim, B documents of a
tile, L tokens of each with its padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_TOKENS = 2048
LONGEST_WIDENED = 192  # tokens of a document; with longer ones half precision is the faster
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Tile:
    """Documents of one padded length."""

    rows: Tensor
    """(B * L,) rows of the stream; in a document's padding, its last."""
    padding: Tensor
    """Where in `rows` there is padding."""
    real: Tensor
    """Where there is none."""
    length: int

    def take(self, x_TMD: Tensor, *, zero_padding: bool = False) -> Tensor:
        """(B, M, L, D): the tile's tokens, by document and head."""
        taken = x_TMD[self.rows]
        if taken.dtype.itemsize < 4 and self.length <= LONGEST_WIDENED:
            taken = taken.float()
        if zero_padding and len(self.padding):
            taken[self.padding] = 0
        return taken.unflatten(0, (-1, self.length)).transpose(1, 2)

    def put(self, out_TMD: Tensor, part_BMLD: Tensor) -> None:
        """Write into the stream what `take` would give; padding goes nowhere."""
        flat = part_BMLD.transpose(1, 2).flatten(0, 1).to(out_TMD.dtype)
        out_TMD[self.rows[self.real]] = flat[self.real] if len(self.padding) else flat


def tiled_attention(q_TND: Tensor, k_TKD: Tensor, v_TKD: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return (T, N, D) in q's dtype, for documents of `lengths`, which sum to T. For tensors on a CPU."""
    return _TiledAttention.apply(q_TND, k_TKD, v_TKD, tuple(lengths))


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_TND, k_TKD, v_TKD, lengths):
        out_TND, ctx.lengths = q_TND.new_empty(q_TND.shape), lengths
        group = q_TND.shape[1] // k_TKD.shape[1]
        logsumexps = []
        for tile in _tiles(lengths):
            keys, values = (_for_queries(tile.take(x), group) for x in (k_TKD, v_TKD))
            out, logsumexp = _flash(tile.take(q_TND), keys, values, 0.0, True)
            logsumexps.append(logsumexp)
            tile.put(out_TND, out)
        ctx.save_for_backward(q_TND, k_TKD, v_TKD, out_TND, *logsumexps)
        return out_TND

    @staticmethod
    @once_differentiable
    def backward(ctx, dout_TND):
        q_TND, k_TKD, v_TKD, out_TND, *logsumexps = ctx.saved_tensors
        group = q_TND.shape[1] // k_TKD.shape[1]
        dq_TND, dk_TKD, dv_TKD = (x.new_empty(x.shape) for x in (q_TND, k_TKD, v_TKD))
        for tile, logsumexp in zip(_tiles(ctx.lengths), logsumexps, strict=True):
            dout = tile.take(dout_TND, zero_padding=True)
            keys, values = (_for_queries(tile.take(x), group) for x in (k_TKD, v_TKD))
            inputs = (dout, tile.take(q_TND), keys, values, tile.take(out_TND), logsumexp)
            dq, dk, dv = _flash_backward(*inputs, 0.0, True)
            tile.put(dq_TND, dq)
            tile.put(dk_TKD, dk.unflatten(1, (-1, group)).sum(2) if group > 1 else dk)
            tile.put(dv_TKD, dv.unflatten(1, (-1, group)).sum(2) if group > 1 else dv)
        return dq_TND, dk_TKD, dv_TKD, None


def _for_queries(x_BKLD: Tensor, group: int) -> Tensor:
    """(B, N, L, D): each kv head as often as it has query heads."""
    return x_BKLD.repeat_interleave(group, dim=1) if group > 1 else x_BKLD


@lru_cache(maxsize=4)
def _tiles(lengths: tuple[int, ...]) -> list[Tile]:
    """Documents of about one length go together, as many as TILE_TOKENS let them."""
    groups: dict[int, list[tuple[int, int]]] = {}
    start = 0
    for length in lengths:
        if length:
            groups.setdefault(_padded(length), []).append((start, length))
        start += length
    tiles = []
    for padded, documents in groups.items():
        together = max(1, TILE_TOKENS // padded)
        for first in range(0, len(documents), together):
            tiles.append(_tile(documents[first : first + together], padded))
    return tiles


def _padded(length: int) -> int:
    """The length that a document is padded to: few different ones, at most an eighth too long."""
    step = max(1, 1 << (length - 1).bit_length() >> 4)
    return -(-length // step) * step


def _tile(documents: Sequence[tuple[int, int]], padded: int) -> Tile:
    starts_B1, lengths_B1 = (torch.tensor(column).unsqueeze(1) for column in zip(*documents, strict=True))
    offsets_L = torch.arange(padded)
    rows_BL = starts_B1 + torch.minimum(offsets_L, lengths_B1 - 1)
    is_padding = (offsets_L >= lengths_B1).flatten()
    padding, real = (which.nonzero().squeeze(1) for which in (is_padding, ~is_padding))
    return Tile(rows_BL.flatten(), padding, real, padded)
