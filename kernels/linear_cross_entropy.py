"""The language-model head and its cross-entropy, on supervised rows only.

    logits = hidden @ weight.T       nll[s] = logsumexp(logits[s]) - logits[s, label[s]]
    loss   = sum over s of weights[s] * nll[s]                                      (float32)

All logits of a long pack are the largest tensor of training (S * V * 4 bytes: 8 GiB for 16k rows and a
vocabulary of 128k). Since the loss is a plain sum, `linear_cross_entropy` turns them into their gradient in
the forward pass, chunk by chunk; backward only scales. It takes three matrix products (6 * S * V * H flops),
as the plain version does, and no recomputation; beside them logits are written once and read twice, and their
gradient, in the weight's type, is written once.

The logits' gradient is kept for as many rows as its memory allows, mostly for all: then the gradients of
hidden and weight are one product each. Otherwise rows are taken in groups, and the weight's gradient is
summed over them.

Precision: logits and the loss are float32 (a bf16 logit of 20 is off by up to 0.06). The logits' gradient is
rounded to the weight's type only for its products, and the weight's gradient is summed over groups in
float32. On a CPU, which has no half-precision products with a float32 result, logits and each group's share
of the weight's gradient are rounded to the half precision before they become float32; one without
instructions for it does all in float32, after the same rounding of hidden and weight.
Nothing waits for the device.
Shapes: S supervised rows, G rows of a group, C rows of a chunk, H hidden, V vocab.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastling.kernels import accept, runtime
from fastling.kernels.cross_entropy import check_labels, row_weights, scale_in_place
from fastling.kernels.cross_entropy_rows import IGNORE_INDEX, rows_and_gradient
from fastling.kernels.linear import add_product_float32, widens

CPU_CHUNK_BYTES = 256 * 2**20
CPU_TILE_BYTES = 2**20  # of float32 logits, which a core's cache holds while they become their gradient
GPU_CHUNK_BYTES = 2 * 2**30
GPU_MEMORY_SHARE = 32  # a group takes 1 / 32 of the memory of a smaller GPU
LOGITS_SHARE = 4  # logits that are wider than their gradient take 1 / 4 of a group's memory


def linear_cross_entropy_reference(
    hidden_SH: Tensor, weight_VH: Tensor, labels_S: Tensor, weights_S: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (loss () float32, nll (S,) float32 detached); holds all logits at once."""
    _check(hidden_SH, weight_VH, labels_S, weights_S)
    logits_SV = F.linear(hidden_SH, weight_VH).float()
    nll_S = F.cross_entropy(logits_SV, labels_S, reduction="none", ignore_index=IGNORE_INDEX)
    return (row_weights(labels_S, weights_S) * nll_S).sum(), nll_S.detach()


def linear_cross_entropy(
    hidden_SH: Tensor,
    weight_VH: Tensor,
    labels_S: Tensor,
    weights_S: Tensor | None = None,
    *,
    chunk_bytes: int | None = None,
    logits_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Return (loss () float32, nll (S,) float32 detached) as the reference does, in chunks of rows.

    Args:
        labels_S: int64; a row with -100 does not count, but costs as much as any other: give only the rows
            that are trained on.
        weights_S: float32, not differentiated; None for the mean over the rows that count.
        chunk_bytes: most bytes of logits and their gradient at a time; by default 256 MiB on a CPU, and on a
            GPU 2 GiB, or a 32nd of a smaller one (more if then all rows fit and no float32 total is held).
        logits_dtype: float32, or the weight's type for half the bytes and a loss of three digits.

    Backward may run once: it scales, in place, the gradients that forward has computed. Raises ValueError for
    arguments that do not fit.
    """
    options = (chunk_bytes, logits_dtype, runtime.takes(hidden_SH))
    return _in_chunks(hidden_SH, weight_VH, labels_S, weights_S, *options)


def chunked_linear_cross_entropy(
    hidden_SH: Tensor,
    weight_VH: Tensor,
    labels_S: Tensor,
    weights_S: Tensor | None = None,
    *,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy` without Triton on any device."""
    return _in_chunks(hidden_SH, weight_VH, labels_S, weights_S, chunk_bytes, torch.float32, False)


def _in_chunks(hidden_SH, weight_VH, labels_S, weights_S, chunk_bytes, logits_dtype, uses_triton):
    _check(hidden_SH, weight_VH, labels_S, weights_S)
    accept.dtype("linear_cross_entropy", "hidden_SH", hidden_SH, *accept.FLOATS)
    if logits_dtype not in (torch.float32, weight_VH.dtype):
        takes = " or ".join(map(str, dict.fromkeys((torch.float32, weight_VH.dtype))))
        raise ValueError(f"linear_cross_entropy: logits_dtype must be {takes}: {logits_dtype}")
    if widens(hidden_SH) and not uses_triton:
        hidden_SH, weight_VH, logits_dtype = hidden_SH.float(), weight_VH.float(), torch.float32
    # Asked here because inside an autograd.Function gradients always look disabled.
    grad_enabled = torch.is_grad_enabled()
    needs_hidden, needs_weight = (grad_enabled and x.requires_grad for x in (hidden_SH, weight_VH))
    if not (uses_triton or hidden_SH.is_cuda):
        logits_dtype = weight_VH.dtype  # wider ones would be rounded to it all the same
    if chunk_bytes is None:
        chunk_bytes = _default_chunk_bytes(hidden_SH, weight_VH, needs_weight, logits_dtype)
    weights_S = row_weights(labels_S, weights_S)
    arguments = (hidden_SH, weight_VH, labels_S, weights_S, chunk_bytes, logits_dtype, uses_triton)
    arguments += (needs_hidden, needs_weight)
    if torch.compiler.is_compiling():
        loss, nll_S, *_ = _forward_op(*arguments)
        return loss, nll_S.detach()
    return _LinearCrossEntropy.apply(*arguments)


def _check(hidden_SH: Tensor, weight_VH: Tensor, labels_S: Tensor, weights_S: Tensor | None) -> None:
    op = "linear_cross_entropy"
    accept.whole(op, "weight_VH", weight_VH)
    accept.dimensions(op, "hidden_SH", hidden_SH, 2)
    accept.shape(op, "weight_VH", weight_VH, (weight_VH.shape[0], hidden_SH.shape[1]))
    accept.dtype(op, "weight_VH", weight_VH, hidden_SH.dtype)
    accept.device(op, "weight_VH", weight_VH, hidden_SH.device)
    check_labels(op, labels_S, weights_S, len(hidden_SH), hidden_SH.device)


def _default_chunk_bytes(
    hidden_SH: Tensor, weight_VH: Tensor, needs_weight: bool, logits_dtype: torch.dtype
) -> int:
    if not hidden_SH.is_cuda:
        return CPU_CHUNK_BYTES
    sizes = (len(hidden_SH), *weight_VH.shape)
    memory = runtime.total_memory(hidden_SH.device)
    return gpu_chunk_bytes(memory, *sizes, hidden_SH.dtype, needs_weight, logits_dtype)


def gpu_chunk_bytes(
    gpu_memory: int,
    num_rows: int,
    vocab_size: int,
    hidden_size: int,
    dtype: torch.dtype,
    needs_weight: bool,
    logits_dtype: torch.dtype,
) -> int:
    """The default of `chunk_bytes` on a GPU with `gpu_memory` bytes."""
    budget = min(GPU_CHUNK_BYTES, gpu_memory // GPU_MEMORY_SHARE)
    # Several groups need a float32 sum of the weight's gradient. One group alone can use that memory itself.
    total_bytes = 4 * vocab_size * hidden_size if needs_weight and dtype != torch.float32 else 0
    alone = budget + total_bytes
    granted, _ = _shares(alone, logits_dtype, dtype)
    return alone if num_rows * vocab_size * dtype.itemsize <= granted else budget


def _shares(chunk_bytes: int, logits_dtype: torch.dtype, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes for the gradient of a group and for the logits of a chunk; of one type they share their bytes."""
    if logits_dtype == dtype:
        return chunk_bytes, chunk_bytes
    return chunk_bytes - chunk_bytes // LOGITS_SHARE, chunk_bytes // LOGITS_SHARE


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        loss, nll_S, *ctx.gradients = _forward(*arguments)
        *_, ctx.uses_triton, _, _ = arguments
        ctx.mark_non_differentiable(nll_S)
        return loss, nll_S

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss, _):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("linear_cross_entropy: backward has used up its gradients; call forward again")
        scale = scale_in_place if ctx.uses_triton else Tensor.mul_
        scaled = [
            scale(gradient, d_loss) if needed else None
            for gradient, needed in zip(gradients, ctx.needs_input_grad, strict=False)
        ]
        return *scaled, *[None] * 7


def _forward(
    hidden_SH: Tensor,
    weight_VH: Tensor,
    labels_S: Tensor,
    weights_S: Tensor,
    chunk_bytes: int,
    logits_dtype: torch.dtype,
    uses_triton: bool,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return loss, nll, and the gradients of hidden and weight, each empty where it is not needed."""
    loss, nll_S, grad_hidden_SH, grad_weight_VH = _empty_outputs(
        hidden_SH, weight_VH, labels_S, weights_S, chunk_bytes, logits_dtype, uses_triton, needs_hidden,
        needs_weight,
    )  # fmt: skip
    vocab_size, dtype = len(weight_VH), hidden_SH.dtype
    of_group, of_chunk = _shares(chunk_bytes, logits_dtype, dtype)
    groups = _row_slices(len(labels_S), vocab_size * dtype.itemsize, of_group)
    most_rows = max(group.stop - group.start for group in groups)
    grad_GV = logits_CV = None
    if needs_hidden or needs_weight:
        grad_GV = _empty_logits(hidden_SH, most_rows, vocab_size, dtype)
    if grad_GV is None or logits_dtype != dtype:
        chunk_rows = min(most_rows, max(1, of_chunk // (vocab_size * logits_dtype.itemsize)))
        logits_CV = _empty_logits(hidden_SH, chunk_rows, vocab_size, logits_dtype)
    # One group's product is rounded to the weight's type once; several are summed in float32.
    many, total_VH = needs_weight and len(groups) > 1, grad_weight_VH
    if many and dtype != torch.float32:
        total_VH = torch.empty_like(grad_weight_VH, dtype=torch.float32)
    loss.zero_()
    for group in groups:
        hidden_GH = hidden_SH[group]
        gradient = None if grad_GV is None else grad_GV[: len(hidden_GH)]
        row_G, nll_S[group] = _losses_and_gradient(
            hidden_GH, weight_VH, labels_S[group], weights_S[group], logits_CV, gradient, uses_triton
        )
        loss += row_G.sum()
        if needs_hidden:
            torch.mm(gradient, weight_VH, out=grad_hidden_SH[group])
        if many:
            add_product_float32(total_VH, gradient.t(), hidden_GH, beta=0 if group.start == 0 else 1)
        elif needs_weight:
            torch.mm(gradient.t(), hidden_GH, out=grad_weight_VH)
    if total_VH is not grad_weight_VH:
        grad_weight_VH.copy_(total_VH)
    return loss, nll_S, grad_hidden_SH, grad_weight_VH


def _empty_outputs(
    hidden_SH: Tensor,
    weight_VH: Tensor,
    labels_S: Tensor,
    weights_S: Tensor,
    chunk_bytes: int,
    logits_dtype: torch.dtype,
    uses_triton: bool,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        hidden_SH.new_empty((), dtype=torch.float32),
        hidden_SH.new_empty(labels_S.shape[0], dtype=torch.float32),
        hidden_SH.new_empty(hidden_SH.shape if needs_hidden else 0),
        weight_VH.new_empty(weight_VH.shape if needs_weight else 0),
    )


def _row_slices(num_rows: int, row_bytes: int, most_bytes: int) -> list[slice]:
    """Slices of rows within the budget, of about equal size, so that none at the end is a small product.

    If 16 rows fit, slices begin at multiples of 16, so that labels and weights are aligned alike in each:
    For a pointer that is not a multiple of 16 bytes Triton compiles a kernel again, which takes seconds.
    """
    most_rows = max(1, most_bytes // row_bytes)
    if num_rows <= most_rows:
        return [slice(0, num_rows)]
    multiple = 16 if most_rows >= 16 else 1
    num_slices = -(-num_rows // (most_rows // multiple * multiple))
    rows = -(-num_rows // (num_slices * multiple)) * multiple
    return [slice(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]


def _empty_logits(hidden_SH: Tensor, num_rows: int, vocab_size: int, dtype: torch.dtype) -> Tensor:
    """Empty (rows, V) whose rows begin at multiples of 16 values for any V, as products and kernels need."""
    padded = hidden_SH.new_empty((num_rows, -(-vocab_size // 16) * 16), dtype=dtype)
    if not padded.is_cuda:
        # oneDNN on AMX multiplies what follows a row by zeros (its issue 5717), and that may be NaN or inf.
        padded[:, vocab_size:] = 0
    return padded[:, :vocab_size]


def _losses_and_gradient(
    hidden_GH: Tensor,
    weight_VH: Tensor,
    labels_G: Tensor,
    weights_G: Tensor,
    logits_CV: Tensor | None,
    grad_GV: Tensor | None,
    uses_triton: bool,
) -> tuple[Tensor, Tensor]:
    """Return weighted loss and nll of each row; fill grad_GV, at once or by chunks that fit logits_CV."""
    form_gradient = rows_and_gradient if uses_triton else _rows_and_gradient_in_tiles
    row_G, nll_G = torch.empty_like(weights_G), torch.empty_like(weights_G)
    for rows in _row_slices(len(hidden_GH), 1, len(hidden_GH) if logits_CV is None else len(logits_CV)):
        hidden_CH, grad_CV = hidden_GH[rows], None if grad_GV is None else grad_GV[rows]
        logits = grad_CV if logits_CV is None else logits_CV[: len(hidden_CH)]
        _product_into(logits, hidden_CH, weight_VH.t())
        row_G[rows], nll_G[rows], *_ = form_gradient(logits, labels_G[rows], weights_G[rows], grad_CV)
    return row_G, nll_G


def _rows_and_gradient_in_tiles(
    logits_CV: Tensor, labels_C: Tensor, weights_C: Tensor, grad_CV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The kernel's work in PyTorch. Overwrites float32 logits, on a CPU in tiles that fit into its cache."""
    num_rows, vocab_size = logits_CV.shape
    tile_bytes = logits_CV.nbytes * 2 if logits_CV.is_cuda else CPU_TILE_BYTES
    valid_C = labels_C != IGNORE_INDEX
    labels_C1 = labels_C.where(valid_C, 0).unsqueeze(1)
    weights_C = weights_C.where(valid_C, 0)
    nll_C = torch.empty_like(weights_C)
    for rows in _row_slices(num_rows, 4 * vocab_size, tile_bytes):
        grad_tile = None if grad_CV is None else grad_CV[rows]
        nll_C[rows] = _tile_nll(logits_CV[rows], labels_C1[rows], weights_C[rows], grad_tile)
    nll_C = nll_C.where(valid_C, 0)
    return weights_C * nll_C, nll_C


def _tile_nll(logits_CV: Tensor, labels_C1: Tensor, weights_C: Tensor, grad_CV: Tensor | None) -> Tensor:
    """Return nll (C,) and fill in the gradient of weights * nll, as exact as the kernel near p[label] = 1."""
    shifted_CV = logits_CV.float().sub_(logits_CV.amax(dim=1, keepdim=True))
    label_shifted_C1 = shifted_CV.gather(1, labels_C1)
    exponentials_CV = shifted_CV.exp_().scatter_(1, labels_C1, 0.0)
    others_C1 = exponentials_CV.sum(dim=1, keepdim=True)
    total_C1 = others_C1 + label_shifted_C1.exp()
    if grad_CV is not None:
        scale_C1 = weights_C.unsqueeze(1) / total_C1
        grad_CV.copy_(exponentials_CV.mul_(scale_C1).scatter_(1, labels_C1, -others_C1 * scale_C1))
    return (torch.log1p(others_C1 + label_shifted_C1.expm1()) - label_shifted_C1).squeeze(1)


def _product_into(out_CV: Tensor, left_CH: Tensor, right_HV: Tensor) -> None:
    """out = left @ right; on CUDA a float32 `out` has a half-precision product's accumulator unrounded."""
    if out_CV.dtype == left_CH.dtype:
        torch.mm(left_CH, right_HV, out=out_CV)
    elif left_CH.is_cuda:
        torch.mm(left_CH, right_HV, out_dtype=out_CV.dtype, out=out_CV)
    else:
        out_CV.copy_(left_CH @ right_HV)


# For torch.compile ---------------------------------------------------------------------------------

_forward_op = torch.library.custom_op("fastling::linear_cross_entropy", _forward, mutates_args=())
_forward_op.register_fake(_empty_outputs)


def _setup(ctx, inputs, output) -> None:
    *_, ctx.needs_hidden, ctx.needs_weight = inputs
    ctx.save_for_backward(*output[2:])


def _compiled_backward(ctx, d_loss, *_):
    grad_hidden_SH, grad_weight_VH = (gradient * d_loss for gradient in ctx.saved_tensors)
    return (
        grad_hidden_SH if ctx.needs_hidden else None,
        grad_weight_VH if ctx.needs_weight else None,
        *[None] * 7,
    )


_forward_op.register_autograd(_compiled_backward, setup_context=_setup)
