"""Causal attention inside the documents of a packed stream, by whichever package is installed.

    out[t] = sum over s <= t in t's document of softmax(q[t] . k[s] / sqrt(D)) * v[s]

Query head n reads key/value head n * K // N. All backends have one signature and never look across
a document's bounds; their cost grows with the sum of squared document lengths.
Shapes: T packed tokens, N heads, K kv heads, D head dim; cu_seqlens (documents + 1,) int32.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastling.kernels import accept
from fastling.kernels.tiled_attention import lengths_between, tiled_attention

# These read document lengths when traced: torch.compile would make a graph for each number of documents.
ASK_FOR_LENGTHS = ("xformers", "sdpa")


def attention(
    q_TND: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    backend: str,
    lengths: list[int] | None = None,
) -> Tensor:
    """Return (T, N, D) in q's dtype.

    `lengths` are the document lengths on the host. Only "xformers" and "sdpa" need them; without them they
    read `cu_seqlens`, which on a GPU is a sync. The other backends for GPUs never read its values on the
    host. Raises ValueError for arguments that do not fit.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"attention: backend must be one of {', '.join(_BACKENDS)}: {backend!r}")
    _check(q_TND, k_TKD, v_TKD, cu_seqlens, max_seqlen, lengths)
    if backend not in ("tiled", "sdpa") and not torch.compiler.is_compiling():
        _check_alignment(backend, q_TND=q_TND, k_TKD=k_TKD, v_TKD=v_TKD)
    return _BACKENDS[backend](q_TND, k_TKD, v_TKD, cu_seqlens, max_seqlen, lengths)


def _check(q_TND, k_TKD, v_TKD, cu_seqlens, max_seqlen, lengths) -> None:
    accept.dimensions("attention", "q_TND", q_TND, 3)
    accept.dimensions("attention", "k_TKD", k_TKD, 3)
    num_tokens, num_heads, head_dim = q_TND.shape
    num_kv_heads = k_TKD.shape[1]
    accept.shape("attention", "k_TKD", k_TKD, (num_tokens, num_kv_heads, head_dim))
    accept.shape("attention", "v_TKD", v_TKD, k_TKD.shape)
    accept.dimensions("attention", "cu_seqlens", cu_seqlens, 1)
    accept.dtype("attention", "cu_seqlens", cu_seqlens, torch.int32)
    if num_kv_heads == 0 or num_heads % num_kv_heads:
        raise ValueError(f"attention: {num_heads} heads over {num_kv_heads} kv heads")
    for name, tensor in (("k_TKD", k_TKD), ("v_TKD", v_TKD), ("cu_seqlens", cu_seqlens)):
        accept.device("attention", name, tensor, q_TND.device)
    for name, tensor in (("k_TKD", k_TKD), ("v_TKD", v_TKD)):
        accept.dtype("attention", name, tensor, q_TND.dtype)
    # Under torch.compile a look at `lengths` would make a new graph for every pack.
    if not torch.compiler.is_compiling() and lengths is not None:
        if sum(lengths) != num_tokens or min(lengths, default=0) < 0:
            words = f"must be >= 0 and sum to the {num_tokens} tokens"
            raise ValueError(f"attention: lengths {words}: {str(list(lengths))[:80]}")
        longest = max(lengths, default=0)
        if max_seqlen < longest:  # fused kernels would leave out the tokens after it
            raise ValueError(f"attention: max_seqlen must be at least the longest's {longest}: {max_seqlen}")


def _on_host(lengths: Sequence[int] | None, cu_seqlens: Tensor, num_tokens: int) -> Sequence[int]:
    return lengths_between(cu_seqlens, num_tokens) if lengths is None else lengths


def _check_alignment(backend: str, **tensors: Tensor) -> None:
    """Raise ValueError unless heads are aligned to 16 bytes, which fused kernels read at once.

    Some of these return wrong numbers otherwise.
    """
    for name, tensor in tensors.items():
        steps = [stride * tensor.element_size() for stride in tensor.stride()[:-1]]
        if tensor.stride(-1) != 1 or tensor.data_ptr() % 16 or any(step % 16 for step in steps):
            raise ValueError(
                f"attention: {name} must have heads that begin at multiples of 16 bytes for {backend!r} "
                f"('sdpa' takes any): shape {tuple(tensor.shape)}, strides {tensor.stride()}"
            )


def available(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if `backend` can run such tensors here, else a description of what is missing."""
    if backend == "sdpa":
        return None
    if backend == "tiled":
        return None if device.type == "cpu" else "is for a CPU"
    if device.type != "cuda":
        return "needs a CUDA device"
    module = _MODULES[backend]
    if find_spec(module) is None:
        return f"{module} is not installed"
    if backend == "xformers":
        return _broken("xformers.ops")
    if dtype not in (torch.float16, torch.bfloat16):
        return "needs float16 or bfloat16"
    capability = torch.cuda.get_device_capability(device)
    if backend == "flash3" and capability != (9, 0):
        return "needs compute capability 9.0"
    if capability < (8, 0):
        return "needs compute capability 8.0 or newer"
    return _broken(module)


def _broken(module: str) -> str | None:
    """None if an installed module can be imported, else why not: often it was built for another PyTorch."""
    try:
        import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        return f"{module} is installed and cannot be imported: {first_line[:120]}"
    return None


def choose(wanted: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """Return (backend, reason). `wanted` is a backend or "auto"; a named one is never replaced by another.

    Raises ValueError if `wanted` is unknown or cannot run here.
    """
    if wanted == "auto":
        skipped = []
        for backend in _BACKENDS:
            missing = available(backend, device, dtype)
            if missing is None:
                return backend, "; ".join(["first that can run here", *skipped])
            skipped.append(f"{backend} {missing}")
    if wanted not in _BACKENDS:
        raise ValueError(f"{wanted!r} is not one of auto, {', '.join(_BACKENDS)}")
    missing = available(wanted, device, dtype)
    if missing is not None:
        raise ValueError(f"{wanted!r} cannot run on {device.type} in {dtype}: {missing}")
    return wanted, "named in the config"


def _flash3(q_TND, k_TKD, v_TKD, cu_seqlens, max_seqlen, lengths):
    from flash_attn_interface import flash_attn_varlen_func

    bounds = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    deterministic = torch.are_deterministic_algorithms_enabled()
    out = flash_attn_varlen_func(q_TND, k_TKD, v_TKD, *bounds, causal=True, deterministic=deterministic)
    return out[0] if isinstance(out, tuple) else out  # early FlashAttention-3 also returns the lse


def _flash2(q_TND, k_TKD, v_TKD, cu_seqlens, max_seqlen, lengths):
    from flash_attn import flash_attn_varlen_func

    bounds = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    deterministic = torch.are_deterministic_algorithms_enabled()
    return flash_attn_varlen_func(q_TND, k_TKD, v_TKD, *bounds, causal=True, deterministic=deterministic)


def _torch(q_TND, k_TKD, v_TKD, cu_seqlens, max_seqlen, lengths):
    from fastling.kernels.torch_attention import torch_attention

    return torch_attention(q_TND, k_TKD, v_TKD, cu_seqlens, max_seqlen)


def _xformers(q_TND, k_TKD, v_TKD, cu_seqlens, max_seqlen, lengths):
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    mask = BlockDiagonalCausalMask.from_seqlens(_on_host(lengths, cu_seqlens, len(q_TND)))
    k_TND, v_TND = _repeat_kv(k_TKD, v_TKD, q_TND.shape[1])
    batch_of_one = (x.unsqueeze(0) for x in (q_TND, k_TND, v_TND))
    return memory_efficient_attention(*batch_of_one, attn_bias=mask).squeeze(0)


def _sdpa(q_TND, k_TKD, v_TKD, cu_seqlens, max_seqlen, lengths):
    """PyTorch's own attention, with one call for each run of neighbouring documents of equal length."""
    lengths = _on_host(lengths, cu_seqlens, len(q_TND))
    runs = [(length, len(list(run))) for length, run in groupby(lengths) if length > 0]
    if not runs:
        return q_TND.clone()
    run_tokens = [length * count for length, count in runs]
    outputs = []
    # split, not slices: its backward is one concatenation, not a zero-filled (T, ...) for each slice.
    for (length, count), *run_qkv in zip(
        runs, *(x.split(run_tokens) for x in (q_TND, k_TKD, v_TKD)), strict=True
    ):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in run_qkv)
        out = plain_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    """F.scaled_dot_product_attention, but never by cuDNN.

    On Hopper PyTorch prefers cuDNN, which makes a plan for each new shape, forward and backward. Documents
    differ in length, and in generation every step is one token longer than the last.
    """
    with sdpa_kernel(_WITHOUT_PLANS) if q.is_cuda else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, **options)


_WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _tiled(q_TND, k_TKD, v_TKD, cu_seqlens, max_seqlen, lengths):
    return tiled_attention(q_TND, k_TKD, v_TKD, cu_seqlens)


def _repeat_kv(k_TKD: Tensor, v_TKD: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Repeat each kv head for its query heads, for backends without grouped-query attention."""
    group = num_heads // k_TKD.shape[1]
    return k_TKD.repeat_interleave(group, dim=1), v_TKD.repeat_interleave(group, dim=1)


# In the order that "auto" tries them: fastest first. FlashAttention-2 inside PyTorch comes third.
_BACKENDS: dict[str, Callable] = {
    "flash3": _flash3,
    "flash2": _flash2,
    "torch": _torch,
    "xformers": _xformers,
    "tiled": _tiled,
    "sdpa": _sdpa,
}
_MODULES = {
    "flash3": "flash_attn_interface",
    "flash2": "flash_attn",
    "torch": "torch.nn.attention.varlen",
    "xformers": "xformers",
}
