"""A linear layer with a float32 weight W and a product in half precision; W16 is W rounded to x's type.

    y = x W16^T + b        dx = dy W16        W.grad += dy^T x, in float32        db = sum over t of dy[t]

W16 is made for each product and never kept, and the weight's gradient is added up in place. Bytes a weight,
beside the products' own: 6 in forward and 6 in backward for W16; 4 to write a first gradient, 8 to add
another. Autograd would keep W16 from forward to backward, and write, widen and add each gradient.
On a CPU without instructions for x's type, all three are products in float32 of the same rounded numbers.
Shapes: T tokens, I inputs, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastling.kernels import accept, runtime

FEWEST_WIDENED = 32
"""Rows of a product that is made in float32; for fewer, widening the weight costs more than it saves."""


def linear_reference(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`linear` with gradients by autograd."""
    return F.linear(x_TI, weight_OI.to(x_TI.dtype), None if bias_O is None else bias_O.to(x_TI.dtype))


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Return (T, O) in x's dtype.

    If x is in half precision and the weight in float32, backward adds the weight's gradient to its `grad`,
    without calling hooks on it; the weight must be a parameter itself. Under torch.compile the gradient is
    returned as any other. If both have one type, the gradients are autograd's. Raises ValueError for
    arguments that do not fit.
    """
    adds_up = torch.is_grad_enabled() and weight_OI.requires_grad and weight_OI.dtype != x_TI.dtype
    if not adds_up:
        if not widens(x_TI):
            return linear_reference(x_TI, weight_OI, bias_O)
        return _Widened.apply(x_TI, weight_OI, bias_O)
    accept.dimensions("linear", "x_TI", x_TI, 2)
    accept.dtype("linear", "x_TI", x_TI, torch.bfloat16, torch.float16)
    accept.dtype("linear", "weight_OI", weight_OI, torch.float32)
    if torch.compiler.is_compiling():
        return _forward_op(x_TI, weight_OI, bias_O)
    if not weight_OI.is_leaf:
        raise ValueError("linear: weight_OI must be a parameter, with a gradient of its own: it is computed")
    return _Linear.apply(x_TI, weight_OI, bias_O)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TI, weight_OI, bias_O):
        ctx.save_for_backward(x_TI)
        # Not among the saved tensors: in a layer that is recomputed, those become other ones of equal values.
        ctx.weight_OI, ctx.has_bias = weight_OI, bias_O is not None
        return _forward(x_TI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_TO):
        (x_TI,) = ctx.saved_tensors
        weight_OI, dy_TO = ctx.weight_OI, _widened(dy_TO)
        dx_TI = _times_weight(dy_TO, weight_OI, x_TI.dtype) if ctx.needs_input_grad[0] else None
        is_first = weight_OI.grad is None
        if is_first:
            weight_OI.grad = torch.empty_like(weight_OI)
        add_product_float32(weight_OI.grad, dy_TO.t(), x_TI, beta=0 if is_first else 1)
        return dx_TI, None, _bias_gradient(dy_TO) if ctx.has_bias else None


class _Widened(torch.autograd.Function):
    """Products in float32 whose gradients are returned, as of weights that FSDP has gathered.

    By autograd, the widened copies of x and of the weight would be kept from forward to backward.
    """

    @staticmethod
    def forward(ctx, x_TI, weight_OI, bias_O):
        ctx.save_for_backward(x_TI, weight_OI)
        ctx.has_bias = bias_O is not None
        return _forward(x_TI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_TO):
        x_TI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        dy_TO = _widened(dy_TO)
        dx_TI = _times_weight(dy_TO, weight_OI, x_TI.dtype) if needs_x else None
        dw_OI = dy_TO.t() @ _widened(x_TI) if needs_weight else None
        return dx_TI, dw_OI, _bias_gradient(dy_TO) if ctx.has_bias else None


def widens(x_TI: Tensor) -> bool:
    """Whether products of x's rows are made in float32, since its CPU has no instructions for its type.

    Never while torch.compile traces: it cannot ask the CPU.
    """
    if torch.compiler.is_compiling() or x_TI.dim() != 2:
        return False
    return len(x_TI) >= FEWEST_WIDENED and runtime.lacks_products(x_TI.device, x_TI.dtype)


def _forward(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    if not widens(x_TI):
        return linear_reference(x_TI, weight_OI, bias_O)
    rounded = (None if each is None else each.to(x_TI.dtype).float() for each in (weight_OI, bias_O))
    return F.linear(x_TI.float(), *rounded).to(x_TI.dtype)


def _widened(x_TI: Tensor) -> Tensor:
    return x_TI.float() if widens(x_TI) else x_TI


def _times_weight(dy_TO: Tensor, weight_OI: Tensor, dtype: torch.dtype) -> Tensor:
    """dy W16 (T, I) in `dtype`, that of W16; dy may be widened."""
    return (dy_TO @ weight_OI.to(dtype).to(dy_TO.dtype)).to(dtype)


def _bias_gradient(dy_TO: Tensor) -> Tensor:
    return dy_TO.sum(0, dtype=torch.float32)


def add_product_float32(total: Tensor, left: Tensor, right: Tensor, *, beta: int) -> None:
    """total = beta * total + left @ right, beta 0 or 1; on CUDA a half-precision product adds in float32."""
    if right.is_cuda and right.dtype != torch.float32:
        torch.addmm(total, left, right, beta=beta, out_dtype=torch.float32, out=total)
    elif right.dtype == torch.float32 or widens(right):
        total.addmm_(left.float(), right.float(), beta=beta)
    else:  # a float32 product of converted halves would take twice as long
        product = left @ right
        total.add_(product) if beta else total.copy_(product)


# For torch.compile, which would keep W16 from forward to backward -----------------------------------


def _input_gradient(dy_TO: Tensor, weight_OI: Tensor) -> Tensor:
    return _times_weight(_widened(dy_TO), weight_OI, dy_TO.dtype)


def _weight_gradient(dy_TO: Tensor, x_TI: Tensor) -> Tensor:
    gradient_OI = dy_TO.new_empty(dy_TO.shape[1], x_TI.shape[1], dtype=torch.float32)
    add_product_float32(gradient_OI, dy_TO.t(), x_TI, beta=0)
    return gradient_OI


def _setup(ctx, inputs, output) -> None:
    x_TI, weight_OI, bias_O = inputs
    ctx.save_for_backward(x_TI, weight_OI)
    ctx.has_bias = bias_O is not None


def _compiled_backward(ctx, dy_TO):
    x_TI, weight_OI = ctx.saved_tensors
    dx_TI, dw_OI = _input_gradient_op(dy_TO, weight_OI), _weight_gradient_op(dy_TO, x_TI)
    return dx_TI, dw_OI, _bias_gradient(dy_TO) if ctx.has_bias else None


_forward_op = torch.library.custom_op("fastling::linear", _forward, mutates_args=())
# Not len(x_TI), which asks for a number: the graph would serve that number of tokens alone.
_forward_op.register_fake(
    lambda x_TI, weight_OI, bias_O=None: x_TI.new_empty(x_TI.shape[0], weight_OI.shape[0])
)
_input_gradient_op = torch.library.custom_op("fastling::linear_input", _input_gradient, mutates_args=())
_input_gradient_op.register_fake(lambda dy_TO, weight_OI: dy_TO.new_empty(dy_TO.shape[0], weight_OI.shape[1]))
_weight_gradient_op = torch.library.custom_op("fastling::linear_weight", _weight_gradient, mutates_args=())
_weight_gradient_op.register_fake(
    lambda dy_TO, x_TI: dy_TO.new_empty(dy_TO.shape[1], x_TI.shape[1], dtype=torch.float32)
)
_forward_op.register_autograd(_compiled_backward, setup_context=_setup)
