"""Rotary position embedding, half-split as in Hugging Face (the pair of lane i is lane i + D/2).

    y[i]       = x[i] * cos[p, i] - x[i + D/2] * sin[p, i]
    y[i + D/2] = x[i + D/2] * cos[p, i] + x[i] * sin[p, i]        p = the token's position

Moves 2 * T * N * D * bytes; the tables are small and stay in cache. Backward is the same rotation
with -sin.
Shapes: T packed tokens, N heads (queries and keys side by side), D head dim, P positions.
"""

import torch
from torch import Tensor


def rotary_reference(qk_TND: Tensor, cos: Tensor, sin: Tensor, positions_T: Tensor) -> Tensor:
    """Rotate every head of every token by its own position; float32 inside, result in x's dtype.

    The tables are (P, D/2) float32: in bfloat16 neighbouring positions above 256 would collide.
    """
    cos_T1C = cos[positions_T].unsqueeze(1)
    sin_T1C = sin[positions_T].unsqueeze(1)
    first, second = qk_TND.float().chunk(2, dim=-1)
    rotated = torch.cat((first * cos_T1C - second * sin_T1C, second * cos_T1C + first * sin_T1C), dim=-1)
    return rotated.to(qk_TND.dtype)
