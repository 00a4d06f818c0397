"""SwiGLU on the fused projection (Shazeer 2020): y = silu(gate) * up, with silu(z) = z * sigmoid(z).

    d gate = dy * up * s * (1 + gate * (1 - s))        d up = dy * gate * s        s = sigmoid(gate)

gate and up are the two halves of one buffer, so no copy splits them, and the two gradients are the halves of
one buffer too. Moves 3 * T * F * b bytes forward and 5 * T * F * b backward, at b bytes a value; in the
kernels the arithmetic is float32, rounded once. Shapes: T packed tokens, F ffn.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastling.kernels import accept, runtime, tiles
from fastling.kernels.runtime import tl, triton

BLOCK = 2048  # columns of a program: two 128-bit loads of each half for each of its 128 threads


def swiglu_reference(gate_up_T2F: Tensor) -> Tensor:
    """Return (T, F) from (T, 2F), whose first F columns are the gate."""
    _check(gate_up_T2F)
    gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
    return F.silu(gate_TF) * up_TF


def swiglu(gate_up_T2F: Tensor, *, tiled: bool = False) -> Tensor:
    """`swiglu_reference` as one kernel each way. Rows may be strided.

    `tiled` asks for PyTorch by tiles (tiles.py), which also runs where Triton cannot. Raises ValueError for
    arguments that do not fit.
    """
    _check(gate_up_T2F)
    tiled = tiled or not runtime.takes(gate_up_T2F)
    if not tiled:
        accept.dtype("swiglu", "gate_up_T2F", gate_up_T2F, *accept.FLOATS)
        accept.rows("swiglu", "gate_up_T2F", gate_up_T2F)
    if not torch.compiler.is_compiling():
        return _SwiGLU.apply(gate_up_T2F, tiled)
    # The compiler fuses the plain expression.
    return swiglu_reference(gate_up_T2F) if tiled else _forward_op(gate_up_T2F)


def _check(gate_up_T2F: Tensor) -> None:
    accept.dimensions("swiglu", "gate_up_T2F", gate_up_T2F, 2)
    accept.floating("swiglu", "gate_up_T2F", gate_up_T2F)
    if gate_up_T2F.shape[-1] % 2:
        raise ValueError(f"swiglu: gate_up_T2F must have an even last dimension: {tuple(gate_up_T2F.shape)}")


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up_T2F, tiled):
        ctx.save_for_backward(gate_up_T2F)
        ctx.tiled = tiled
        return (tiles.swiglu if tiled else _forward)(gate_up_T2F)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_TF):
        backward = tiles.swiglu_backward if ctx.tiled else _backward
        return backward(dy_TF, *ctx.saved_tensors), None


# Launches ------------------------------------------------------------------------------------------


def _forward(gate_up_T2F: Tensor) -> Tensor:
    y_TF = _empty_output(gate_up_T2F)
    num_columns = y_TF.shape[1]
    grid = (len(y_TF) * runtime.cdiv(num_columns, BLOCK),)
    if grid[0]:
        with runtime.on_device_of(y_TF):
            _forward_kernel[grid](y_TF, gate_up_T2F, gate_up_T2F.stride(0), F=num_columns, BLOCK=BLOCK)
    return y_TF


def _backward(dy_TF: Tensor, gate_up_T2F: Tensor) -> Tensor:
    dy_TF = dy_TF.contiguous()  # a gradient may be an expanded scalar
    d_gate_up_T2F = _empty_gradient(dy_TF, gate_up_T2F)
    num_columns = dy_TF.shape[1]
    grid = (len(dy_TF) * runtime.cdiv(num_columns, BLOCK),)
    if grid[0]:
        with runtime.on_device_of(dy_TF):
            _backward_kernel[grid](
                d_gate_up_T2F, dy_TF, gate_up_T2F, gate_up_T2F.stride(0), F=num_columns, BLOCK=BLOCK
            )
    return d_gate_up_T2F


def _empty_output(gate_up_T2F: Tensor) -> Tensor:
    num_tokens, width = gate_up_T2F.shape
    return gate_up_T2F.new_empty(num_tokens, width // 2)


def _empty_gradient(dy_TF: Tensor, gate_up_T2F: Tensor) -> Tensor:
    return gate_up_T2F.new_empty(gate_up_T2F.shape)


# Kernels -------------------------------------------------------------------------------------------


@triton.jit
def _tile(F: tl.constexpr, BLOCK: tl.constexpr):
    """The row, columns and mask of a program. The grid has only an x axis, since the others end at 65535."""
    tiles_per_row: tl.constexpr = (F + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    columns = (program % tiles_per_row) * BLOCK + tl.arange(0, BLOCK)
    return (program // tiles_per_row).to(tl.int64), columns, columns < F


@triton.jit
def _forward_kernel(y_ptr, gate_up_ptr, stride, F: tl.constexpr, BLOCK: tl.constexpr):
    row, columns, mask = _tile(F, BLOCK)
    gate = tl.load(gate_up_ptr + row * stride + columns, mask=mask).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + F + columns, mask=mask).to(tl.float32)
    tl.store(y_ptr + row * F + columns, gate * tl.sigmoid(gate) * up, mask=mask)


@triton.jit
def _backward_kernel(d_gate_up_ptr, dy_ptr, gate_up_ptr, stride, F: tl.constexpr, BLOCK: tl.constexpr):
    row, columns, mask = _tile(F, BLOCK)
    dy = tl.load(dy_ptr + row * F + columns, mask=mask).to(tl.float32)
    gate = tl.load(gate_up_ptr + row * stride + columns, mask=mask).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + F + columns, mask=mask).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    d_gate = dy * up * sigmoid * (1 + gate * (1 - sigmoid))
    tl.store(d_gate_up_ptr + row * 2 * F + columns, d_gate, mask=mask)
    tl.store(d_gate_up_ptr + row * 2 * F + F + columns, dy * gate * sigmoid, mask=mask)


# For torch.compile ---------------------------------------------------------------------------------

_forward_op = torch.library.custom_op("fastling::swiglu", _forward, mutates_args=())
_forward_op.register_fake(_empty_output)
_backward_op = torch.library.custom_op("fastling::swiglu_backward", _backward, mutates_args=())
_backward_op.register_fake(_empty_gradient)
_forward_op.register_autograd(
    lambda ctx, dy_TF: _backward_op(dy_TF, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
