"""Rotary embedding: what the table of cases leaves out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastling.kernels.rotary import rotary, rotary_qkv, rotary_qkv_reference, rotary_reference

pytestmark = pytest.mark.usefixtures("either_version")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
N, K = 3, 2  # query heads, key/value heads


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()


def draw_tables(num_tokens: int, head_dim: int, num_positions: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    angles = torch.rand(num_positions, head_dim // 2, device=DEVICE) * 6.28
    positions = torch.randint(num_positions, (num_tokens,), dtype=torch.int32, device=DEVICE)
    return angles.cos(), angles.sin(), positions


def formula(x_TND: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """In float64, lane by lane: pair i of every head turns by angle i of the token's position."""
    half = x_TND.shape[-1] // 2
    lanes = [x_TND[..., lane].double() for lane in range(2 * half)]
    out = list(lanes)
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        c, s = (table.double()[positions.long(), i].unsqueeze(1) for table in (cos, sin))
        out[a], out[b] = lanes[a] * c - lanes[b] * s, lanes[b] * c + lanes[a] * s
    return torch.stack(out, dim=-1)


each_layout = pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])


@pytest.mark.slow
@each_layout
@settings(max_examples=20)
@given(
    num_tokens=st.integers(1, 9),
    num_heads=st.integers(1, 40),
    num_kv_heads=st.integers(1, 20),
    half=st.integers(1, 70),
)
def test_any_shape_is_its_formula(interleaved, num_tokens, num_heads, num_kv_heads, half):
    q, k = leaf(num_tokens, num_heads, 2 * half), leaf(num_tokens, num_kv_heads, 2 * half)
    tables = draw_tables(num_tokens, 2 * half)
    outputs = rotary(q, k, *tables, interleaved=interleaved)
    truth = [formula(x, *tables, interleaved) for x in (q, k)]
    plain = [rotary_reference(x, *tables, interleaved=interleaved) for x in (q, k)]
    directions = [torch.randn_like(x) for x in outputs]
    gradients = torch.autograd.grad(outputs, (q, k), directions)
    true_gradients = torch.autograd.grad(truth, (q, k), [x.double() for x in directions])
    for one, other in zip((*outputs, *plain, *gradients), (*truth, *truth, *true_gradients), strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=1e-5, rtol=1e-5)


@each_layout
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_rotary_qkv_equals_slicing_then_rotating(interleaved, dtype):
    qkv, (cos, sin, positions) = leaf(5, N + 2 * K, 10), draw_tables(5, 10)
    tables = (cos, sin, positions.to(dtype))
    q, k, v = rotary_qkv(qkv, N, K, *tables, interleaved=interleaved)
    for part, truth in zip((q, k), qkv[:, : N + K].split([N, K], dim=1), strict=True):
        torch.testing.assert_close(part.double(), formula(truth, *tables, interleaved), atol=1e-6, rtol=1e-5)
    assert torch.equal(v, qkv[:, N + K :])


@each_layout
def test_rotary_qkv_with_more_heads_than_a_program_holds(interleaved):
    """As in a model of 7 billion weights: of the values, too, every head gets its gradient."""
    qkv, tables = leaf(2, 30, 140), draw_tables(2, 140)
    results = [
        take_apart(qkv, 10, 10, *tables, interleaved=interleaved)
        for take_apart in (rotary_qkv, rotary_qkv_reference)
    ]
    directions = [torch.randn_like(x) for x in results[0]]
    gradients = [torch.autograd.grad(each, qkv, directions) for each in results]
    torch.testing.assert_close((*results[0], *gradients[0]), (*results[1], *gradients[1]))


def test_a_packed_document_is_rotated_as_if_alone():
    lengths = [4, 1, 6]
    qkv, (cos, sin, _) = leaf(sum(lengths), N + 2 * K, 10), draw_tables(0, 10)
    positions = [torch.arange(length, device=DEVICE) for length in lengths]
    packed = rotary_qkv(qkv, N, K, cos, sin, torch.cat(positions))
    alone = [
        rotary_qkv(document, N, K, cos, sin, own)
        for document, own in zip(qkv.split(lengths), positions, strict=True)
    ]
    for whole, *parts in zip(packed, *alone, strict=True):
        assert torch.equal(whole, torch.cat(parts))


# In place ------------------------------------------------------------------------------------------


def rotated(qkv: Tensor, tables, retain: bool = False, **options) -> list[Tensor]:
    """Results and the gradient of qkv, for gradients that are drawn alike each time."""
    outputs = rotary_qkv(qkv * 1, N, K, *tables, **options)
    torch.manual_seed(1)
    directions = [torch.randn_like(x) for x in outputs]
    gradients = [torch.autograd.grad(outputs, qkv, directions, retain_graph=retain)[0]]
    if retain:
        gradients += torch.autograd.grad(outputs, qkv, directions)
    return [*outputs, *gradients]


@each_layout
def test_in_place_gives_the_same_bits_forward_and_backward(interleaved):
    qkv, tables = leaf(5, N + 2 * K, 10), draw_tables(5, 10)
    copied = rotated(qkv, tables, interleaved=interleaved)
    in_place = rotated(qkv, tables, interleaved=interleaved, in_place=True)
    assert all(torch.equal(one, other) for one, other in zip(copied, in_place, strict=True))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_second_backward_gives_the_same(in_place):
    *_, first, second = rotated(leaf(5, N + 2 * K, 10), draw_tables(5, 10), retain=True, in_place=in_place)
    assert torch.equal(first, second)


def test_in_place_overwrites_queries_and_keys_and_shares_the_values():
    qkv, tables = leaf(5, N + 2 * K, 10).detach(), draw_tables(5, 10)
    expected = rotary_qkv_reference(qkv, N, K, *tables)
    results = rotary_qkv(qkv, N, K, *tables, in_place=True)
    storage = qkv.untyped_storage().data_ptr()
    for result, plain in zip(results, expected, strict=True):
        torch.testing.assert_close(result, plain)
        assert result.untyped_storage().data_ptr() == storage


def test_separate_queries_and_keys_can_be_rotated_in_place():
    q, k, tables = leaf(5, N, 10), leaf(5, K, 10), draw_tables(5, 10)
    given = q * 1, k * 1
    results = rotary(*given, *tables, in_place=True)
    expected = rotary(q, k, *tables)
    assert all(one is other for one, other in zip(results, given, strict=True))
    for direction in (torch.randn(5, N, 10, device=DEVICE), torch.zeros((), device=DEVICE)):
        losses = [(result[0] * direction).sum() + result[1].sum() for result in (results, expected)]
        ours, truth = (torch.autograd.grad(loss, (q, k), retain_graph=True) for loss in losses)
        assert all(
            torch.equal(one, other) for one, other in zip((*results, *ours), (*expected, *truth), strict=True)
        )


def test_backward_raises_if_overwritten_inputs_were_saved():
    qkv, tables = leaf(5, N + 2 * K, 10), draw_tables(5, 10)
    projected = qkv * 1
    squares = projected.square()  # keeps `projected` for its backward
    rotary_qkv(projected, N, K, *tables, in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.sum().backward()
    q, k = leaf(5, N, 10) * 1, leaf(5, K, 10) * 1
    squares = q.square()
    rotary(q, k, *tables, in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.sum().backward()


def test_in_place_refuses_a_leaf_and_leaves_it_unchanged():
    qkv, tables = leaf(5, N + 2 * K, 10), draw_tables(5, 10)
    before = qkv.detach().clone()
    with pytest.raises(ValueError, match="rotary_qkv: qkv_TMD must not be a leaf that requires grad"):
        rotary_qkv(qkv, N, K, *tables, in_place=True)
    assert torch.equal(qkv, before)


@pytest.mark.parametrize("leaf_one", ["q_TND", "k_TKD"])
def test_in_place_refuses_leaf_queries_or_keys_and_leaves_them_unchanged(leaf_one):
    qk, tables = {"q_TND": leaf(5, N, 10), "k_TKD": leaf(5, K, 10)}, draw_tables(5, 10)
    qk = {name: x if name == leaf_one else x * 1 for name, x in qk.items()}
    before = {name: x.detach().clone() for name, x in qk.items()}
    with pytest.raises((ValueError, RuntimeError), match="leaf"):
        rotary(**qk, **dict(zip(("cos", "sin", "positions_T"), tables, strict=True)), in_place=True)
    assert all(torch.equal(qk[name], before[name]) for name in qk)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_in_place_without_gradients(mode):
    tables = draw_tables(5, 10)
    with mode():
        qkv = torch.randn(5, N + 2 * K, 10, device=DEVICE)
        expected = rotary_qkv(qkv, N, K, *tables)
        results = rotary_qkv(qkv, N, K, *tables, in_place=True)
        assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))
        q, k = (x.contiguous() for x in results[:2])
        expected = rotary(q, k, *tables)
        assert all(
            torch.equal(one, other)
            for one, other in zip(rotary(q, k, *tables, in_place=True), expected, strict=True)
        )


@pytest.mark.parametrize("used", [0, 1, 2])
def test_unused_results_get_zero_gradients(used):
    qkv, tables = leaf(5, N + 2 * K, 10), draw_tables(5, 10)
    (gradient,) = torch.autograd.grad(rotary_qkv(qkv, N, K, *tables)[used].sum(), qkv)
    (truth,) = torch.autograd.grad(rotary_qkv_reference(qkv, N, K, *tables)[used].sum(), qkv)
    torch.testing.assert_close(gradient, truth)


def test_strided_rows_are_read_in_place():
    """Heads that are apart, and gradients that attention gives with its heads first."""
    base, tables = leaf(5, 9, 20), draw_tables(5, 10)
    views = base[:, 1:7:2, :10], base[:, 7:, 10:]
    outputs = rotary(*views, *tables)
    truth = [formula(x, *tables, interleaved=False) for x in views]
    directions = [torch.randn(x.shape[1], 5, 10, device=DEVICE).transpose(0, 1) for x in views]
    (gradient,) = torch.autograd.grad(outputs, base, directions)
    (true_gradient,) = torch.autograd.grad(truth, base, [x.double() for x in directions])
    for one, other in zip((*outputs, gradient), (*truth, true_gradient), strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=1e-6, rtol=1e-5)


def test_the_plain_version_keeps_the_type_of_x():
    assert rotary_reference(leaf(5, N, 10, dtype=torch.bfloat16), *draw_tables(5, 10)).dtype == torch.bfloat16
