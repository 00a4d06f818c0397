"""Cross-entropy of logits with its gradient, in one kernel that reads a row twice and writes it once.

    lse = logsumexp(x)      nll = lse - x[label]      p = softmax(x)
    row = (1 - smoothing) * nll + smoothing * (lse - mean(x)) + z_loss * lse^2
    loss = sum over s of weights[s] * row[s]                                        (float32)
    d x[v] = weights[s] * ((1 + 2 * z_loss * lse) * p[v] - (1 - smoothing) * [v = label] - smoothing / V)

The kernel (cross_entropy_rows.py) computes the gradient in forward, since the loss is a plain sum; backward
only scales it.
Shapes: S rows, V vocab.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastling.kernels import accept, runtime
from fastling.kernels.cross_entropy_rows import IGNORE_INDEX, empty_rows, rows_and_gradient
from fastling.kernels.runtime import tl, triton


class CrossEntropy(NamedTuple):
    """The loss () float32, and for each row, (S,) and detached: negative log-likelihood, logarithm of the sum
    of exponentials, whether no other token was likelier, and entropy of the prediction (if asked for).
    """

    loss: Tensor
    nll: Tensor
    lse: Tensor
    correct: Tensor
    entropy: Tensor | None


def cross_entropy_reference(
    logits_SV: Tensor,
    labels_S: Tensor,
    weights_S: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    entropy: bool = False,
) -> CrossEntropy:
    """`cross_entropy` in plain PyTorch, in float32."""
    _check(logits_SV, labels_S, weights_S)
    weights_S = row_weights(labels_S, weights_S)
    valid_S = labels_S != IGNORE_INDEX
    log_p_SV = F.log_softmax(logits_SV.float(), dim=-1)
    label_S1 = labels_S.where(valid_S, 0).unsqueeze(1)
    nll_S = -log_p_SV.gather(1, label_S1).squeeze(1)
    lse_S = logits_SV.float().logsumexp(-1)
    row_S = (1 - label_smoothing) * nll_S + z_loss * lse_S * lse_S  # not z * lse^2: 0 times inf is NaN
    if label_smoothing:  # 0 times the mean of a row with -inf would be NaN
        row_S = row_S - label_smoothing * log_p_SV.mean(-1)
    correct_S = logits_SV.gather(1, label_S1).squeeze(1) >= logits_SV.amax(-1)
    entropy_S = -(log_p_SV.exp() * log_p_SV.clamp(min=-1e30)).sum(-1) if entropy else None
    by_row = (
        x if x is None else x.detach().masked_fill(~valid_S, 0) for x in (nll_S, lse_S, correct_S, entropy_S)
    )
    return CrossEntropy((weights_S * row_S.where(valid_S, 0)).sum(), *by_row)


def cross_entropy(
    logits_SV: Tensor,
    labels_S: Tensor,
    weights_S: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    entropy: bool = False,
    overwrite_logits: bool = False,
) -> CrossEntropy:
    """The weighted sum of the rows' losses, in float32 whatever the logits' type.

    Args:
        labels_S: int64; rows with -100 are left out (zero loss, zero gradient). A label outside the
            vocabulary makes its loss NaN; it is never used as an address.
        weights_S: float32, not differentiated; None for the mean over the rows that are not left out.
        overwrite_logits: the kernel may write the gradient over the logits, which must be contiguous and no
            leaf; the plain version and torch.compile leave them as they are.

    Backward may run once: it scales, in place, the gradient that forward has computed. Raises ValueError for
    arguments that do not fit.
    """
    options = (label_smoothing, z_loss, entropy)
    if not runtime.takes(logits_SV):
        return cross_entropy_reference(
            logits_SV, labels_S, weights_S, label_smoothing=label_smoothing, z_loss=z_loss, entropy=entropy
        )
    _check(logits_SV, labels_S, weights_S)
    accept.dtype("cross_entropy", "logits_SV", logits_SV, *accept.FLOATS)
    accept.rows("cross_entropy", "logits_SV", logits_SV)
    needs_grad = torch.is_grad_enabled() and logits_SV.requires_grad
    weights_S = row_weights(labels_S, weights_S)
    if torch.compiler.is_compiling():
        loss, *by_row, _ = _forward_op(logits_SV, labels_S, weights_S, *options, needs_grad)
        by_row = [x.detach() for x in by_row]
    else:
        if overwrite_logits and (not logits_SV.is_contiguous() or (needs_grad and logits_SV.is_leaf)):
            raise ValueError("cross_entropy: overwrite_logits takes contiguous logits that are no leaf")
        loss, *by_row = _CrossEntropy.apply(
            logits_SV, labels_S, weights_S, *options, needs_grad, overwrite_logits
        )
    return CrossEntropy(loss, *by_row[:3], by_row[3] if entropy else None)


def row_weights(labels_S: Tensor, weights_S: Tensor | None) -> Tensor:
    """`weights_S`, or those of a mean over the rows that are not left out. Nothing waits for the device."""
    if weights_S is not None:
        return weights_S
    valid_S = (labels_S != IGNORE_INDEX).float()
    return valid_S / valid_S.sum().clamp(min=1)


def _check(logits_SV: Tensor, labels_S: Tensor, weights_S: Tensor | None) -> None:
    accept.dimensions("cross_entropy", "logits_SV", logits_SV, 2)
    check_labels("cross_entropy", labels_S, weights_S, len(logits_SV), logits_SV.device)


def check_labels(op: str, labels_S: Tensor, weights_S: Tensor | None, num_rows: int, device) -> None:
    """Raise ValueError unless labels and weights fit `num_rows` rows on `device`."""
    for name, tensor, dtype in (("labels_S", labels_S, torch.int64), ("weights_S", weights_S, torch.float32)):
        if tensor is not None:
            accept.shape(op, name, tensor, (num_rows,))
            accept.dtype(op, name, tensor, dtype)
            accept.device(op, name, tensor, device)
            accept.rows(op, name, tensor)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_SV, labels_S, weights_S, smoothing, z_loss, entropy, needs_grad, overwrite):
        grad_SV = None
        if needs_grad:
            grad_SV = logits_SV.detach() if overwrite else logits_SV.new_empty(logits_SV.shape)
        row_S, *by_row = rows_and_gradient(
            logits_SV, labels_S, weights_S, grad_SV, smoothing=smoothing, z_loss=z_loss, entropy=entropy
        )
        if overwrite and needs_grad:
            torch.autograd.graph.increment_version(logits_SV)
        ctx.grad_SV = grad_SV
        ctx.mark_non_differentiable(*by_row)
        return row_S.sum(), *by_row

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss, *_):
        grad_SV, ctx.grad_SV = ctx.grad_SV, None
        if grad_SV is None:
            raise RuntimeError("cross_entropy: backward has used up the gradient; call forward again")
        return scale_in_place(grad_SV, d_loss), *[None] * 7


def scale_in_place(x: Tensor, scale: Tensor) -> Tensor:
    """x *= scale () on the device, for contiguous x; if scale is 1, as it mostly is, x is not touched."""
    if not runtime.takes(x):
        return x.mul_(scale)
    # Few programs: mostly scale is 1, and all that they do is to start and end.
    most_programs = 8 * runtime.num_multiprocessors(x.device)
    num_programs = min(most_programs, max(1, runtime.cdiv(x.numel(), 4096)))
    with runtime.on_device_of(x):
        _scale_kernel[(num_programs,)](x, scale, x.numel(), BLOCK=4096)
    return x


@triton.jit
def _scale_kernel(x_ptr, scale_ptr, num_values, BLOCK: tl.constexpr):
    scale = tl.load(scale_ptr).to(tl.float32)
    if scale != 1.0:
        for block in tl.range(tl.program_id(0), tl.cdiv(num_values, BLOCK), tl.num_programs(0), num_stages=3):
            offsets = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
            mask = offsets < num_values
            x = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
            tl.store(x_ptr + offsets, x * scale, mask=mask)


# For torch.compile ---------------------------------------------------------------------------------


def _functional(
    logits_SV: Tensor,
    labels_S: Tensor,
    weights_S: Tensor,
    smoothing: float,
    z_loss: float,
    entropy: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_SV = logits_SV.new_empty(logits_SV.shape if needs_grad else 0)
    row_S, *by_row = rows_and_gradient(
        logits_SV,
        labels_S,
        weights_S,
        grad_SV if needs_grad else None,
        smoothing=smoothing,
        z_loss=z_loss,
        entropy=entropy,
    )
    return row_S.sum(), *by_row, grad_SV


def _fake(logits_SV, labels_S, weights_S, smoothing, z_loss, entropy, needs_grad):
    grad_SV = logits_SV.new_empty(logits_SV.shape if needs_grad else 0)
    return logits_SV.new_empty((), dtype=torch.float32), *empty_rows(logits_SV, entropy)[1:], grad_SV


_forward_op = torch.library.custom_op("fastling::cross_entropy", _functional, mutates_args=())
_forward_op.register_fake(_fake)
_forward_op.register_autograd(
    lambda ctx, d_loss, *_: (ctx.saved_tensors[0] * d_loss, *[None] * 6),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output[-1]),
)
