"""All operations that the model takes from the kernels.

`configure` picks the implementation of each one for the whole process, and returns what it picked and why.
The operations check shapes, types and strides of their inputs, but no values: that costs the device nothing.
Shapes: T packed tokens, H hidden, N heads, K kv heads, M = N + 2K, D head dim, F ffn, V vocab, S supervised
rows, P positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastling.errors import UserError
from fastling.kernels import attention as attention_kernels
from fastling.kernels import linear as linear_kernels
from fastling.kernels import linear_cross_entropy as loss_kernels
from fastling.kernels import rms_norm as norm_kernels
from fastling.kernels import rotary as rotary_kernels
from fastling.kernels import runtime
from fastling.kernels import swiglu as swiglu_kernels
from fastling.kernels.adamw import clip_scale as clip_scale
from fastling.kernels.attention import plain_attention as plain_attention


@dataclass(frozen=True)
class Choice:
    """Which implementation of an op runs, and why, as it is printed at the start of a run."""

    op: str
    implementation: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op}: {self.implementation}: {self.reason}"


@dataclass(frozen=True)
class _Picked:
    kernels: str = "tiled"
    """triton; tiled, which is PyTorch by tiles with the loss in chunks; or reference, plain PyTorch."""
    attention: str = "auto"


_picked = _Picked()
# A plain dict: torch.compile cannot see through functools.cache.
_attention_backends: dict[tuple[torch.device, torch.dtype], str] = {}


def configure(
    kernels: str = "auto",
    attention: str = "auto",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[Choice]:
    """Fix the choice for this process and return it, one Choice for each op.

    Args: `kernels` auto | triton | reference; `attention` auto | flash3 | flash2 | torch | xformers |
    tiled | sdpa, for tensors of `dtype` on `device`. Raises UserError if a named one is not available.
    """
    global _picked
    device = torch.device(device)
    if kernels not in ("auto", "triton", "reference"):
        raise UserError("model.kernels", f"{kernels!r} is not one of auto, triton, reference")
    backend, attention_reason = _choose_attention(attention, device, dtype)
    missing = runtime.missing(device)
    if kernels == "triton" and missing:
        raise UserError("model.kernels", f"'triton' cannot run here: {missing}", "auto picks what can run")
    # auto never takes interpreted kernels on a CPU: they are for tests, which ask for triton by name.
    if kernels == "auto":
        kernels = "tiled" if missing or device.type != "cuda" else "triton"
        why = missing or "needs a CUDA device" if kernels == "tiled" else "fewest bytes moved"
    else:
        why = "named in the config"
    _picked = _Picked(kernels, attention)
    _attention_backends.clear()
    # At once: what is written while torch.compile traces a recomputed layer keeps the layer out of any graph.
    _attention_backends[device, dtype] = backend
    loss = ("chunked", "never holds all logits") if kernels == "tiled" else (kernels, why)
    choices = [
        *(Choice(op, kernels, why) for op in ("rms_norm", "rotary", "swiglu")),
        Choice("linear_cross_entropy", *loss),
        Choice("attention", backend, attention_reason),
    ]
    if runtime.lacks_products(device, dtype):
        why = f"this CPU has no instructions for {dtype}, whose products would take several times as long"
        choices.append(Choice("products", "float32", why))
    return choices


def _is_tiled() -> bool:
    return _picked.kernels == "tiled"


def _is_plain() -> bool:
    """Whether norms and SwiGLU run as plain PyTorch; under torch.compile they do, which fuses them itself."""
    return _picked.kernels == "reference" or torch.compiler.is_compiling()


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return x @ weight.T + bias: (T, I), (O, I), (O,) -> (T, O) in x's dtype.

    The gradient of a float32 weight with a shorter x is added up in the weight's own gradient, in float32.
    """
    return linear_kernels.linear(x_TI, weight_OI, bias_O)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension: (..., H) and weight (H,) -> (..., H) in x.dtype."""
    if _is_plain():
        return norm_kernels.rms_norm_reference(x, weight, eps)
    return norm_kernels.rms_norm(x, weight, eps, tiled=_is_tiled())


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (norm of x + residual, x + residual)."""
    if _is_plain():
        return norm_kernels.add_rms_norm_reference(x, residual, weight, eps)
    return norm_kernels.add_rms_norm(x, residual, weight, eps, tiled=_is_tiled())


def rotary(
    q_TND: Tensor, k_TKD: Tensor, cos: Tensor, sin: Tensor, positions_T: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotate queries (T, N, D) and keys (T, K, D) by positions (T,), which may overwrite them.

    `cos` and `sin` are float32 tables (P, D/2).
    """
    if _picked.kernels == "reference":
        return tuple(rotary_kernels.rotary_reference(x, cos, sin, positions_T) for x in (q_TND, k_TKD))
    return rotary_kernels.rotary(q_TND, k_TKD, cos, sin, positions_T, in_place=True, tiled=_is_tiled())


def rotary_qkv(
    qkv_TMD: Tensor, num_heads: int, num_kv_heads: int, cos: Tensor, sin: Tensor, positions_T: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Split (T, N + 2K, D) into rotated queries (T, N, D) and keys (T, K, D), and values (T, K, D).

    The input may be overwritten; `cos` and `sin` are float32 tables (P, D/2).
    """
    arguments = (qkv_TMD, num_heads, num_kv_heads, cos, sin, positions_T)
    if _picked.kernels == "reference":
        return rotary_kernels.rotary_qkv_reference(*arguments)
    return rotary_kernels.rotary_qkv(*arguments, in_place=True, tiled=_is_tiled())


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """silu(gate) * up: (T, 2F) -> (T, F)."""
    if _is_plain():
        return swiglu_kernels.swiglu_reference(gate_up_T2F)
    return swiglu_kernels.swiglu(gate_up_T2F, tiled=_is_tiled())


def linear_cross_entropy(
    hidden_SH: Tensor, weight_VH: Tensor, labels_S: Tensor, weights_S: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (sum of weights * nll () float32, nll (S,) float32 without a gradient) of the head's logits.

    Takes hidden states (S, H), the head's weight (V, H), labels (S,) int64 and weights (S,) float32.
    """
    return _LOSSES[_picked.kernels](hidden_SH, weight_VH, labels_S, weights_S)


_LOSSES = {
    "triton": loss_kernels.linear_cross_entropy,
    "tiled": loss_kernels.chunked_linear_cross_entropy,
    "reference": loss_kernels.linear_cross_entropy_reference,
}


def attention(
    q_TND: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    lengths: list[int] | None = None,
) -> Tensor:
    """Causal attention within each document: (T, N, D), (T, K, D), (T, K, D) -> (T, N, D).

    `cu_seqlens` (documents + 1,) int32 are the documents' borders, `max_seqlen` is the longest document, and
    `lengths` are those of all on the host, which some backends would otherwise ask the device for.
    """
    backend = picked_attention(q_TND.device, q_TND.dtype)
    return attention_kernels.attention(
        q_TND, k_TKD, v_TKD, cu_seqlens, max_seqlen, backend=backend, lengths=lengths
    )


def picked_attention(device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs for such tensors."""
    tensors = (device, dtype)
    if tensors not in _attention_backends:
        _attention_backends[tensors], _ = _choose_attention(_picked.attention, *tensors)
    return _attention_backends[tensors]


def _choose_attention(wanted: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """(backend, reason). The kernels' own `choose` raises ValueError, which becomes a UserError here."""
    try:
        return attention_kernels.choose(wanted, device, dtype)
    except ValueError as error:
        raise UserError("model.attention", str(error), "auto picks one that can run") from None
