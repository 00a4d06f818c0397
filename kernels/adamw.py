"""AdamW (Loshchilov and Hutter 2019), with the clipping of gradients folded into its one pass.

    g = gradient / scale        m += (1 - beta1) * (g - m)        v += (1 - beta2) * (g^2 - v)
    p -= lr * weight_decay * p + lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

The decay is not written (1 - lr * weight_decay) * p: at lr * weight_decay = 1e-6 that factor, in float32, is
off by 1.3 % of the decay.

Clipping to a norm means dividing every gradient by one number that only the device knows,
scale = max(norm / clip_norm, 1). `clip_scale` returns it as a tensor, so that nothing waits for it. Dividing
inside the update saves the pass that would read and write all gradients: 28 bytes a weight (p, g, m, v read;
p, m, v written, all float32) instead of 36. torch's fused AdamW takes the same tensor as its `grad_scale`,
but writes the divided gradients back: 32 bytes. Whether these 4 bytes matter has not been measured; until
then training uses torch's (training/optimizer.py), with which benchmarks/kernels.py compares `adamw_`.
"""

import math

import torch
from torch import Tensor

from fastling.kernels import accept, runtime
from fastling.kernels.runtime import tl, triton

BLOCK = 1024  # weights of a program: two 128-bit loads of each tensor for each of its 128 threads


def clip_scale(norm: Tensor, clip_norm: float) -> Tensor:
    """The divisor () of gradients of global norm `norm` () that makes their norm at most clip_norm."""
    return (norm / clip_norm).clamp(min=1.0)


def adamw_reference_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    scale: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """`adamw_` in plain PyTorch."""
    _check(parameter, gradient, exp_avg, exp_avg_sq, scale, step)
    gradient = gradient.to(parameter.dtype) / scale
    exp_avg.lerp_(gradient, 1 - beta1)
    exp_avg_sq.lerp_(gradient.square(), 1 - beta2)
    denominator = (exp_avg_sq / (1 - beta2**step)).sqrt_().add_(eps)
    update = (exp_avg / denominator).mul_(lr / (1 - beta1**step)).add_(parameter, alpha=lr * weight_decay)
    parameter.sub_(update)


def adamw_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    scale: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Update parameter, exp_avg and exp_avg_sq in place; they are float32, contiguous and of one shape.

    `gradient`, of that shape, is float32 or half precision and is not changed. `scale` is () float32 on the
    same device. `step` counts from 1. Raises ValueError for arguments that do not fit.
    """
    arguments = (parameter, gradient, exp_avg, exp_avg_sq, scale, step, lr, beta1, beta2, eps, weight_decay)
    if not runtime.takes(parameter):
        return adamw_reference_(*arguments)
    _check(parameter, gradient, exp_avg, exp_avg_sq, scale, step)
    _op(*arguments) if torch.compiler.is_compiling() else _launch(*arguments)


def _check(parameter, gradient, exp_avg, exp_avg_sq, scale, step) -> None:
    if step < 1:
        raise ValueError(f"adamw_: step must be at least 1: {step}")
    accept.dtype("adamw_", "gradient", gradient, *accept.FLOATS)
    accept.shape("adamw_", "scale", scale, ())
    states = (("parameter", parameter), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq))
    for name, tensor in (*states, ("scale", scale)):
        accept.dtype("adamw_", name, tensor, torch.float32)
        accept.device("adamw_", name, tensor, gradient.device)
    for name, tensor in (*states, ("gradient", gradient)):
        accept.whole("adamw_", name, tensor)
        accept.shape("adamw_", name, tensor, parameter.shape)
        if not tensor.is_contiguous():
            raise ValueError(f"adamw_: {name} must be contiguous: strides {tensor.stride()}")


def _launch(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    scale: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    num_weights = parameter.numel()
    if num_weights == 0:
        return
    with runtime.on_device_of(parameter):
        _kernel[(runtime.cdiv(num_weights, BLOCK),)](
            parameter, gradient, exp_avg, exp_avg_sq, scale, num_weights,
            lr * weight_decay, lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step),
            1 - beta1, 1 - beta2, eps, BLOCK=BLOCK,
        )  # fmt: skip


@triton.jit
def _kernel(
    parameter_ptr, gradient_ptr, exp_avg_ptr, exp_avg_sq_ptr, scale_ptr, num_weights,
    decay, step_size, correction, rate1, rate2, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < num_weights
    gradient = tl.load(gradient_ptr + offsets, mask=mask, other=0.0).to(tl.float32) / tl.load(scale_ptr)
    parameter = tl.load(parameter_ptr + offsets, mask=mask, other=0.0)
    exp_avg = tl.load(exp_avg_ptr + offsets, mask=mask, other=0.0)
    exp_avg_sq = tl.load(exp_avg_sq_ptr + offsets, mask=mask, other=0.0)
    exp_avg += rate1 * (gradient - exp_avg)
    exp_avg_sq += rate2 * (gradient * gradient - exp_avg_sq)
    denominator = tl.sqrt(exp_avg_sq) * correction + eps
    update = decay * parameter + step_size * exp_avg / denominator
    tl.store(parameter_ptr + offsets, parameter - update, mask=mask)
    tl.store(exp_avg_ptr + offsets, exp_avg, mask=mask)
    tl.store(exp_avg_sq_ptr + offsets, exp_avg_sq, mask=mask)


_op = torch.library.custom_op(
    "fastling::adamw_", _launch, mutates_args=("parameter", "exp_avg", "exp_avg_sq")
)
_op.register_fake(lambda *arguments: None)
