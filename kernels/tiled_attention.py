"""Attention inside documents on a CPU: PyTorch's fused one, on several documents of similar length at once.

    P = softmax(Q K^T / sqrt(D)), causal        O = P V        delta[t] = sum over d of dO[t, d] * O[t, d]
    dV = P^T dO        dS = P * (dO V^T - delta) / sqrt(D)        dQ = dS K        dK = dS^T Q

With one call for each document, most time would go by between the products. So documents of similar length
form a tile, padded at their ends to one length; the causal mask hides the padding from every real token. The
half-precision numbers of short documents are widened to float32, since PyTorch's products of small
half-precision matrices cost more to set up than to compute; on a CPU without instructions for them, those of
all documents are. Long documents are padded even alone: PyTorch compiles its half-precision products again
for each length and keeps them for ever, some 5 MiB each. One gathering of rows brings the stream into the
order of the tiles, and another one brings it back.
Shapes: T packed tokens, P tokens of all tiles with their padding, N heads, K kv heads, M either, D head dim,
B documents of a tile, L tokens of each with its padding.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from fastling.kernels import runtime

TILE_TOKENS = 2048
LONGEST_WIDENED = 192  # tokens of a document; for longer ones half precision is faster
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Tile(NamedTuple):
    """Documents of one padded length, side by side."""

    start: int
    """The first of its rows, among those of all tiles."""
    documents: int
    length: int
    """The length of each document with its padding."""

    def of(self, x_PMD: Tensor) -> Tensor:
        """A view of the tile's tokens by document and head: (B, M, L, D), or (B, M, L) of a (P, M)."""
        rows = x_PMD[self.start : self.start + self.documents * self.length]
        return rows.unflatten(0, (self.documents, self.length)).transpose(1, 2)

    def inputs(self, *tensors_PMD: Tensor) -> tuple[Tensor, ...]:
        """The same of each tensor, in the type in which the tile's products are computed."""
        device, dtype = tensors_PMD[0].device, tensors_PMD[0].dtype
        widens = self.length <= LONGEST_WIDENED or runtime.lacks_products(device, dtype)
        parts = (self.of(x_PMD) for x_PMD in tensors_PMD)
        return tuple(x.float() if widens and x.dtype.itemsize < 4 else x for x in parts)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a stream are in the tiles."""

    tiles: list[Tile]
    sources_P: Tensor
    """The token of the stream that each row of the tiles holds; in padding, the document's last one."""
    padding: Tensor
    """The rows of the tiles that are padding."""
    places_T: Tensor
    """The row of the tiles that holds each token of the stream."""

    def gather(self, x_TMD: Tensor, *, zero_padding: bool = False) -> Tensor:
        """The rows of the tiles, (P, M, D), from those of the stream."""
        x_PMD = x_TMD.index_select(0, self.sources_P)
        return x_PMD.index_fill_(0, self.padding, 0) if zero_padding else x_PMD

    def scatter(self, x_PMD: Tensor) -> Tensor:
        """The rows of the stream, (T, M, D), from those of the tiles, without the padding."""
        return x_PMD.index_select(0, self.places_T)


def tiled_attention(q_TND: Tensor, k_TKD: Tensor, v_TKD: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Return (T, N, D) in q's dtype, for tensors on a CPU.

    Raises ValueError unless the documents' borders `cu_seqlens`, (documents + 1,) int32, ascend from 0 to T.
    It is a custom operator, compiled or not: a graph that knew the lengths would serve one pack alone.
    """
    return _forward_op(q_TND, k_TKD, v_TKD, cu_seqlens)[0]


def lengths_between(cu_seqlens: Tensor, num_tokens: int) -> tuple[int, ...]:
    """Lengths of documents. Raises ValueError unless their borders are those of the stream's tokens: rows
    outside of them would never be written.
    """
    borders = cu_seqlens.tolist()
    if [*borders[:1], *borders[-1:]] != [0, num_tokens] or borders != sorted(borders):
        words = f"must ascend from 0 to the {num_tokens} tokens"
        raise ValueError(f"attention: cu_seqlens {words}: {str(borders)[:80]}")
    return tuple(stop - start for start, stop in pairwise(borders))


def _forward(q_TND: Tensor, k_TKD: Tensor, v_TKD: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output (T, N, D) and, for backward, the logarithms of the softmax's denominators (T, N)."""
    layout = _layout(lengths_between(cu_seqlens, len(q_TND)))
    q_PND, k_PKD, v_PKD = map(layout.gather, (q_TND, k_TKD, v_TKD))
    out_PND, logsumexp_PN = _empty_outputs(q_PND)
    for tile in layout.tiles:
        out, logsumexp = _flash(*_for_queries(*tile.inputs(q_PND, k_PKD, v_PKD)), 0.0, True)
        tile.of(out_PND).copy_(out)
        tile.of(logsumexp_PN).copy_(logsumexp)
    return layout.scatter(out_PND), layout.scatter(logsumexp_PN)


def _empty_outputs(q_TND: Tensor, *_) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(q_TND.dtype, torch.float32)
    return q_TND.new_empty(q_TND.shape), q_TND.new_empty(q_TND.shape[:2], dtype=exact)


def _backward(
    dout_TND: Tensor,
    q_TND: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    out_TND: Tensor,
    logsumexp_TN: Tensor,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    layout = _layout(lengths_between(cu_seqlens, len(q_TND)))
    *qkv, out_PND, logsumexp_PN = map(layout.gather, (q_TND, k_TKD, v_TKD, out_TND, logsumexp_TN))
    dout_PND = layout.gather(dout_TND, zero_padding=True)
    gradients = [torch.empty_like(x) for x in qkv]
    for tile in layout.tiles:
        dout, out, *qkv_BMLD = tile.inputs(dout_PND, out_PND, *qkv)
        logsumexp = tile.of(logsumexp_PN)
        parts = _flash_backward(dout, *_for_queries(*qkv_BMLD), out, logsumexp, 0.0, True)
        for gradient, part in zip(gradients, parts, strict=True):
            heads = gradient.shape[1]
            summed = part if part.shape[1] == heads else part.unflatten(1, (heads, -1)).sum(2)
            tile.of(gradient).copy_(summed)
    return tuple(map(layout.scatter, gradients))


def _for_queries(q_BNLD: Tensor, *keys_and_values_BKLD: Tensor) -> tuple[Tensor, ...]:
    """(B, N, L, D) each: kv heads are repeated for their query heads."""
    num_heads = q_BNLD.shape[1]
    return q_BNLD, *(
        x if x.shape[1] == num_heads else x.repeat_interleave(num_heads // x.shape[1], dim=1)
        for x in keys_and_values_BKLD
    )


@lru_cache(maxsize=4)
def _layout(lengths: tuple[int, ...]) -> Layout:
    """The layout in which documents of one padded length form tiles, of TILE_TOKENS tokens at most if they
    are several.
    """
    starts = accumulate(lengths, initial=0)
    documents = [
        (_padded(length), start, length) for start, length in zip(starts, lengths, strict=False) if length
    ]
    documents.sort(key=itemgetter(0))
    padded_D, starts_D, lengths_D = torch.tensor(documents, dtype=torch.int64).reshape(-1, 3).unbind(1)
    document_P = torch.arange(len(documents)).repeat_interleave(padded_D)
    offsets_P = torch.arange(len(document_P)) - (padded_D.cumsum(0) - padded_D)[document_P]
    is_real_P = offsets_P < lengths_D[document_P]
    sources_P = starts_D[document_P] + torch.minimum(offsets_P, lengths_D[document_P] - 1)
    real, padding = (which.nonzero().squeeze(1) for which in (is_real_P, ~is_real_P))
    places_T = torch.empty_like(real).index_copy_(0, sources_P[real], real)
    return Layout(_tiles(documents), sources_P, padding, places_T)


def _tiles(documents: Sequence[tuple[int, int, int]]) -> list[Tile]:
    """The tiles of documents (padded length, start, length), which are sorted by their padded length."""
    tiles, start = [], 0
    for padded, count in Counter(map(itemgetter(0), documents)).items():
        most = max(1, TILE_TOKENS // padded)
        for first in range(0, count, most):
            tiles.append(Tile(start, min(most, count - first), padded))
            start += tiles[-1].documents * padded
    return tiles


def _padded(length: int) -> int:
    """The length to which a document is padded: one of few, at most an eighth longer than the document."""
    step = max(1, 1 << (length - 1).bit_length() >> 4)
    return -(-length // step) * step


# The operator --------------------------------------------------------------------------------------

# By hand and not by torch.library.custom_op, whose operators import PyTorch's compiler when first called.


def _define(name: str, function: Callable, fake: Callable) -> Callable:
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(name, "CPU", function)
    torch.library.register_fake(name, fake)
    return getattr(torch.ops.fastling, name.removeprefix("fastling::")).default


def _setup(ctx, inputs, output) -> None:
    *qkv, cu_seqlens = inputs
    ctx.save_for_backward(*qkv, *output, cu_seqlens)


_forward_op = _define("fastling::tiled_attention", _forward, _empty_outputs)
_backward_op = _define(
    "fastling::tiled_attention_backward",
    _backward,
    lambda _, *inputs: tuple(x.new_empty(x.shape) for x in inputs[:3]),
)
torch.library.register_autograd(
    "fastling::tiled_attention",
    lambda ctx, dout_TND, _: (*_backward_op(dout_TND, *ctx.saved_tensors), None),
    setup_context=_setup,
)
