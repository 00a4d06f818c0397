"""Each op's formula in float64, as on paper; kernels and plain versions alike are measured against it.

Arguments have the names of the op's; all that is floating point is float64. Nothing here is fast.
"""

import torch
from torch import Tensor

from fastling.kernels.cross_entropy import IGNORE_INDEX


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return rms_norm(x + residual, weight, eps), x + residual


def rotary(
    q_TND: Tensor, k_TKD: Tensor, cos: Tensor, sin: Tensor, positions_T: Tensor
) -> tuple[Tensor, Tensor]:
    """Each pair of lanes is a complex number, which is rotated."""
    turn_T1C = torch.complex(cos, sin)[positions_T.long()].unsqueeze(1)
    return tuple(_turned(x, turn_T1C) for x in (q_TND, k_TKD))


def _turned(x_TND: Tensor, turn_T1C: Tensor) -> Tensor:
    turned = torch.complex(*x_TND.chunk(2, dim=-1)) * turn_T1C
    return torch.cat((turned.real, turned.imag), dim=-1)


def rotary_qkv(qkv_TMD: Tensor, num_heads: int, num_kv_heads: int, **tables) -> tuple[Tensor, ...]:
    q_TND, k_TKD = qkv_TMD[:, :num_heads], qkv_TMD[:, num_heads : num_heads + num_kv_heads]
    return *rotary(q_TND, k_TKD, **tables), qkv_TMD[:, num_heads + num_kv_heads :]


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
    return gate_TF / (1 + torch.exp(-gate_TF)) * up_TF


def cross_entropy(logits_SV: Tensor, labels_S: Tensor, weights_S: Tensor) -> Tensor:
    nll_S = logits_SV.logsumexp(-1) - logits_SV.gather(1, labels_S.clamp(min=0).unsqueeze(1)).squeeze(1)
    return (weights_S * nll_S)[labels_S != IGNORE_INDEX].sum()


def linear_cross_entropy(hidden_SH: Tensor, weight_VH: Tensor, labels_S: Tensor, weights_S: Tensor) -> Tensor:
    return cross_entropy(hidden_SH @ weight_VH.t(), labels_S, weights_S)


def adamw_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    scale: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the new parameter, exp_avg and exp_avg_sq, which the op itself writes in place."""
    gradient = gradient / scale
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient**2
    update = exp_avg / (1 - beta1**step) / ((exp_avg_sq / (1 - beta2**step)).sqrt() + eps)
    return parameter - lr * weight_decay * parameter - lr * update, exp_avg, exp_avg_sq
