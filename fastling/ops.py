"""The one door between the model and the kernels.

Checks what comes in (shapes and dtypes only, so that it costs nothing on the device), picks each
implementation once for the process, and can say what it picked and why: `configure` returns the
table. Shapes: T packed tokens, H hidden, N heads, K kv heads, D head dim, F ffn, V vocab,
S supervised rows, P positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fastling.errors import UserError
from fastling.kernels import attention as attention_kernels
from fastling.kernels.linear_cross_entropy import (
    chunked_linear_cross_entropy,
    linear_cross_entropy_reference,
)
from fastling.kernels.rms_norm import rms_norm_reference
from fastling.kernels.rotary import rotary_reference
from fastling.kernels.swiglu import swiglu_reference


@dataclass(frozen=True)
class Choice:
    """One line of the table printed at start: which implementation runs, and why."""

    op: str
    implementation: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op:<22}{self.implementation:<12}{self.reason}"


@dataclass(frozen=True)
class _Wanted:
    kernels: str = "auto"
    attention: str = "auto"


_wanted = _Wanted()
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

    Args: `kernels` auto | triton | reference; `attention` auto | flash3 | flash2 | torch |
    xformers | sdpa, for tensors of `dtype` on `device`. Raises UserError where a named one cannot
    be had.
    """
    global _wanted
    if kernels == "triton":
        raise UserError(
            "model.kernels", "Triton kernels are not part of this version", "use auto or reference"
        )
    if kernels not in ("auto", "reference"):
        raise UserError("model.kernels", f"{kernels!r} is not one of auto, triton, reference")
    backend, attention_reason = _choose_attention(attention, torch.device(device), dtype)
    _wanted = _Wanted(kernels, attention)
    _attention_backends.clear()
    named = "named in the config"
    plain = named if kernels == "reference" else "Triton kernels are not part of this version"
    return [
        Choice("rms_norm", "reference", plain),
        Choice("rotary", "reference", plain),
        Choice("swiglu", "reference", plain),
        Choice("linear_cross_entropy", "reference", named)
        if kernels == "reference"
        else Choice("linear_cross_entropy", "chunked", "never holds all logits"),
        Choice("attention", backend, attention_reason),
    ]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension: (..., H) and weight (H,) -> (..., H) in x.dtype."""
    _check_shape("rms_norm", "weight", weight, (x.shape[-1],))
    return rms_norm_reference(x, weight, eps)


def rotary(qk_TND: Tensor, cos: Tensor, sin: Tensor, positions_T: Tensor) -> Tensor:
    """Rotate (T, N, D) by each token's position (T,) with float32 tables (P, D/2)."""
    num_tokens, _, head_dim = qk_TND.shape
    _check_dtype("rotary", "cos", cos, torch.float32)
    _check_dtype("rotary", "sin", sin, torch.float32)
    _check_shape("rotary", "cos", cos, (cos.shape[0], head_dim // 2))
    _check_shape("rotary", "sin", sin, cos.shape)
    _check_shape("rotary", "positions_T", positions_T, (num_tokens,))
    return rotary_reference(qk_TND, cos, sin, positions_T)


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """silu(gate) * up: (T, 2F) -> (T, F)."""
    if gate_up_T2F.shape[-1] % 2:
        raise ValueError(f"swiglu: last dimension must be even: {tuple(gate_up_T2F.shape)}")
    return swiglu_reference(gate_up_T2F)


def linear_cross_entropy(
    hidden_SH: Tensor, weight_VH: Tensor, labels_S: Tensor, weights_S: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (sum of weights * nll () float32, nll (S,) float32 detached) of the head's rows."""
    op = "linear_cross_entropy"
    if isinstance(weight_VH, DTensor):
        raise ValueError(f"{op}: weight is sharded; call it inside the root module's forward")
    num_rows, hidden_size = hidden_SH.shape
    _check_shape(op, "weight_VH", weight_VH, (weight_VH.shape[0], hidden_size))
    _check_dtype(op, "weight_VH", weight_VH, hidden_SH.dtype)
    _check_shape(op, "labels_S", labels_S, (num_rows,))
    _check_dtype(op, "labels_S", labels_S, torch.int64)
    _check_shape(op, "weights_S", weights_S, (num_rows,))
    _check_dtype(op, "weights_S", weights_S, torch.float32)
    if _wanted.kernels == "reference":
        return linear_cross_entropy_reference(hidden_SH, weight_VH, labels_S, weights_S)
    return chunked_linear_cross_entropy(hidden_SH, weight_VH, labels_S, weights_S)


def attention(
    q_TND: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    lengths: list[int] | None = None,
) -> Tensor:
    """Causal attention inside documents: (T, N, D), (T, K, D), (T, K, D) -> (T, N, D)."""
    num_tokens, num_heads, head_dim = q_TND.shape
    _check_shape("attention", "k_TKD", k_TKD, (num_tokens, k_TKD.shape[1], head_dim))
    _check_shape("attention", "v_TKD", v_TKD, k_TKD.shape)
    _check_dtype("attention", "cu_seqlens", cu_seqlens, torch.int32)
    if num_heads % k_TKD.shape[1]:
        raise ValueError(f"attention: {num_heads} heads over {k_TKD.shape[1]} kv heads")
    # Under torch.compile a look at `lengths` would make a new graph for every pack.
    if not torch.compiler.is_compiling() and lengths and sum(lengths) != num_tokens:
        raise ValueError(f"attention: lengths sum to {sum(lengths)}, tokens are {num_tokens}")
    tensors = (q_TND.device, q_TND.dtype)
    if tensors not in _attention_backends:
        _attention_backends[tensors], _ = _choose_attention(_wanted.attention, *tensors)
    backend = _attention_backends[tensors]
    return attention_kernels.attention(
        q_TND, k_TKD, v_TKD, cu_seqlens, max_seqlen, backend=backend, lengths=lengths
    )


def _choose_attention(wanted: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """Kernels know nothing of users, so what `choose` refuses becomes a UserError here."""
    try:
        return attention_kernels.choose(wanted, device, dtype)
    except ValueError as error:
        raise UserError("model.attention", str(error), "auto picks one that can run") from None


def _check_shape(op: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must be {tuple(shape)}: {tuple(tensor.shape)}")


def _check_dtype(op: str, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise ValueError(f"{op}: {name} must be {dtype}: {tensor.dtype}")
