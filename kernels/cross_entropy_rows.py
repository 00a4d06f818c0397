"""The kernel of both cross-entropies: the loss of each row of logits and, on request, its gradient.

The first pass keeps running maxima and sums (Milakov and Gimelshein 2018), one of each for every thread, so
that threads exchange nothing until the row is read. The second pass writes the gradient, from the end of the
row, since the cache still holds what was read last. If it holds all that is at work (about 256 KiB for each
multiprocessor, so 34 MB on an H200, whose cache has 60), the kernel moves 2 * S * V * b bytes at b bytes a
value; else up to 3 * S * V * b.

Near p[label] = 1, p - 1 would lose all its digits. So the label's own term is left out of the running
sums: its gradient is then minus the share of the others, and the logarithm is a log1p.
Shapes: S rows, V vocab.
"""

import torch
from torch import Tensor

from fastling.kernels import runtime
from fastling.kernels.runtime import tl, triton

IGNORE_INDEX = -100
MOST_WARPS = 16
WARP_BYTES = 2**14  # of a row for each warp: smaller rows have fewer warps, so that as many bytes are at work
ROUND_BYTES = 2**11  # of logits that a warp takes at a time: 64 for each thread
# Four rounds are being loaded while one is at work. For 16 warps they take 128 KiB, more than half of a
# multiprocessor's shared memory: so it has one long row at a time, for which the cache is large enough. If
# four do not fit, fewer are loaded ahead.
MOST_STAGES = 5
LOG2E = tl.constexpr(1.4426950408889634)


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
    """Return weighted loss, nll, lse, correct and entropy, (S,) each; write the gradient to grad_SV.

    entropy is (0,) unless it is asked for. grad_SV may be of another type than logits_SV, or be logits_SV
    itself.
    """
    row_S, nll_S, lse_S, correct_S, entropy_S = empty_rows(logits_SV, entropy)
    num_rows, vocab_size = logits_SV.shape
    if num_rows:
        row_bytes = runtime.next_power_of_2(vocab_size * logits_SV.itemsize)
        num_warps = min(MOST_WARPS, max(1, row_bytes // WARP_BYTES))
        block = min(ROUND_BYTES // logits_SV.itemsize * num_warps, runtime.next_power_of_2(vocab_size))
        narrowest = min(x.itemsize for x in (logits_SV, grad_SV) if x is not None)
        wide = min(16 // narrowest, block)
        rounds = runtime.shared_bytes(logits_SV.device) // (block * logits_SV.itemsize)
        with runtime.on_device_of(logits_SV):
            _kernel[(num_rows,)](
                row_S, nll_S, lse_S, correct_S, entropy_S if entropy else None, grad_SV,
                logits_SV, labels_S, weights_S,
                logits_SV.stride(0), 0 if grad_SV is None else grad_SV.stride(0),
                V=vocab_size, WHOLE=max(0, vocab_size - 1) // block * block, SMOOTHING=smoothing,
                Z_LOSS=z_loss, IGNORED=IGNORE_INDEX, BLOCK=block, THREADS=min(32 * num_warps, block // wide),
                WIDE=wide, STAGES=min(MOST_STAGES, 1 + rounds), num_warps=num_warps,
            )  # fmt: skip
    return row_S, nll_S, lse_S, correct_S, entropy_S


def empty_rows(logits_SV: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_rows = logits_SV.shape[0]
    row_S, nll_S, lse_S = (logits_SV.new_empty(num_rows, dtype=torch.float32) for _ in range(3))
    correct_S = logits_SV.new_empty(num_rows, dtype=torch.bool)
    entropy_S = logits_SV.new_empty(num_rows if entropy else 0, dtype=torch.float32)
    return row_S, nll_S, lse_S, correct_S, entropy_S


# Kernels -------------------------------------------------------------------------------------------


@triton.jit
def _kernel(
    row_ptr, nll_ptr, lse_ptr, correct_ptr, entropy_ptr, grad_ptr, logits_ptr, labels_ptr, weights_ptr,
    logits_stride, grad_stride, V: tl.constexpr, WHOLE: tl.constexpr, SMOOTHING: tl.constexpr,
    Z_LOSS: tl.constexpr, IGNORED: tl.constexpr, BLOCK: tl.constexpr, THREADS: tl.constexpr,
    WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    logits_ptr += row * logits_stride
    columns = tl.arange(0, BLOCK)
    if label == IGNORED:
        _store_row(row_ptr, nll_ptr, lse_ptr, correct_ptr, row, 0.0, 0.0, 0.0, False)
        if entropy_ptr is not None:
            tl.store(entropy_ptr + row, 0.0)
        if grad_ptr is not None:
            zeros = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, V, BLOCK):
                tl.store(grad_ptr + row * grad_stride + start + columns, zeros, start + columns < V)
        return
    weight = tl.load(weights_ptr + row)
    in_vocab = (label >= 0) & (label < V)
    label_logit = tl.load(logits_ptr + label, mask=in_vocab, other=float("nan")).to(tl.float32)
    label = tl.where(in_vocab, label, -1).to(tl.int32)  # 64 bits would take two comparisons a logit
    # The last block, which may not be full, stays in registers; the others need no mask.
    rest = tl.load(logits_ptr + WHOLE + columns, mask=WHOLE + columns < V, other=float("-inf"))
    WITH_ENTROPY: tl.constexpr = entropy_ptr is not None
    largest, others, surprise, total_logit = _sum_exponentials(
        logits_ptr, rest, columns, label, V, WHOLE, SMOOTHING != 0.0, WITH_ENTROPY, BLOCK, THREADS, WIDE,
        STAGES,
    )  # fmt: skip
    # `others` and `surprise` are relative to the largest of the other logits; from here on, to that of all.
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
        row_loss += SMOOTHING * (lse - total_logit / V)
    _store_row(row_ptr, nll_ptr, lse_ptr, correct_ptr, row, weight * row_loss, nll, lse, label_is_largest)
    if WITH_ENTROPY:
        surprise = surprise * tl.exp(below) + others * below
        label_term = tl.exp(label_logit - shift) * tl.maximum(label_logit - shift, -1e30)
        tl.store(entropy_ptr + row, log_total - (surprise + label_term) / total)
    if grad_ptr is not None:
        grad_ptr += row * grad_stride
        scale = (1 + 2 * Z_LOSS * lse) / total
        label_grad = SMOOTHING * (1 - 1 / V) + 2 * Z_LOSS * lse * tl.exp(label_logit - shift) / total
        label_grad = weight * (label_grad - others / total)
        scale, smoothing_grad = weight * scale, weight * SMOOTHING / V
        _store_gradient(
            grad_ptr, logits_ptr, rest, columns, shift, scale, smoothing_grad, V, WHOLE, BLOCK, STAGES
        )
        tl.debug_barrier()  # so that the next store comes after that of the same place above
        tl.store(grad_ptr + label, label_grad, mask=label >= 0)


@triton.jit
def _store_row(row_ptr, nll_ptr, lse_ptr, correct_ptr, row, row_loss, nll, lse, correct):
    tl.store(row_ptr + row, row_loss)
    tl.store(nll_ptr + row, nll)
    tl.store(lse_ptr + row, lse)
    tl.store(correct_ptr + row, correct)


@triton.jit
def _sum_exponentials(
    logits_ptr, rest, columns, label, V: tl.constexpr, WHOLE: tl.constexpr, WITH_TOTAL: tl.constexpr,
    WITH_ENTROPY: tl.constexpr, BLOCK: tl.constexpr, THREADS: tl.constexpr, WIDE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The largest m, sums of exp(x - m) and exp(x - m) * (x - m), without the label; the sum of x with it."""
    maxima = tl.full((THREADS,), float("-inf"), tl.float32)
    exponentials = tl.zeros((THREADS,), tl.float32)
    surprises = tl.zeros((THREADS,), tl.float32)
    totals = tl.zeros((THREADS,), tl.float32)
    # num_stages on the loop itself: Triton prefetches in a loop without a dot only if it is set here.
    for start in tl.range(0, WHOLE, BLOCK, num_stages=STAGES):
        x = tl.load(logits_ptr + start + columns)
        maxima, exponentials, surprises, totals = _add(
            maxima, exponentials, surprises, totals, x, columns, label - start, V - start,
            WITH_TOTAL, WITH_ENTROPY, THREADS, WIDE,
        )  # fmt: skip
    maxima, exponentials, surprises, totals = _add(
        maxima, exponentials, surprises, totals, rest, columns, label - WHOLE, V - WHOLE,
        WITH_TOTAL, WITH_ENTROPY, THREADS, WIDE,
    )  # fmt: skip
    largest = tl.max(maxima, axis=0)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    if WITH_ENTROPY:
        surprises += exponentials * tl.maximum(maxima - shift, -1e30)
    rescale = tl.exp2((maxima - shift) * LOG2E)
    return largest, tl.sum(exponentials * rescale), tl.sum(surprises * rescale), tl.sum(totals)


@triton.jit
def _add(
    maxima, exponentials, surprises, totals, x, columns, label, end, WITH_TOTAL: tl.constexpr,
    WITH_ENTROPY: tl.constexpr, THREADS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Add a block to each thread's maximum and sums; label and end of the row are relative to the block."""
    x = x.to(tl.float32)
    # The shape in which the compiler deals a block out to threads, so that each sums up its own values alone.
    shape: tl.constexpr = (x.shape[0] // (THREADS * WIDE), THREADS, WIDE)
    if WITH_TOTAL:
        totals += _sum_of_thread(tl.reshape(tl.where(columns < end, x, 0.0), shape))
    x = tl.reshape(tl.where(columns == label, float("-inf"), x), shape)
    before, maxima = maxima, tl.maximum(maxima, tl.max(tl.max(x, axis=2), axis=0))
    shifts = tl.where(maxima == float("-inf"), 0.0, maxima)  # -inf - -inf would be NaN
    below = x - shifts[None, :, None]
    exponential = tl.exp2(below * LOG2E)
    rescale = tl.exp2((before - shifts) * LOG2E)
    if WITH_ENTROPY:
        surprises = (surprises + exponentials * tl.maximum(before - shifts, -1e30)) * rescale
        surprises += _sum_of_thread(exponential * tl.maximum(below, -1e30))
    return maxima, exponentials * rescale + _sum_of_thread(exponential), surprises, totals


@triton.jit
def _sum_of_thread(x):
    return tl.sum(tl.sum(x, axis=2), axis=0)


@triton.jit
def _store_gradient(
    grad_ptr, logits_ptr, rest, columns, shift, scale, smoothing_grad,
    V: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write the gradient as if no token were the label, which spares one comparison a logit."""
    grad = _gradient(rest, shift, scale, smoothing_grad)
    tl.store(grad_ptr + WHOLE + columns, grad, mask=WHOLE + columns < V, eviction_policy="evict_first")
    for done in tl.range(0, WHOLE, BLOCK, num_stages=STAGES):
        start = WHOLE - BLOCK - done
        grad = _gradient(tl.load(logits_ptr + start + columns), shift, scale, smoothing_grad)
        tl.store(grad_ptr + start + columns, grad, eviction_policy="evict_first")


@triton.jit
def _gradient(x, shift, scale, smoothing_grad):
    return tl.exp2((x.to(tl.float32) - shift) * LOG2E) * scale - smoothing_grad


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0, also for a small x, whose digits 1 + x would round away."""
    series = x * (1 - x * (0.5 - x * (1 / 3 - x * (0.25 - x * 0.2))))
    return tl.where(x < 0.02, series, tl.log(1 + x))
