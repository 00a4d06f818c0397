"""The language-model head and its cross-entropy, on supervised rows only.

    logits = hidden @ weight.T       nll[s] = logsumexp(logits[s]) - logits[s, label[s]]
    loss   = sum over s of weights[s] * nll[s]                                      (float32)

All logits of a long pack are the largest tensor of training (S * V * 4 bytes: 8 GiB for 16k rows
and a vocabulary of 128k). `chunked_linear_cross_entropy` never holds more than one chunk of them:
since the loss is a plain sum, it forms both gradients in the forward pass, chunk by chunk, and
backward only scales them. Three GEMMs (6 * S * V * H flops), as in the plain version, and no
recomputation.
Shapes: S supervised rows, H hidden, V vocab.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}  # float32 logits held at a time


def linear_cross_entropy_reference(
    hidden_SH: Tensor, weight_VH: Tensor, labels_S: Tensor, weights_S: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (loss () float32, nll (S,) float32 detached); holds all logits."""
    logits_SV = F.linear(hidden_SH, weight_VH).float()
    nll_S = F.cross_entropy(logits_SV, labels_S, reduction="none")
    return (weights_S * nll_S).sum(), nll_S.detach()


def chunked_linear_cross_entropy(
    hidden_SH: Tensor,
    weight_VH: Tensor,
    labels_S: Tensor,
    weights_S: Tensor,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Equal to the reference, holding at most `chunk_bytes` of float32 logits; S = 0 gives 0."""
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES["cuda" if hidden_SH.is_cuda else "cpu"]
    # Asked here because inside an autograd.Function gradients always look disabled.
    grad_enabled = torch.is_grad_enabled()
    needs_grads = (
        grad_enabled and hidden_SH.requires_grad,
        grad_enabled and weight_VH.requires_grad,
    )
    return _ChunkedLinearCrossEntropy.apply(
        hidden_SH, weight_VH, labels_S, weights_S, chunk_bytes, needs_grads
    )


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_SH, weight_VH, labels_S, weights_S, chunk_bytes, needs_grads):
        needs_hidden, needs_weight = needs_grads
        grad_hidden_SH = torch.empty_like(hidden_SH) if needs_hidden else None
        # float32 whatever the weight's dtype: it sums over chunks.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if needs_weight else None
        nll_S = hidden_SH.new_empty(len(labels_S), dtype=torch.float32)
        for rows in _row_chunks(len(labels_S), weight_VH.shape[0], chunk_bytes):
            hidden_CH = hidden_SH[rows]
            logits_CV = _matmul_float32(hidden_CH, weight_VH.t())
            nll_S[rows], grad_CV = _cross_entropy_in_place(logits_CV, labels_S[rows], weights_S[rows])
            # Rounded only now, for the GEMMs: p - 1 formed in bfloat16 would be mostly error.
            grad_CV = grad_CV.to(hidden_SH.dtype)
            if needs_hidden:
                grad_hidden_SH[rows] = grad_CV @ weight_VH
            if needs_weight:
                _add_matmul_float32(grad_weight_VH, grad_CV, hidden_CH)
        if needs_weight:
            grad_weight_VH = grad_weight_VH.to(weight_VH.dtype)
        ctx.save_for_backward(grad_hidden_SH, grad_weight_VH)
        ctx.mark_non_differentiable(nll_S)
        return (weights_S * nll_S).sum(), nll_S

    @staticmethod
    def backward(ctx, grad_loss, _grad_nll):
        # A product with a tensor on the device, so the host never waits to learn that it is 1.
        scaled = (grad if grad is None else grad * grad_loss for grad in ctx.saved_tensors)
        return *scaled, None, None, None, None


def _row_chunks(num_rows: int, vocab_size: int, chunk_bytes: int) -> list[slice]:
    """Even slices within the budget: an even split leaves no small ragged GEMM at the end."""
    most_rows = max(1, chunk_bytes // (4 * vocab_size))
    num_chunks = -(-num_rows // most_rows)
    bounds = [num_rows * i // max(1, num_chunks) for i in range(num_chunks + 1)]
    return [slice(start, stop) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]


def _cross_entropy_in_place(logits_CV: Tensor, labels_C: Tensor, weights_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return (nll (C,), gradient (C, V)); the gradient is written over the float32 logits.

    Near p_y = 1 both would lose all their digits to 1 - p_y. So the label's own term is taken out
    of the sum first: its gradient is minus the sum of the others, and the logarithm a log1p.
    """
    labels_C1 = labels_C.unsqueeze(1)
    shifted_CV = logits_CV.sub_(logits_CV.amax(dim=1, keepdim=True))
    label_shifted_C1 = shifted_CV.gather(1, labels_C1)
    exponentials_CV = shifted_CV.exp_().scatter_(1, labels_C1, 0.0)
    others_C1 = exponentials_CV.sum(dim=1, keepdim=True)
    total_C1 = others_C1 + label_shifted_C1.exp()
    nll_C1 = torch.log1p(others_C1 + label_shifted_C1.expm1()) - label_shifted_C1
    scale_C1 = weights_C.unsqueeze(1) / total_C1
    gradient_CV = exponentials_CV.mul_(scale_C1).scatter_(1, labels_C1, -others_C1 * scale_C1)
    return nll_C1.squeeze(1), gradient_CV


def _matmul_float32(left: Tensor, right: Tensor) -> Tensor:
    """left @ right with a float32 result; on CUDA the float32 accumulator is written unrounded."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def _add_matmul_float32(total_VH: Tensor, grad_CV: Tensor, hidden_CH: Tensor) -> None:
    """total += grad.T @ hidden, in place; on CUDA a half-precision GEMM that adds in float32."""
    if hidden_CH.is_cuda and hidden_CH.dtype != torch.float32:
        torch.addmm(total_VH, grad_CV.t(), hidden_CH, out_dtype=torch.float32, out=total_VH)
    else:
        total_VH.addmm_(grad_CV.t().float(), hidden_CH.float())
