"""SwiGLU on the fused projection: y = silu(gate) * up, with silu(z) = z * sigmoid(z).

gate and up are the two halves of one buffer, so nothing is copied apart first. Moves 3 * T * F
* bytes forward. Shapes: T packed tokens, F ffn.
"""

import torch.nn.functional as F
from torch import Tensor


def swiglu_reference(gate_up_T2F: Tensor) -> Tensor:
    """Return (T, F) from (T, 2F), whose first F columns are the gate."""
    gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
    return F.silu(gate_TF) * up_TF
