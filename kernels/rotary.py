"""Rotary position embedding (Su et al. 2021) of queries and keys, in one launch on a packed stream.

    y[a] = x[a] * cos[p, i] - x[b] * sin[p, i]        p = the token's position in its document
    y[b] = x[b] * cos[p, i] + x[a] * sin[p, i]        (a, b) = the pair of lanes number i

The pair is (i, i + D/2), half-split, as in Hugging Face; or (2i, 2i + 1), interleaved, as in Meta's code.
Backward is the same rotation with -sin.

`rotary_qkv` also splits the output of the fused projection. Forward rotates queries and keys, in place if it
is told to, and then all three results are views; backward rotates the gradients of queries and keys back with
one kernel, which writes all three gradients into one buffer, as the projection's. So splitting and joining
cost no pass of their own. Moves 2 * T * (N + K) * D * b bytes forward and 2 * T * (N + 2K) * D * b backward,
at b bytes a value; the tables stay in cache, and are read once for all heads of a token.
Shapes: T packed tokens, N heads, K kv heads, M = N + 2K, D head dim, P positions.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from fastling.kernels import accept, runtime, tiles
from fastling.kernels.runtime import tl, triton

TILE = 1024  # pairs of lanes that a program holds at a time: for each of 128 threads, 128 bits of each half


def rotary_reference(
    x_TND: Tensor, cos: Tensor, sin: Tensor, positions_T: Tensor, *, interleaved: bool = False
) -> Tensor:
    """Rotate every head of every token by its own position; float32 inside, result in x's dtype.

    The tables are (P, D/2) float32: in bfloat16 neighbouring positions above 256 would collide.
    """
    _check("rotary", "x_TND", x_TND, cos, sin, positions_T)
    cos_T1C, sin_T1C = (table.index_select(0, positions_T).unsqueeze(1) for table in (cos, sin))
    pairs = x_TND.float().unflatten(-1, (-1, 2) if interleaved else (2, -1))
    first, second = pairs.unbind(-1 if interleaved else -2)
    rotated = (first * cos_T1C - second * sin_T1C, second * cos_T1C + first * sin_T1C)
    return torch.stack(rotated, dim=-1 if interleaved else -2).flatten(-2).to(x_TND.dtype)


def rotary_qkv_reference(
    qkv_TMD: Tensor,
    num_heads: int,
    num_kv_heads: int,
    cos: Tensor,
    sin: Tensor,
    positions_T: Tensor,
    *,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rotated queries (T, N, D) and keys (T, K, D), and the values (T, K, D) as they are."""
    _check_heads(qkv_TMD, num_heads, num_kv_heads)
    qk, v_TKD = qkv_TMD.split([num_heads + num_kv_heads, num_kv_heads], dim=1)
    rotated = rotary_reference(qk, cos, sin, positions_T, interleaved=interleaved)
    return *rotated.split([num_heads, num_kv_heads], dim=1), v_TKD


def rotary(
    q_TND: Tensor,
    k_TKD: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions_T: Tensor,
    *,
    interleaved: bool = False,
    in_place: bool = False,
    tiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys: tables (P, D/2) float32, positions (T,) int32 or int64, below P.

    `in_place` overwrites q and k and returns them; autograd then refuses a backward that needs their old
    values. torch.compile decides for itself what is overwritten. `tiled` asks for PyTorch by tiles
    (tiles.py), which also runs where Triton cannot. Raises ValueError for arguments that do not fit.
    """
    tables = (cos, sin, positions_T)
    tiled = tiled or not runtime.takes(q_TND)
    for name, tensor in (("q_TND", q_TND), ("k_TKD", k_TKD)):
        accept.device("rotary", name, tensor, q_TND.device)
        _check("rotary", name, tensor, *tables)
        if not tiled:
            _check_for_kernel("rotary", name, tensor, q_TND, *tables)
        if in_place and tensor.is_leaf and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"rotary: {name} must not be a leaf that requires grad when in_place: it is one")
    if not torch.compiler.is_compiling():
        return _Rotary.apply(q_TND, k_TKD, *tables, interleaved, in_place, tiled)
    if tiled:
        return tuple(rotary_reference(x, *tables, interleaved=interleaved) for x in (q_TND, k_TKD))
    return _rotate_op(q_TND, k_TKD, *tables, interleaved, False)


def rotary_qkv(
    qkv_TMD: Tensor,
    num_heads: int,
    num_kv_heads: int,
    cos: Tensor,
    sin: Tensor,
    positions_T: Tensor,
    *,
    interleaved: bool = False,
    in_place: bool = False,
    tiled: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Split (T, N + 2K, D) into queries (T, N, D) and keys (T, K, D), both rotated, and values (T, K, D).

    `in_place` rotates queries and keys inside qkv, and all three results are views of it: this suits the
    output of a linear layer, which nothing else reads. The other arguments are those of `rotary`. Raises
    ValueError for arguments that do not fit, such as a leaf that requires grad with `in_place`.
    """
    tables = (cos, sin, positions_T)
    tiled = tiled or not runtime.takes(qkv_TMD)
    _check_heads(qkv_TMD, num_heads, num_kv_heads)
    _check("rotary_qkv", "qkv_TMD", qkv_TMD, *tables)
    if not tiled:
        _check_for_kernel("rotary_qkv", "qkv_TMD", qkv_TMD, qkv_TMD, *tables)
    if torch.compiler.is_compiling():
        if tiled:
            return rotary_qkv_reference(qkv_TMD, num_heads, num_kv_heads, *tables, interleaved=interleaved)
        q_TND, k_TKD, v_TKD = qkv_TMD.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
        return *_rotate_op(q_TND, k_TKD, *tables, interleaved, False), v_TKD
    if in_place and qkv_TMD.is_leaf and qkv_TMD.requires_grad and torch.is_grad_enabled():
        raise ValueError("rotary_qkv: qkv_TMD must not be a leaf that requires grad when in_place: it is one")
    return _RotaryQKV.apply(qkv_TMD, num_heads, num_kv_heads, *tables, interleaved, in_place, tiled)


def _check(op: str, name: str, x_TND: Tensor, cos: Tensor, sin: Tensor, positions_T: Tensor) -> None:
    accept.dimensions(op, name, x_TND, 3)
    accept.floating(op, name, x_TND)
    num_tokens, _, head_dim = x_TND.shape
    if head_dim % 2:
        raise ValueError(f"{op}: {name} must have an even head dimension: {tuple(x_TND.shape)}")
    accept.dtype(op, "cos", cos, torch.float32)
    accept.dtype(op, "sin", sin, torch.float32)
    accept.dimensions(op, "cos", cos, 2)
    accept.shape(op, "cos", cos, (cos.shape[0], head_dim // 2))
    accept.shape(op, "sin", sin, cos.shape)
    accept.shape(op, "positions_T", positions_T, (num_tokens,))
    accept.dtype(op, "positions_T", positions_T, torch.int32, torch.int64)
    for table_name, table in (("cos", cos), ("sin", sin), ("positions_T", positions_T)):
        accept.device(op, table_name, table, x_TND.device)


def _check_for_kernel(op, name, x_TND, q_TND, cos, sin, positions_T) -> None:
    accept.dtype(op, name, x_TND, *accept.FLOATS)
    accept.dtype(op, name, x_TND, q_TND.dtype)
    accept.rows(op, name, x_TND)
    for table_name, table in (("cos", cos), ("sin", sin), ("positions_T", positions_T)):
        if not table.is_contiguous():
            raise ValueError(f"{op}: {table_name} must be contiguous: strides {table.stride()}")


def _check_heads(qkv_TMD: Tensor, num_heads: int, num_kv_heads: int) -> None:
    accept.dimensions("rotary_qkv", "qkv_TMD", qkv_TMD, 3)
    num_tokens, _, head_dim = qkv_TMD.shape
    accept.shape("rotary_qkv", "qkv_TMD", qkv_TMD, (num_tokens, num_heads + 2 * num_kv_heads, head_dim))


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_TND, k_TKD, cos, sin, positions_T, interleaved, in_place, tiled):
        ctx.save_for_backward(cos, sin, positions_T)
        ctx.interleaved, ctx.launch = interleaved, tiles.rotate if tiled else _launch
        qk = (q_TND, k_TKD)
        if in_place:
            ctx.mark_dirty(*qk)
        rotated = qk if in_place else tuple(x.new_empty(x.shape) for x in qk)
        ctx.launch(rotated, qk, (cos, sin, positions_T), interleaved=interleaved, inverse=False)
        return rotated

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        gradients = tuple(_rows(gradient) for gradient in gradients)
        rotated = tuple(x.new_empty(x.shape) for x in gradients)
        ctx.launch(rotated, gradients, ctx.saved_tensors, interleaved=ctx.interleaved, inverse=True)
        return *rotated, None, None, None, None, None, None


class _RotaryQKV(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv_TMD, num_heads, num_kv_heads, cos, sin, positions_T, interleaved, in_place, tiled):
        ctx.save_for_backward(cos, sin, positions_T)
        ctx.interleaved, ctx.launch = interleaved, tiles.rotate if tiled else _launch
        *qk, v_TKD = qkv_TMD.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
        rotated = qk if in_place else [x.new_empty(x.shape) for x in qk]
        ctx.launch(rotated, qk, (cos, sin, positions_T), interleaved=interleaved, inverse=False)
        if in_place and not qkv_TMD.is_inference():
            increment_version(qkv_TMD)  # so that autograd notices if qkv was saved for a backward
        return *rotated, v_TKD

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        gradients = tuple(_rows(gradient) for gradient in gradients)
        sizes = [gradient.shape[1] for gradient in gradients]
        dqkv_TMD = gradients[0].new_empty((len(gradients[0]), sum(sizes), gradients[0].shape[2]))
        parts = dqkv_TMD.split(sizes, dim=1)
        ctx.launch(parts, gradients, ctx.saved_tensors, interleaved=ctx.interleaved, inverse=True)
        return dqkv_TMD, None, None, None, None, None, None, None, None


def _rows(gradient: Tensor) -> Tensor:
    """The gradient with contiguous rows: it may be an expanded scalar."""
    return gradient if gradient.stride(-1) == 1 else gradient.contiguous()


# Launches ------------------------------------------------------------------------------------------


def _rotate(
    q_TND: Tensor,
    k_TKD: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions_T: Tensor,
    interleaved: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    outputs = _empty_outputs(q_TND, k_TKD, cos, sin, positions_T, interleaved, inverse)
    _launch(outputs, (q_TND, k_TKD), (cos, sin, positions_T), interleaved=interleaved, inverse=inverse)
    return outputs


def _launch(outputs, inputs, tables, *, interleaved: bool, inverse: bool) -> None:
    """Rotate inputs[0] and inputs[1] into outputs, and copy inputs[2] if there is one."""
    num_tokens, _, head_dim = inputs[0].shape
    if num_tokens == 0:
        return
    half = runtime.next_power_of_2(head_dim // 2)
    most_heads = runtime.next_power_of_2(max(x.shape[1] for x in inputs))
    block_heads = min(most_heads, max(1, TILE // half))
    block_tokens = max(1, TILE // (half * block_heads))
    qkv = [*outputs, *inputs] if len(inputs) == 3 else [*outputs, None, *inputs, None]
    strides = [stride for x in qkv for stride in (x.stride()[:2] if x is not None else (0, 0))]
    with runtime.on_device_of(inputs[0]):
        _kernel[(runtime.cdiv(num_tokens, block_tokens),)](
            *qkv, *tables, num_tokens, *strides, N=inputs[0].shape[1], K=inputs[1].shape[1],
            HALF=head_dim // 2, INTERLEAVED=interleaved, INVERSE=inverse,
            TOKENS=block_tokens, HEADS=block_heads, LANES=half,
        )  # fmt: skip


def _empty_outputs(
    q_TND: Tensor,
    k_TKD: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions_T: Tensor,
    interleaved: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    return q_TND.new_empty(q_TND.shape), k_TKD.new_empty(k_TKD.shape)


# Kernels -------------------------------------------------------------------------------------------


@triton.jit
def _kernel(
    q_out_ptr, k_out_ptr, v_out_ptr, q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, positions_ptr, num_tokens,
    q_out_token, q_out_head, k_out_token, k_out_head, v_out_token, v_out_head,
    q_token, q_head, k_token, k_head, v_token, v_head,
    N: tl.constexpr, K: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    lanes = tl.arange(0, LANES)
    in_tokens = tokens < num_tokens
    in_table = in_tokens[:, None] & (lanes < HALF)[None, :]
    positions = tl.load(positions_ptr + tokens, mask=in_tokens, other=0).to(tl.int64)
    table = positions[:, None] * HALF + lanes[None, :]
    cos = tl.load(cos_ptr + table, mask=in_table, other=0.0)[:, None, :]
    sin = tl.load(sin_ptr + table, mask=in_table, other=0.0)[:, None, :]
    if INVERSE:
        sin = -sin
    for first in tl.static_range(0, N, HEADS):
        _rotate_heads(q_out_ptr, q_ptr, q_out_token, q_out_head, q_token, q_head, tokens, in_tokens,
                      first, cos, sin, N, HALF, INTERLEAVED, HEADS, LANES)  # fmt: skip
    for first in tl.static_range(0, K, HEADS):
        _rotate_heads(k_out_ptr, k_ptr, k_out_token, k_out_head, k_token, k_head, tokens, in_tokens,
                      first, cos, sin, K, HALF, INTERLEAVED, HEADS, LANES)  # fmt: skip
    if v_ptr is not None:
        for first in tl.static_range(0, K, HEADS):
            heads = first + tl.arange(0, HEADS)
            columns = tl.arange(0, 2 * LANES)
            mask = in_tokens[:, None, None] & (heads < K)[None, :, None] & (columns < 2 * HALF)[None, None, :]
            source = _offsets(tokens, heads, columns, v_token, v_head)
            target = _offsets(tokens, heads, columns, v_out_token, v_out_head)
            tl.store(v_out_ptr + target, tl.load(v_ptr + source, mask=mask), mask=mask)


@triton.jit
def _offsets(tokens, heads, columns, token_stride, head_stride):
    """(TOKENS, HEADS, columns) offsets, in 64 bits throughout."""
    of_heads = tokens[:, None] * token_stride + heads.to(tl.int64)[None, :] * head_stride
    return of_heads[:, :, None] + columns[None, None, :]


@triton.jit
def _rotate_heads(
    out_ptr, x_ptr, out_token, out_head, x_token, x_head, tokens, in_tokens, first_head, cos, sin,
    NUM_HEADS: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Rotate the heads from `first_head` on by cos and sin (TOKENS, 1, LANES)."""
    heads = first_head + tl.arange(0, HEADS)
    in_heads = in_tokens[:, None, None] & (heads < NUM_HEADS)[None, :, None]
    if INTERLEAVED:
        lanes = tl.arange(0, 2 * LANES)
        mask = in_heads & (lanes < 2 * HALF)[None, None, :]
        source = _offsets(tokens, heads, lanes, x_token, x_head)
        x = tl.load(x_ptr + source, mask=mask, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(x, (x.shape[0], HEADS, LANES, 2)))
        rotated = tl.join(first * cos - second * sin, second * cos + first * sin)
        rotated = tl.reshape(rotated, (x.shape[0], HEADS, 2 * LANES))
        tl.store(out_ptr + _offsets(tokens, heads, lanes, out_token, out_head), rotated, mask=mask)
    else:
        lanes = tl.arange(0, LANES)
        mask = in_heads & (lanes < HALF)[None, None, :]
        source = x_ptr + _offsets(tokens, heads, lanes, x_token, x_head)
        target = out_ptr + _offsets(tokens, heads, lanes, out_token, out_head)
        first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
        tl.store(target, first * cos - second * sin, mask=mask)
        tl.store(target + HALF, second * cos + first * sin, mask=mask)


# For torch.compile ---------------------------------------------------------------------------------

_rotate_op = torch.library.custom_op("fastling::rotary", _rotate, mutates_args=())
_rotate_op.register_fake(_empty_outputs)


def _setup(ctx, inputs, output) -> None:
    _, _, *tables, ctx.interleaved, ctx.inverse = inputs
    ctx.save_for_backward(*tables)


def _compiled_backward(ctx, dq_TND, dk_TKD):
    gradients = _rotate_op(_rows(dq_TND), _rows(dk_TKD), *ctx.saved_tensors, ctx.interleaved, not ctx.inverse)
    return *gradients, None, None, None, None, None


_rotate_op.register_autograd(_compiled_backward, setup_context=_setup)
