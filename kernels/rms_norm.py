"""Root-mean-square normalisation over the last dimension (Zhang and Sennrich 2019).

    r = 1 / sqrt(mean(x^2) + eps)        y = (weight + offset) * x * r
    g = dy * (weight + offset)           dx = r * (g - x * r * mean(g * x * r))
                                         d weight = sum over rows of dy * x * r

`add_rms_norm` first adds the residual stream: s = x + residual, y = norm(s), and returns both. Its
backward takes the gradients of both, and its one result is the gradient of x and of the residual:
ds + dnorm(dy), which is not dnorm(ds + dy).

Bytes moved (T rows, b bytes a value): forward 2 * T * H * b, backward 3 * T * H * b; with the
residual 4 and 4. Backward needs x again and one float32, r, for each row. The arithmetic is float32,
rounded once. A row may be a token (T, H), or a head of a token (T, N, D) in place in the fused
projection. Shapes: T packed tokens (any leading dimensions do), H hidden, N heads, D head dim.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastling.kernels import accept, runtime, tiles
from fastling.kernels.runtime import tl, triton

TILE = 4096  # values that a program holds at a time: one long row, or many short ones
LONGEST_ROW = 16384
SHARED_BYTES = 128 * 2**10  # of a multiprocessor's shared memory, if it has as much, for tiles being loaded


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, *, weight_offset: float = 0.0) -> Tensor:
    """Return (..., H) in x.dtype; the order of casts is that of Hugging Face's LlamaRMSNorm."""
    _check("rms_norm", x, weight)
    x_float32 = x.float()
    mean_square = x_float32.square().mean(-1, keepdim=True)
    # Rounded to x.dtype before the weight is applied: moving this cast changes bf16 results.
    normalised = (x_float32 * torch.rsqrt(mean_square + eps)).to(x.dtype)
    return ((weight + weight_offset if weight_offset else weight) * normalised).to(x.dtype)


def add_rms_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return (norm of x + residual, x + residual)."""
    accept.shape("add_rms_norm", "residual", residual, x.shape)
    summed = x + residual
    return rms_norm_reference(summed, weight, eps, weight_offset=weight_offset), summed


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, weight_offset: float = 0.0, tiled: bool = False
) -> Tensor:
    """Normalise the last dimension: (..., H) and weight (H,) -> (..., H) in x.dtype.

    `weight_offset` 1.0 is for models that store weight - 1 (Gemma). x may be a strided (T, H) or
    (T, N, D), such as the query heads of a fused projection. `tiled` asks for PyTorch by tiles
    (tiles.py), which also runs where Triton cannot. Raises ValueError for arguments that do not fit.
    """
    _check("rms_norm", x, weight)
    tiled = tiled or not runtime.takes(x)
    if not tiled:
        _check_for_kernel("rms_norm", x, weight)
    if not torch.compiler.is_compiling():
        return _RMSNorm.apply(x, weight, eps, weight_offset, tiled)
    if tiled:  # the compiler fuses the plain expressions
        return rms_norm_reference(x, weight, eps, weight_offset=weight_offset)
    return _forward_op(x, weight, eps, weight_offset)[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, weight_offset=0.0, tiled=False
) -> tuple[Tensor, Tensor]:
    """Return (norm of x + residual, x + residual), (..., H) both, in one pass over the two."""
    _check("add_rms_norm", x, weight)
    tiled = tiled or not runtime.takes(x)
    if not tiled:
        _check_for_kernel("add_rms_norm", x, weight)
    accept.shape("add_rms_norm", "residual", residual, x.shape)
    accept.dtype("add_rms_norm", "residual", residual, x.dtype)
    accept.device("add_rms_norm", "residual", residual, x.device)
    for name, tensor in (("x", x), ("residual", residual)):
        if not (tiled or tensor.is_contiguous()):
            raise ValueError(f"add_rms_norm: {name} must be contiguous: strides {tensor.stride()}")
    if not torch.compiler.is_compiling():
        return _AddRMSNorm.apply(x, residual, weight, eps, weight_offset, tiled)
    if tiled:
        return add_rms_norm_reference(x, residual, weight, eps, weight_offset=weight_offset)
    return _add_forward_op(x, residual, weight, eps, weight_offset)[:2]


def _check(op: str, x: Tensor, weight: Tensor) -> None:
    accept.whole(op, "weight", weight)
    accept.floating(op, "x", x)
    if x.dim() == 0:
        raise ValueError(f"{op}: x must have at least 1 dimension: {tuple(x.shape)}")
    accept.shape(op, "weight", weight, (x.shape[-1],))
    accept.device(op, "weight", weight, x.device)


def _check_for_kernel(op: str, x: Tensor, weight: Tensor) -> None:
    accept.dtype(op, "x", x, *accept.FLOATS)
    accept.dtype(op, "weight", weight, *accept.FLOATS)
    accept.rows(op, "x", x)
    accept.rows(op, "weight", weight)
    if not x.is_contiguous() and x.dim() not in (2, 3):
        raise ValueError(f"{op}: x must be contiguous, or have 2 or 3 dimensions: strides {x.stride()}")
    if x.shape[-1] > LONGEST_ROW:
        raise ValueError(f"{op}: x must have rows of at most {LONGEST_ROW} values: {tuple(x.shape)}")


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps, weight_offset, tiled):
        y, inverse_rms = (tiles.rms_norm if tiled else _forward)(x, weight, eps, weight_offset)
        ctx.save_for_backward(x, weight, inverse_rms)
        ctx.weight_offset, ctx.tiled = weight_offset, tiled
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return *_gradients(ctx, dy, None, needs_dweight=ctx.needs_input_grad[1]), None, None, None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, eps, weight_offset, tiled):
        forward = tiles.add_rms_norm if tiled else _add_forward
        y, summed, inverse_rms = forward(x, residual, weight, eps, weight_offset)
        ctx.save_for_backward(summed, weight, inverse_rms)
        ctx.weight_offset, ctx.tiled = weight_offset, tiled
        ctx.set_materialize_grads(False)
        return y, summed

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dsummed):
        if dy is None:  # only the sum was used
            return dsummed, dsummed, None, None, None, None
        dx, dweight = _gradients(ctx, dy, dsummed, needs_dweight=ctx.needs_input_grad[2])
        return dx, dx, dweight, None, None, None


def _gradients(ctx, dy: Tensor, dsummed: Tensor | None, *, needs_dweight: bool):
    backward = tiles.rms_norm_backward if ctx.tiled else _backward
    dx, dweight = backward(dy, dsummed, *ctx.saved_tensors, ctx.weight_offset, needs_dweight)
    return dx, dweight if needs_dweight else None


# Launches ------------------------------------------------------------------------------------------


def _forward(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> tuple[Tensor, Tensor]:
    """Return (y, 1 / rms of each row)."""
    y, inverse_rms = _empty_outputs(x, weight, eps, weight_offset)
    _launch_forward(y, None, inverse_rms, x, None, weight, eps, weight_offset)
    return y, inverse_rms


def _add_forward(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (y, x + residual, 1 / rms of each row)."""
    y, summed, inverse_rms = _add_empty_outputs(x, residual, weight, eps, weight_offset)
    _launch_forward(y, summed, inverse_rms, x, residual, weight, eps, weight_offset)
    return y, summed, inverse_rms


def _launch_forward(y, summed, inverse_rms, x, residual, weight, eps, weight_offset) -> None:
    num_rows, num_heads, token_stride, head_stride = _rows(x)
    block_rows, width, num_warps = _tile_shape(x)
    if num_rows:
        with runtime.on_device_of(x):
            _forward_kernel[(runtime.cdiv(num_rows, block_rows),)](
                y, summed, inverse_rms, x, residual, weight, num_rows, token_stride, head_stride, eps,
                HEADS=num_heads, H=x.shape[-1], WEIGHT_OFFSET=weight_offset, BLOCK_ROWS=block_rows,
                WIDTH=width, num_warps=num_warps,
            )  # fmt: skip


def _backward(
    dy: Tensor,
    dsummed: Tensor | None,
    x: Tensor,
    weight: Tensor,
    inverse_rms: Tensor,
    weight_offset: float,
    needs_dweight: bool,
) -> tuple[Tensor, Tensor]:
    """Return (dx + dsummed, dweight); dweight is empty where it is not needed.

    Each of a few programs sums dweight over its rows; a second kernel adds these sums up, always in the same
    order.
    """
    dy = dy.contiguous()  # a gradient may be an expanded scalar
    dsummed = None if dsummed is None else dsummed.contiguous()
    dx, dweight = _empty_gradients(dy, dsummed, x, weight, inverse_rms, weight_offset, needs_dweight)
    num_rows, num_heads, token_stride, head_stride = _rows(x)
    if num_rows == 0:
        return dx, dweight.zero_()
    block_rows, width, num_warps = _tile_shape(x)
    num_programs = min(
        runtime.cdiv(num_rows, block_rows),
        runtime.num_multiprocessors(x.device) * _programs_per_multiprocessor(num_warps),
    )
    num_streams = 2 if dsummed is None else 3
    num_stages = _num_stages(num_streams * block_rows * width * x.element_size(), x.device)
    partials = x.new_empty((num_programs, x.shape[-1]), dtype=torch.float32) if needs_dweight else None
    with runtime.on_device_of(x):
        _backward_kernel[(num_programs,)](
            dx, partials, dy, dsummed, x, weight, inverse_rms, num_rows, token_stride, head_stride,
            HEADS=num_heads, H=x.shape[-1], WEIGHT_OFFSET=weight_offset, BLOCK_ROWS=block_rows,
            WIDTH=width, NUM_STAGES=num_stages, num_warps=num_warps,
        )  # fmt: skip
        if needs_dweight:
            # About two programs a multiprocessor: with 512 rows, all partial sums are being loaded at once.
            _sum_partials_kernel[(runtime.cdiv(x.shape[-1], 16),)](
                dweight, partials, num_programs, H=x.shape[-1], ROWS=512, COLUMNS=16, num_warps=8
            )
    return dx, dweight


def _rows(x: Tensor) -> tuple[int, int, int, int]:
    """(rows, heads of a token, stride from token to token, stride from head to head)."""
    if x.is_contiguous():
        return x.numel() // max(1, x.shape[-1]), 1, x.shape[-1], 0
    if x.dim() == 2:
        return x.shape[0], 1, x.stride(0), 0
    return x.shape[0] * x.shape[1], x.shape[1], x.stride(0), x.stride(1)


def _tile_shape(x: Tensor) -> tuple[int, int, int]:
    """(rows, columns, warps) of a program: for each thread, two 128-bit loads of each tensor."""
    width = runtime.next_power_of_2(x.shape[-1])
    block_rows = max(1, TILE // width)
    # With more than 16 warps a thread has 64 registers: too few for backward, only just enough at 16384.
    most_warps = 16 if width <= 8192 else 32
    return block_rows, width, min(most_warps, max(4, block_rows * width * x.element_size() // 1024))


def _programs_per_multiprocessor(num_warps: int) -> int:
    """Few, since each leaves a float32 row of partial sums, but enough to hide the latency of loads."""
    return max(1, 16 // num_warps)


def _num_stages(tile_bytes: int, device: torch.device) -> int:
    """Tiles of the loop in flight, the current one included: as many as fit into shared memory."""
    return min(3, 1 + min(SHARED_BYTES, runtime.shared_bytes(device)) // tile_bytes)


def _empty_outputs(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _add_empty_outputs(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    y, inverse_rms = _empty_outputs(x, weight, eps, weight_offset)
    return y, x.new_empty(x.shape), inverse_rms


def _empty_gradients(
    dy: Tensor,
    dsummed: Tensor | None,
    x: Tensor,
    weight: Tensor,
    inverse_rms: Tensor,
    weight_offset: float,
    needs_dweight: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape if needs_dweight else 0)


# Kernels -------------------------------------------------------------------------------------------


@triton.jit
def _tile(block, num_rows, H: tl.constexpr, BLOCK_ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Row numbers (BLOCK_ROWS, 1), columns (1, WIDTH) and both masks of a block of rows."""
    rows = tl.cast(block, tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    in_rows = rows < num_rows
    return rows, columns, in_rows, in_rows & (columns < H)


@triton.jit
def _forward_kernel(
    y_ptr, summed_ptr, inverse_rms_ptr, x_ptr, residual_ptr, weight_ptr,
    num_rows, token_stride, head_stride, eps,
    HEADS: tl.constexpr, H: tl.constexpr, WEIGHT_OFFSET: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    rows, columns, in_rows, mask = _tile(tl.program_id(0), num_rows, H, BLOCK_ROWS, WIDTH)
    source = rows // HEADS * token_stride + rows % HEADS * head_stride + columns
    x = tl.load(x_ptr + source, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        x += tl.load(residual_ptr + rows * H + columns, mask=mask, other=0.0).to(tl.float32)
        summed = x.to(summed_ptr.dtype.element_ty)
        tl.store(summed_ptr + rows * H + columns, summed, mask=mask)
        x = summed.to(tl.float32)  # normalise the rounded sum, which later readers of it see
    weight = tl.load(weight_ptr + columns, mask=columns < H, other=0.0).to(tl.float32) + WEIGHT_OFFSET
    inverse_rms = tl.math.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / H + eps)
    tl.store(inverse_rms_ptr + rows, inverse_rms, mask=in_rows)
    tl.store(y_ptr + rows * H + columns, x * inverse_rms * weight, mask=mask)


@triton.jit
def _backward_kernel(
    dx_ptr, partials_ptr, dy_ptr, dsummed_ptr, x_ptr, weight_ptr, inverse_rms_ptr,
    num_rows, token_stride, head_stride,
    HEADS: tl.constexpr, H: tl.constexpr, WEIGHT_OFFSET: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, WIDTH: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    columns = tl.arange(0, WIDTH)[None, :]
    weight = tl.load(weight_ptr + columns, mask=columns < H, other=0.0)
    dweight = tl.zeros((BLOCK_ROWS, WIDTH), tl.float32)
    # num_stages on the loop itself: Triton prefetches in a loop without a dot only if it is set here.
    for block in tl.range(program, tl.cdiv(num_rows, BLOCK_ROWS), tl.num_programs(0), num_stages=NUM_STAGES):
        rows, columns, in_rows, mask = _tile(block, num_rows, H, BLOCK_ROWS, WIDTH)
        source = rows // HEADS * token_stride + rows % HEADS * head_stride + columns
        x = tl.load(x_ptr + source, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + rows * H + columns, mask=mask, other=0.0).to(tl.float32)
        inverse_rms = tl.load(inverse_rms_ptr + rows, mask=in_rows, other=0.0)
        normalised = x * inverse_rms
        dweight += dy * normalised
        dnormalised = dy * (weight.to(tl.float32) + WEIGHT_OFFSET)
        mean = tl.sum(dnormalised * normalised, axis=1, keep_dims=True) / H
        dx = (dnormalised - normalised * mean) * inverse_rms
        if dsummed_ptr is not None:
            dx += tl.load(dsummed_ptr + rows * H + columns, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + rows * H + columns, dx, mask=mask)
    if partials_ptr is not None:
        out = program.to(tl.int64) * H + tl.arange(0, WIDTH)
        tl.store(partials_ptr + out, tl.sum(dweight, axis=0), mask=tl.arange(0, WIDTH) < H)


@triton.jit
def _sum_partials_kernel(
    dweight_ptr, partials_ptr, num_partials, H: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, num_partials, ROWS):
        rows = start + tl.arange(0, ROWS)[:, None]
        mask = (rows < num_partials) & (columns < H)
        total += tl.load(partials_ptr + rows.to(tl.int64) * H + columns, mask=mask, other=0.0)
    tl.store(dweight_ptr + columns, tl.sum(total, axis=0, keep_dims=True), mask=columns < H)


# For torch.compile ---------------------------------------------------------------------------------

_forward_op = torch.library.custom_op("fastling::rms_norm", _forward, mutates_args=())
_forward_op.register_fake(_empty_outputs)
_add_forward_op = torch.library.custom_op("fastling::add_rms_norm", _add_forward, mutates_args=())
_add_forward_op.register_fake(_add_empty_outputs)
_backward_op = torch.library.custom_op("fastling::rms_norm_backward", _backward, mutates_args=())
_backward_op.register_fake(_empty_gradients)


def _setup(ctx, inputs, output) -> None:
    x, weight, _, ctx.weight_offset = inputs
    ctx.save_for_backward(x, weight, output[1])


def _add_setup(ctx, inputs, output) -> None:
    _, _, weight, _, ctx.weight_offset = inputs
    ctx.save_for_backward(output[1], weight, output[2])


def _compiled_backward(ctx, dy, _):
    dx, dweight = _backward_op(dy, None, *ctx.saved_tensors, ctx.weight_offset, True)
    return dx, dweight, None, None


def _add_compiled_backward(ctx, dy, dsummed, _):
    dx, dweight = _backward_op(dy, dsummed, *ctx.saved_tensors, ctx.weight_offset, True)
    return dx, dx, dweight, None, None


_forward_op.register_autograd(_compiled_backward, setup_context=_setup)
_add_forward_op.register_autograd(_add_compiled_backward, setup_context=_add_setup)
