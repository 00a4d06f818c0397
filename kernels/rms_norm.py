"""Root-mean-square normalisation over the last dimension.

    y = weight * x / sqrt(mean(x^2) + eps)

A row of H values is read once and written once: 2 * T * H * bytes forward. Backward needs x again
and one float32 per row. Shapes: T packed tokens (any leading dimensions do), H hidden.
"""

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return (..., H) in x.dtype; the order of casts is that of Hugging Face's LlamaRMSNorm."""
    x_float32 = x.float()
    mean_square = x_float32.square().mean(-1, keepdim=True)
    # Rounded to x.dtype before the weight is applied: moving this cast changes bf16 results.
    return weight * (x_float32 * torch.rsqrt(mean_square + eps)).to(x.dtype)
