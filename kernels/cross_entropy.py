"""Cross-entropy of logits with its gradient, in one kernel that reads a row twice and writes it once.

    lse = logsumexp(x)      nll = lse - x[label]      p = softmax(x)
    row = (1 - smoothing) * nll + smoothing * (lse - mean(x)) + z_loss * lse^2
    loss = sum over s of weights[s] * row[s]                                        (float32)
    d x[v] = weights[s] * ((1 + 2 * z_loss * lse) * p[v] - (1 - smoothing) * [v = label] - smoothing / V)

The first pass keeps a running maximum and sum (Milakov and Gimelshein 2018), the second writes the
gradient: it is formed in forward, since the loss is a plain sum, and backward only scales it. Moves
2 * S * V * b bytes if the second read hits the cache (one row a multiprocessor at a time: 34 MB at a
vocabulary of 128k in bf16, and an H200 caches 60 MB), else 3 * S * V * b.

Near p[label] = 1, p - 1 would lose all its digits. So the label's own term is left out of the running
sum: its gradient is minus the share of the others, and the logarithm a log1p.
Shapes: S rows, V vocab.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastling.kernels import accept, runtime
from fastling.kernels.runtime import tl, triton

IGNORE_INDEX = -100
BLOCK = 8192  # logits of a row at a time: 8 for each of 1024 threads, which have 64 registers each


class CrossEntropy(NamedTuple):
    """The loss () float32, and of each row (S,): negative log-likelihood, log of the sum of exponentials,
    whether no other token was likelier, and entropy of the prediction (if asked for), all detached.
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
    """Plain PyTorch, in float32; see `cross_entropy`."""
    _check(logits_SV, labels_S, weights_S)
    weights_S = row_weights(labels_S, weights_S)
    valid_S = labels_S != IGNORE_INDEX
    log_p_SV = F.log_softmax(logits_SV.float(), dim=-1)
    label_S1 = labels_S.where(valid_S, 0).unsqueeze(1)
    nll_S = -log_p_SV.gather(1, label_S1).squeeze(1)
    lse_S = logits_SV.float().logsumexp(-1)
    row_S = (1 - label_smoothing) * nll_S + z_loss * lse_S.square()
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
    """The weighted sum of the rows' losses, float32, whatever the logits' type.

    Args:
        labels_S: int64; rows with -100 are left out (zero loss, zero gradient). A label outside the
            vocabulary makes its loss NaN; it is never read as an address.
        weights_S: float32, not differentiated; None for the mean over the rows that are not left out.
        overwrite_logits: the kernel may write the gradient over the logits, which must be contiguous and no
            leaf; the plain version and torch.compile leave them as they are.

    Backward may run once: it scales the gradient that forward has formed. Raises ValueError in words.
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
    """`weights_S`, or those of a mean over the rows that count. Asks the device nothing."""
    if weights_S is not None:
        return weights_S
    valid_S = (labels_S != IGNORE_INDEX).float()
    return valid_S / valid_S.sum().clamp(min=1)


def _check(logits_SV: Tensor, labels_S: Tensor, weights_S: Tensor | None) -> None:
    accept.dimensions("cross_entropy", "logits_SV", logits_SV, 2)
    check_labels("cross_entropy", labels_S, weights_S, len(logits_SV), logits_SV.device)


def check_labels(op: str, labels_S: Tensor, weights_S: Tensor | None, num_rows: int, device) -> None:
    """Raises ValueError unless labels and weights fit that many rows."""
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
    """x *= scale () on the device, for contiguous x; where scale is 1, as it mostly is, x is not touched."""
    if not runtime.takes(x):
        return x.mul_(scale)
    # Few programs, since all that most of them would do is start and end.
    most_programs = 8 * runtime.num_multiprocessors(x.device)
    num_programs = min(most_programs, max(1, runtime.cdiv(x.numel(), 4096)))
    with runtime.on_device_of(x):
        _scale_kernel[(num_programs,)](x, scale, x.numel(), BLOCK=4096)
    return x


# Launches ------------------------------------------------------------------------------------------


def rows_and_gradient(
    logits_SV: Tensor,
    labels_S: Tensor,
    weights_S: Tensor,
    grad_SV: Tensor | None,
    *,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return weighted loss, nll, lse, correct and entropy of each row; write the gradient to grad_SV.

    grad_SV may begin where logits_SV does, with a type as wide or narrower.
    """
    row_S, nll_S, lse_S, correct_S, entropy_S = _empty_rows(logits_SV, entropy)
    num_rows, vocab_size = logits_SV.shape
    if num_rows:
        block = min(BLOCK, runtime.next_power_of_2(vocab_size))
        overlaps = grad_SV is not None and grad_SV.data_ptr() == logits_SV.data_ptr()
        with runtime.on_device_of(logits_SV):
            _kernel[(num_rows,)](
                row_S, nll_S, lse_S, correct_S, entropy_S if entropy else None, grad_SV,
                logits_SV, labels_S, weights_S,
                logits_SV.stride(0), 0 if grad_SV is None else grad_SV.stride(0),
                V=vocab_size, SMOOTHING=smoothing, Z_LOSS=z_loss, IGNORED=IGNORE_INDEX,
                OVERLAPS=overlaps and grad_SV.dtype != logits_SV.dtype, BLOCK=block,
                num_warps=max(4, min(32, block // 256)),
            )  # fmt: skip
    return row_S, nll_S, lse_S, correct_S, entropy_S


def _empty_rows(logits_SV: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_rows = logits_SV.shape[0]
    row_S, nll_S, lse_S = (logits_SV.new_empty(num_rows, dtype=torch.float32) for _ in range(3))
    correct_S = logits_SV.new_empty(num_rows, dtype=torch.bool)
    entropy_S = logits_SV.new_empty(num_rows if entropy else 0, dtype=torch.float32)
    return row_S, nll_S, lse_S, correct_S, entropy_S


# Kernels -------------------------------------------------------------------------------------------


@triton.jit
def _kernel(
    row_ptr, nll_ptr, lse_ptr, correct_ptr, entropy_ptr, grad_ptr, logits_ptr, labels_ptr, weights_ptr,
    logits_stride, grad_stride, V: tl.constexpr, SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr,
    IGNORED: tl.constexpr, OVERLAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    logits_ptr += row * logits_stride
    if label == IGNORED:
        _store_row(row_ptr, nll_ptr, lse_ptr, correct_ptr, row, 0.0, 0.0, 0.0, False)
        if entropy_ptr is not None:
            tl.store(entropy_ptr + row, 0.0)
        if grad_ptr is not None:
            for start in range(0, V, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                tl.store(grad_ptr + row * grad_stride + columns, tl.zeros((BLOCK,), tl.float32), columns < V)
        return
    weight = tl.load(weights_ptr + row)
    in_vocab = (label >= 0) & (label < V)
    label_logit = tl.load(logits_ptr + label, mask=in_vocab, other=float("nan")).to(tl.float32)
    WITH_ENTROPY: tl.constexpr = entropy_ptr is not None
    largest, others, surprise, total_logit = _sum_exponentials(
        logits_ptr, label, V, SMOOTHING != 0.0, WITH_ENTROPY, BLOCK
    )
    # `others` and `surprise` are relative to the largest of the other logits, and now to that of all.
    shift = tl.maximum(label_logit, largest)
    below = tl.where(largest == float("-inf"), 0.0, largest - shift)
    others *= tl.exp(below)
    label_is_largest = label_logit >= largest
    total = others + tl.exp(label_logit - shift)
    log_total = tl.where(label_is_largest, _log1p(others), tl.log(total))
    lse = shift + log_total
    nll = (shift - label_logit) + log_total
    row_loss = (1 - SMOOTHING) * nll + Z_LOSS * lse * lse
    if SMOOTHING != 0.0:
        row_loss += SMOOTHING * (lse - (total_logit + label_logit) / V)
    _store_row(row_ptr, nll_ptr, lse_ptr, correct_ptr, row, weight * row_loss, nll, lse, label_is_largest)
    if WITH_ENTROPY:
        surprise = surprise * tl.exp(below) + others * below
        label_term = tl.exp(label_logit - shift) * tl.maximum(label_logit - shift, -1e30)
        tl.store(entropy_ptr + row, log_total - (surprise + label_term) / total)
    if grad_ptr is not None:
        scale = (1 + 2 * Z_LOSS * lse) / total
        label_grad = SMOOTHING * (1 - 1 / V) + 2 * Z_LOSS * lse * tl.exp(label_logit - shift) / total
        label_grad = weight * (label_grad - others / total)
        _store_gradient(
            grad_ptr + row * grad_stride, logits_ptr, label, label_grad, shift, weight * scale,
            weight * SMOOTHING / V, V, OVERLAPS, BLOCK,
        )  # fmt: skip


@triton.jit
def _store_row(row_ptr, nll_ptr, lse_ptr, correct_ptr, row, row_loss, nll, lse, correct):
    tl.store(row_ptr + row, row_loss)
    tl.store(nll_ptr + row, nll)
    tl.store(lse_ptr + row, lse)
    tl.store(correct_ptr + row, correct)


@triton.jit
def _sum_exponentials(
    logits_ptr, label, V: tl.constexpr, WITH_TOTAL: tl.constexpr, WITH_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Of all logits but the label's: the largest m, sum of exp(x - m), of exp(x - m) * (x - m), of x."""
    largest = tl.full((), float("-inf"), tl.float32)
    exponentials = tl.zeros((BLOCK,), tl.float32)
    surprises = tl.zeros((BLOCK,), tl.float32)
    totals = tl.zeros((BLOCK,), tl.float32)
    # num_stages on the loop itself: without a dot in it, Triton prefetches only when told to here.
    for start in tl.range(0, V, BLOCK, num_stages=3):
        columns = start + tl.arange(0, BLOCK)
        is_other = (columns < V) & (columns != label)
        x = tl.load(logits_ptr + columns, mask=columns < V, other=float("-inf"), eviction_policy="evict_last")
        x = tl.where(is_other, x.to(tl.float32), float("-inf"))
        before, largest = largest, tl.maximum(largest, tl.max(x, axis=0))
        shift = tl.where(largest == float("-inf"), 0.0, largest)  # -inf - -inf would be NaN
        exponential = tl.exp(x - shift)
        rescale = tl.exp(before - shift)
        if WITH_ENTROPY:
            fall = tl.maximum(before - shift, -1e30)
            surprises = (surprises + exponentials * fall) * rescale
            surprises += exponential * tl.maximum(x - shift, -1e30)
        exponentials = exponentials * rescale + exponential
        if WITH_TOTAL:
            totals += tl.where(is_other, x, 0.0)
    return largest, tl.sum(exponentials, axis=0), tl.sum(surprises, axis=0), tl.sum(totals, axis=0)


@triton.jit
def _store_gradient(
    grad_ptr, logits_ptr, label, label_grad, shift, scale, smoothing_grad,
    V: tl.constexpr, OVERLAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    for start in tl.range(0, V, BLOCK, num_stages=3):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < V
        x = tl.load(logits_ptr + columns, mask=mask, other=float("-inf")).to(tl.float32)
        grad = tl.exp(x - shift) * scale - smoothing_grad
        grad = tl.where(columns == label, label_grad, grad)
        if OVERLAPS:
            # Narrower than the logits and in the same place, gradients reach less far than what has been
            # read: but only once every warp has read its part of this block.
            tl.debug_barrier()
        tl.store(grad_ptr + columns, grad, mask=mask, eviction_policy="evict_first")


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0, where 1 + x would round the digits of a small x away."""
    series = x * (1 - x * (0.5 - x * (1 / 3 - x * (0.25 - x * 0.2))))
    return tl.where(x < 0.02, series, tl.log(1 + x))


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
    return logits_SV.new_empty((), dtype=torch.float32), *_empty_rows(logits_SV, entropy)[1:], grad_SV


_forward_op = torch.library.custom_op("fastling::cross_entropy", _functional, mutates_args=())
_forward_op.register_fake(_fake)
_forward_op.register_autograd(
    lambda ctx, d_loss, *_: (ctx.saved_tensors[0] * d_loss, *[None] * 6),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output[-1]),
)
