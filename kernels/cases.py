"""Every op with its shapes, inputs, bytes and flops: one table, which tests and benchmarks share.

An `Op` joins a kernel to its plain version and makes inputs for both. Bytes are the fewest that the op can
move through device memory (each input read once, each output written once), so that bytes / bandwidth is
the floor of its time. Shapes: T packed tokens, H hidden, F ffn, N heads, K kv heads, D head dim, V vocab,
S supervised rows, P positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastling.kernels.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from fastling.kernels.swiglu import swiglu, swiglu_reference

Inputs = dict[str, object]  # keyword arguments of an op; what requires grad is differentiated


@dataclass(frozen=True)
class Shape:
    """The widths of a model and how many tokens it is given."""

    name: str
    tokens: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


@dataclass(frozen=True)
class Op:
    """A kernel, its plain version, and what one call of them costs.

    `inputs(shape, dtype, device)` draws from torch's default generator. `forward_bytes(shape, b)` and
    `backward_bytes(shape, b)` are the floors for values of b bytes; `flops(shape)` counts matrix products.
    """

    name: str
    kernel: Callable
    reference: Callable
    inputs: Callable[[Shape, torch.dtype, torch.device], Inputs]
    forward_bytes: Callable[[Shape, int], int]
    backward_bytes: Callable[[Shape, int], int]
    flops: Callable[[Shape], int] = lambda shape: 0


MODELS = {
    "llama-7b": Shape("llama-7b", 8192, 4096, 11008, 32, 32, 128, 32000),
    "llama3-8b": Shape("llama3-8b", 8192, 4096, 14336, 32, 8, 128, 128256),
    "llama3.2-1b": Shape("llama3.2-1b", 8192, 2048, 8192, 32, 8, 64, 128256),
}
# Nothing here is a power of two or a multiple of eight: every mask and every tail is used.
RAGGED = [
    Shape("one token", 1, 24, 20, 2, 1, 6, 37),
    Shape("odd", 7, 33, 43, 3, 3, 10, 101),
    Shape("wide", 5, 300, 2100, 9, 3, 24, 5003),
]


def leaf(*shape: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> Tensor:
    """Normally distributed values that want a gradient."""
    return (torch.randn(shape, device=device) * scale).to(dtype).requires_grad_()


def _norm_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    return {
        "x": leaf(shape.tokens, shape.hidden, dtype=dtype, device=device),
        "weight": leaf(shape.hidden, dtype=dtype, device=device),
        "eps": 1e-5,
    }


def _add_norm_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    residual = leaf(shape.tokens, shape.hidden, dtype=dtype, device=device, scale=3.0)
    return _norm_inputs(shape, dtype, device) | {"residual": residual}


def _head_norm_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    """The query heads, where they lie in the output of the fused projection."""
    num_heads = shape.heads + 2 * shape.kv_heads
    qkv = torch.randn(shape.tokens, num_heads, shape.head_dim, device=device).to(dtype)
    queries = qkv[:, : shape.heads].requires_grad_()
    return {"x": queries, "weight": leaf(shape.head_dim, dtype=dtype, device=device), "eps": 1e-6}


def _swiglu_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"gate_up_T2F": leaf(shape.tokens, 2 * shape.ffn, dtype=dtype, device=device, scale=2.0)}


def _hidden(shape: Shape, b: int) -> int:
    return shape.tokens * shape.hidden * b


def _queries(shape: Shape, b: int) -> int:
    return shape.tokens * shape.heads * shape.head_dim * b


def _ffn(shape: Shape, b: int) -> int:
    return shape.tokens * shape.ffn * b


OPS = {
    op.name: op
    for op in (
        Op(
            "rms_norm",
            rms_norm,
            rms_norm_reference,
            _norm_inputs,
            lambda shape, b: 2 * _hidden(shape, b) + 4 * shape.tokens,
            lambda shape, b: 3 * _hidden(shape, b) + 4 * shape.tokens,
        ),
        Op(
            "add_rms_norm",
            add_rms_norm,
            add_rms_norm_reference,
            _add_norm_inputs,
            lambda shape, b: 4 * _hidden(shape, b) + 4 * shape.tokens,
            lambda shape, b: 4 * _hidden(shape, b) + 4 * shape.tokens,
        ),
        Op(
            "rms_norm of heads",
            rms_norm,
            rms_norm_reference,
            _head_norm_inputs,
            lambda shape, b: 2 * _queries(shape, b) + 4 * shape.tokens * shape.heads,
            lambda shape, b: 3 * _queries(shape, b) + 4 * shape.tokens * shape.heads,
        ),
        Op(
            "swiglu",
            swiglu,
            swiglu_reference,
            _swiglu_inputs,
            lambda shape, b: 3 * _ffn(shape, b),
            lambda shape, b: 5 * _ffn(shape, b),
        ),
    )
}
