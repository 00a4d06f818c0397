"""The pointwise ops in plain PyTorch, a tile of rows at a time: what runs where Triton does not.

A chain of PyTorch operations reads and writes whole tensors at every link, and a CPU spends its time on
memory. With a tile that fits into a core's cache, only the first read and the last write reach memory, and no
temporary is larger than a tile. The arithmetic is float32; norms and rotary round once, as the kernels do,
SwiGLU after each of PyTorch's operations, which convert on their way. On a GPU a tensor is one tile: more
launches would cost more than they save.

The formulas are in rms_norm.py, rotary.py and swiglu.py, which call these in place of their kernels.
Shapes: T packed tokens, H hidden, N heads, K kv heads, M either, D head dim, R = D / 2, F ffn, P positions.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_BYTES = 2**20  # of float32: what the second-level cache of a core holds


def tiles(x: Tensor) -> Iterator[slice]:
    """Slices of the first dimension that each fit into the cache; a tensor of one dimension is one row."""
    row_bytes = 4 * max(1, x.numel() // max(1, len(x)))
    step = max(1, len(x) if x.is_cuda or x.dim() == 1 else TILE_BYTES // row_bytes)
    return (slice(start, start + step) for start in range(0, len(x), step))


def wide_dtype(x: Tensor) -> torch.dtype:
    """The type of the arithmetic on `x`: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


# RMSNorm --------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> tuple[Tensor, Tensor]:
    """Return (y, 1 / rms of each row)."""
    y, _, inverse_rms = add_rms_norm(x, None, weight, eps, weight_offset)
    return y, inverse_rms


def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (y, x + residual, 1 / rms of each row); without a residual the second is x itself."""
    wide = wide_dtype(x)
    y, inverse_rms = x.new_empty(x.shape), x.new_empty((*x.shape[:-1], 1), dtype=wide)
    summed = x if residual is None else x.new_empty(x.shape)
    weight = weight.to(wide) + weight_offset
    for rows in tiles(x):
        if residual is not None:
            torch.add(x[rows], residual[rows], out=summed[rows])
        tile = summed[rows].to(wide)
        inverse_rms[rows] = torch.rsqrt(tile.square().mean(-1, keepdim=True) + eps)
        y[rows] = (tile * inverse_rms[rows]).mul_(weight)
    return y, summed, inverse_rms


def rms_norm_backward(
    dy: Tensor,
    dsummed: Tensor | None,
    x: Tensor,
    weight: Tensor,
    inverse_rms: Tensor,
    weight_offset: float,
    needs_dweight: bool,
) -> tuple[Tensor, Tensor]:
    """Return (dx + dsummed, dweight), the latter summed over rows in float32 (zeros if not needed)."""
    wide = wide_dtype(x)
    dx, dweight = x.new_empty(x.shape), x.new_zeros(weight.shape, dtype=wide)
    wide_weight = weight.to(wide) + weight_offset
    for rows in tiles(x):
        normalised = x[rows] * inverse_rms[rows]
        dy_tile = dy[rows].to(wide)
        products = dy_tile * normalised
        if needs_dweight:
            dweight += products.unsqueeze(0).flatten(0, -2).sum(0)
        mean = products.mul_(wide_weight).mean(-1, keepdim=True)
        dx_tile = (dy_tile * wide_weight).sub_(normalised.mul_(mean)).mul_(inverse_rms[rows])
        dx[rows] = dx_tile if dsummed is None else dx_tile.add_(dsummed[rows])
    return dx, dweight.to(weight.dtype)


# Rotary ---------------------------------------------------------------------------------------------


def rotate(outputs, inputs, tables, *, interleaved: bool, inverse: bool) -> None:
    """Rotate inputs[0] and inputs[1] into outputs, and copy inputs[2] if there is one."""
    cos_PR, sin_PR, positions_T = tables
    # The two numbers of a pair lie beside each other, or half a head apart.
    pair, shape = (-1, (-1, 2)) if interleaved else (-2, (2, -1))
    for rows in tiles(inputs[0]):
        # Not table[positions], where a negative position counts from the end.
        cos, sin = (table.index_select(0, positions_T[rows]).unsqueeze(1) for table in (cos_PR, sin_PR))
        cos, sin = torch.stack((cos, cos), pair), torch.stack((-sin, sin), pair)
        for out_TMD, x_TMD in zip(outputs[:2], inputs[:2], strict=True):
            tile = x_TMD[rows].to(wide_dtype(x_TMD)).unflatten(-1, shape)
            partners = tile.roll(1, pair)
            out_TMD[rows] = (tile * cos).addcmul_(partners, sin, value=-1 if inverse else 1).flatten(-2)
    if len(inputs) == 3:
        outputs[2].copy_(inputs[2])


# SwiGLU ---------------------------------------------------------------------------------------------


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """Return (T, F)."""
    num_tokens, width = gate_up_T2F.shape
    y_TF = gate_up_T2F.new_empty(num_tokens, width // 2)
    for rows in tiles(gate_up_T2F):
        gate, up = gate_up_T2F[rows].chunk(2, dim=-1)
        torch.mul(F.silu(gate), up, out=y_TF[rows])
    return y_TF


def swiglu_backward(dy_TF: Tensor, gate_up_T2F: Tensor) -> Tensor:
    """Return the gradient (T, 2F)."""
    gradient_T2F = gate_up_T2F.new_empty(gate_up_T2F.shape)
    d_gate_TF, d_up_TF = gradient_T2F.chunk(2, dim=-1)
    for rows in tiles(gate_up_T2F):
        gate, up = gate_up_T2F[rows].chunk(2, dim=-1)
        torch.mul(F.silu(gate), dy_TF[rows], out=d_up_TF[rows])
        torch.ops.aten.silu_backward.grad_input(dy_TF[rows] * up, gate, grad_input=d_gate_TF[rows])
    return gradient_T2F
