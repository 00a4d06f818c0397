"""torch's fused AdamW (Loshchilov and Hutter 2019), clipping, and the schedule of the learning rate."""

import math

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from fastling import ops
from fastling.config import Optimizer
from fastling.model.llama import whole


def make_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """torch's fused AdamW, with weight decay on matrices but not on norms or biases."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def clip(optimizer: torch.optim.AdamW, clip_norm: float) -> torch.Tensor:
    """Have the next step scale the gradients to a global norm of at most clip_norm; return their norm ().

    The scaling happens inside torch's fused update, by its `grad_scale` on the device. So clipping itself
    only reads the gradients once, for the norm.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = whole(get_total_norm(_norms_of_rows(gradient) for gradient in gradients))
    optimizer.grad_scale = ops.clip_scale(norm, clip_norm)
    return norm


def _norms_of_rows(gradient: torch.Tensor) -> torch.Tensor:
    """A tensor with the same norm: on a CPU that of each row of a matrix, (rows,); else the gradient itself.

    On a CPU PyTorch adds up a tensor's squares one after another in float32, and loses 1 % of the norm of 130
    million numbers. A row is short enough.
    """
    if gradient.device.type != "cpu" or gradient.dim() < 2:
        return gradient
    return torch.linalg.vector_norm(gradient, dim=-1)


def learning_rate(config: Optimizer, step: int, total_steps: int) -> float:
    """Learning rate of step `step`, counted from 0.

    Rises linearly over the warm-up, then follows the schedule down to min_lr_ratio * lr, which the
    step after the last would have.
    """
    warmup_steps = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    steps_left, course = total_steps - step, total_steps - warmup_steps
    left = 1.0  # of the way from lr down to the lowest learning rate
    if config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * (1 - steps_left / course)))
    elif config.schedule == "linear":
        left = steps_left / course
    elif config.schedule == "wsd":
        decay_ratio = 0.2 if config.decay_ratio is None else config.decay_ratio
        decay_steps = min(course, decay_ratio * total_steps)
        left = min(1.0, steps_left / decay_steps) if decay_steps else 1.0
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
