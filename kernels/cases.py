"""Every op with its shapes, inputs, bytes and flops: one table, which tests and benchmarks share.

An `Op` joins a kernel with its plain version and its formula in float64, and makes inputs for all three.
Bytes are the fewest that the op can move through device memory (each input read once, each output written
once), so that bytes / bandwidth is the floor of its time. Shapes: T packed tokens, H hidden, F ffn,
N heads, K kv heads, D head dim, V vocab, S supervised rows, P positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastling.kernels import exact
from fastling.kernels.adamw import adamw_, adamw_reference_
from fastling.kernels.cross_entropy import IGNORE_INDEX, cross_entropy, cross_entropy_reference
from fastling.kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from fastling.kernels.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from fastling.kernels.rotary import rotary, rotary_qkv, rotary_qkv_reference, rotary_reference
from fastling.kernels.swiglu import swiglu, swiglu_reference

Inputs = dict[str, object]  # keyword arguments of an op; tensors that require a gradient are differentiated


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
    """A kernel, its plain version, its formula in float64, and what one call costs.

    `inputs(shape, dtype, device)` draws from torch's default generator. `forward_bytes(shape, b)` and
    `backward_bytes(shape, b)` are the floors for values of b bytes; `flops(shape)` counts matrix products.
    """

    name: str
    kernel: Callable
    reference: Callable
    exact: Callable
    inputs: Callable[[Shape, torch.dtype, torch.device], Inputs]
    forward_bytes: Callable[[Shape, int], int]
    backward_bytes: Callable[[Shape, int], int]
    flops: Callable[[Shape], int] = lambda shape: 0


MODELS = {
    "llama-7b": Shape("llama-7b", 8192, 4096, 11008, 32, 32, 128, 32000),
    "llama3-8b": Shape("llama3-8b", 8192, 4096, 14336, 32, 8, 128, 128256),
    "llama3.2-1b": Shape("llama3.2-1b", 8192, 2048, 8192, 32, 8, 64, 128256),
}
# No row here has a power of two as its length, so that every mask and every tail is used.
RAGGED = [
    Shape("one token", 1, 24, 20, 2, 1, 6, 37),
    Shape("odd", 7, 33, 43, 3, 3, 10, 101),
    Shape("wide", 5, 300, 2100, 9, 3, 24, 5003),
]


def leaf(*shape: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> Tensor:
    """Normally distributed values that require a gradient."""
    return (torch.randn(shape, device=device) * scale).to(dtype).requires_grad_()


# Inputs --------------------------------------------------------------------------------------------


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
    """The query heads, in place in the output of the fused projection."""
    qkv = torch.randn(shape.tokens, shape.heads + 2 * shape.kv_heads, shape.head_dim, device=device)
    queries = qkv.to(dtype)[:, : shape.heads].requires_grad_()
    return {"x": queries, "weight": leaf(shape.head_dim, dtype=dtype, device=device), "eps": 1e-6}


def _tables(shape: Shape, device: torch.device) -> Inputs:
    """Rotary tables, and the positions of a pack of two documents."""
    angles = torch.rand(shape.tokens, shape.head_dim // 2, device=device) * 6.28
    first = shape.tokens // 3
    positions = torch.cat((torch.arange(first), torch.arange(shape.tokens - first))).int().to(device)
    return {"cos": angles.cos(), "sin": angles.sin(), "positions_T": positions}


def _rotary_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    q_TND, k_TKD = (
        leaf(shape.tokens, heads, shape.head_dim, dtype=dtype, device=device)
        for heads in (shape.heads, shape.kv_heads)
    )
    return {"q_TND": q_TND, "k_TKD": k_TKD} | _tables(shape, device)


def _rotary_qkv_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    num_heads = shape.heads + 2 * shape.kv_heads
    return {
        "qkv_TMD": leaf(shape.tokens, num_heads, shape.head_dim, dtype=dtype, device=device),
        "num_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
    } | _tables(shape, device)


def _rotary_reference(q_TND, k_TKD, cos, sin, positions_T):
    return tuple(rotary_reference(x, cos, sin, positions_T) for x in (q_TND, k_TKD))


def _swiglu_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"gate_up_T2F": leaf(shape.tokens, 2 * shape.ffn, dtype=dtype, device=device, scale=2.0)}


def _labels(shape: Shape, device: torch.device) -> Inputs:
    """Labels, with every seventh row left out, and a different weight for each row."""
    labels = torch.randint(shape.vocab, (shape.tokens,), device=device)
    labels[3::7] = IGNORE_INDEX
    return {"labels_S": labels, "weights_S": torch.rand(shape.tokens, device=device) / shape.tokens}


def _cross_entropy_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    logits = leaf(shape.tokens, shape.vocab, dtype=dtype, device=device, scale=3.0)
    return {"logits_SV": logits} | _labels(shape, device)


def trained_like_logits(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Logits like those of a trained model: in most rows the label's stands out, so that its p is near 1."""
    inputs = _cross_entropy_inputs(shape, dtype, device)
    labels = inputs["labels_S"].clamp(min=0).unsqueeze(1)
    peaks = torch.rand(shape.tokens, 1, device=device) * 25 + 3
    logits = inputs["logits_SV"].detach().scatter_(1, labels, peaks.to(dtype))
    return inputs | {"logits_SV": logits.requires_grad_()}


def _head_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    return {
        "hidden_SH": leaf(shape.tokens, shape.hidden, dtype=dtype, device=device),
        "weight_VH": leaf(shape.vocab, shape.hidden, dtype=dtype, device=device, scale=shape.hidden**-0.5),
    } | _labels(shape, device)


def _loss_alone(function: Callable) -> Callable:
    return lambda **inputs: function(**inputs)[0]


def _adamw_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    parameter, gradient, exp_avg, exp_avg_sq = torch.randn(4, shape.tokens, shape.hidden, device=device)
    return {
        "parameter": parameter,
        "gradient": gradient.to(dtype),
        "exp_avg": exp_avg,
        "exp_avg_sq": exp_avg_sq.square(),
        "scale": torch.tensor(1.7, device=device),
    } | {"step": 3, "lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def _updated(function: Callable) -> Callable:
    """An op that works in place, as a function that returns the new states and keeps its inputs unchanged."""

    def update(parameter, gradient, exp_avg, exp_avg_sq, scale, **numbers):
        states = [x.clone() for x in (parameter, exp_avg, exp_avg_sq)]
        function(states[0], gradient, *states[1:], scale, **numbers)
        return tuple(states)

    return update


# Sizes ---------------------------------------------------------------------------------------------


def _hidden(shape: Shape, b: int) -> int:
    return shape.tokens * shape.hidden * b


def _heads(shape: Shape, b: int, num_heads: int) -> int:
    return shape.tokens * num_heads * shape.head_dim * b


def _ffn(shape: Shape, b: int) -> int:
    return shape.tokens * shape.ffn * b


def _logits(shape: Shape, b: int) -> int:
    return shape.tokens * shape.vocab * b


def _head_traffic(shape: Shape, b: int) -> int:
    """Hidden, weight and their gradients, once each; not these but the three products are its floor."""
    return 2 * (_hidden(shape, b) + shape.vocab * shape.hidden * b)


OPS = {
    op.name: op
    for op in (
        Op(
            "rms_norm",
            rms_norm,
            rms_norm_reference,
            exact.rms_norm,
            _norm_inputs,
            lambda shape, b: 2 * _hidden(shape, b) + 4 * shape.tokens,
            lambda shape, b: 3 * _hidden(shape, b) + 4 * shape.tokens,
        ),
        Op(
            "add_rms_norm",
            add_rms_norm,
            add_rms_norm_reference,
            exact.add_rms_norm,
            _add_norm_inputs,
            lambda shape, b: 4 * _hidden(shape, b) + 4 * shape.tokens,
            lambda shape, b: 4 * _hidden(shape, b) + 4 * shape.tokens,
        ),
        Op(
            "rms_norm of heads",
            rms_norm,
            rms_norm_reference,
            exact.rms_norm,
            _head_norm_inputs,
            lambda shape, b: 2 * _heads(shape, b, shape.heads) + 4 * shape.tokens * shape.heads,
            lambda shape, b: 3 * _heads(shape, b, shape.heads) + 4 * shape.tokens * shape.heads,
        ),
        Op(
            "rotary",
            rotary,
            _rotary_reference,
            exact.rotary,
            _rotary_inputs,
            lambda shape, b: 2 * _heads(shape, b, shape.heads + shape.kv_heads),
            lambda shape, b: 2 * _heads(shape, b, shape.heads + shape.kv_heads),
        ),
        Op(
            "rotary_qkv",
            rotary_qkv,
            rotary_qkv_reference,
            exact.rotary_qkv,
            _rotary_qkv_inputs,
            lambda shape, b: 2 * _heads(shape, b, shape.heads + shape.kv_heads),
            lambda shape, b: 2 * _heads(shape, b, shape.heads + 2 * shape.kv_heads),
        ),
        Op(
            "swiglu",
            swiglu,
            swiglu_reference,
            exact.swiglu,
            _swiglu_inputs,
            lambda shape, b: 3 * _ffn(shape, b),
            lambda shape, b: 5 * _ffn(shape, b),
        ),
        Op(
            "cross_entropy",
            _loss_alone(cross_entropy),
            _loss_alone(cross_entropy_reference),
            exact.cross_entropy,
            _cross_entropy_inputs,
            lambda shape, b: 2 * _logits(shape, b),
            lambda shape, b: 0,
        ),
        Op(
            "linear_cross_entropy",
            _loss_alone(linear_cross_entropy),
            _loss_alone(linear_cross_entropy_reference),
            exact.linear_cross_entropy,
            _head_inputs,
            _head_traffic,
            lambda shape, b: 0,
            flops=lambda shape: 6 * shape.tokens * shape.hidden * shape.vocab,
        ),
        Op(
            "adamw_",
            _updated(adamw_),
            _updated(adamw_reference_),
            exact.adamw_,
            _adamw_inputs,
            lambda shape, b: shape.tokens * shape.hidden * (24 + b),
            lambda shape, b: 0,
        ),
    )
}
