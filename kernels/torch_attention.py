"""Attention by FlashAttention-2 inside PyTorch, `torch.nn.attention.varlen`, for attention.py.

It is a file of its own since it imports PyTorch's compiler, which only training and compiled models need.
"""

import inspect

from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

# A causal mask is a window of nothing to the right. PyTorch 2.11, which has no `enable_gqa`, hands fewer kv
# heads to FlashAttention-2, which takes them; later versions want to be told.
_OPTIONS = {"window_size": (-1, 0)}
if "enable_gqa" in inspect.signature(varlen_attn).parameters:
    _OPTIONS["enable_gqa"] = True


def torch_attention(
    q_TND: Tensor, k_TKD: Tensor, v_TKD: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    """Return (T, N, D) in q's dtype, which must be a half precision, on CUDA."""
    return varlen_attn(q_TND, k_TKD, v_TKD, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **_OPTIONS)
