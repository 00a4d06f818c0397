"""The head and its loss, in chunks: with Triton, without it, and as the plain version."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastling.kernels import linear_cross_entropy as module
from fastling.kernels import runtime
from fastling.kernels.cross_entropy import IGNORE_INDEX
from fastling.kernels.linear_cross_entropy import (
    chunked_linear_cross_entropy,
    linear_cross_entropy,
    linear_cross_entropy_reference,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB, HIDDEN = 41, 16
ROW_BYTES = VOCAB * 4
IN_CHUNKS = pytest.mark.parametrize("loss_of", [linear_cross_entropy, chunked_linear_cross_entropy])
ANY = pytest.mark.parametrize(
    "loss_of", [linear_cross_entropy, chunked_linear_cross_entropy, linear_cross_entropy_reference]
)


def draw(
    num_rows: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden, weight, labels of which every fourth is left out, and weights of the rows."""
    hidden = (torch.randn(num_rows, HIDDEN, device=DEVICE) * scale).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, HIDDEN, device=DEVICE).to(dtype).requires_grad_()
    labels = torch.randint(VOCAB, (num_rows,), device=DEVICE)
    labels[1::4] = IGNORE_INDEX
    return hidden, weight, labels, torch.rand(num_rows, device=DEVICE)


def results_of(loss_of, inputs, scale: float = 1.0, **options) -> tuple[Tensor, ...]:
    """Loss, nll, and the gradients of hidden and weight."""
    loss, nll = loss_of(*inputs, **options)
    return loss.detach(), nll, *torch.autograd.grad(loss * scale, inputs[:2])


def truth_of(hidden, weight, labels, weights) -> tuple[Tensor, ...]:
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    nll = F.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    loss = (nll * weights.double()).sum()
    return loss.detach(), nll.detach(), *torch.autograd.grad(loss, (hidden, weight))


def assert_close(results, truth, atol: float = 2e-5, rtol: float = 1e-5) -> None:
    for ours, expected in zip(results, truth, strict=True):
        torch.testing.assert_close(ours.double(), expected.double(), atol=atol, rtol=rtol)


@ANY
@pytest.mark.parametrize("num_rows", [1, 20])
def test_loss_and_gradients_are_those_of_float64(loss_of, num_rows):
    inputs = draw(num_rows)
    loss, nll = loss_of(*inputs)
    assert loss.dtype == nll.dtype == torch.float32 and not nll.requires_grad
    assert_close(results_of(loss_of, inputs), truth_of(*inputs))


@pytest.mark.slow
@IN_CHUNKS
@pytest.mark.parametrize("rows_in_chunk", [0, 1, 3, 7, 20, 1000])
def test_the_number_of_chunks_changes_nothing(loss_of, rows_in_chunk):
    inputs = draw(20)
    loss, nll, *gradients = results_of(loss_of, inputs, chunk_bytes=rows_in_chunk * ROW_BYTES)
    whole = results_of(loss_of, inputs)
    assert_close((loss, *gradients), (whole[0], *whole[2:]), atol=1e-6)
    assert_close([nll], [whole[1]], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("rows_in_chunk", [7, 1000])
def test_triton_and_chunked_losses_agree(rows_in_chunk):
    inputs, options = draw(20), {"chunk_bytes": rows_in_chunk * ROW_BYTES}
    with_triton, without = (
        results_of(loss_of, inputs, scale=0.3, **options)
        for loss_of in (linear_cross_entropy, chunked_linear_cross_entropy)
    )
    assert_close(with_triton, without, atol=1e-6)


def test_logits_stay_within_the_byte_budget(monkeypatch):
    seen = []
    product = module._product_into

    def record(out_CV, *factors):
        seen.append(out_CV.numel() * out_CV.element_size())
        product(out_CV, *factors)

    monkeypatch.setattr(module, "_product_into", record)
    linear_cross_entropy(*draw(20), chunk_bytes=6 * ROW_BYTES)
    assert seen == [5 * ROW_BYTES] * 4  # even chunks: no small one at the end


@pytest.mark.slow
@pytest.mark.parametrize("granted", [0, 5, 9, 20, 1000])
def test_logits_wider_than_their_gradient_get_a_quarter_of_the_memory(monkeypatch, granted):
    """The gradient has the rest: of all rows at once, or of as many as fit, and then a float32 total."""
    chunk_bytes = (
        granted * VOCAB * 4 * 4
    )  # a fourth is so many rows of float32; the rest six times as many of halves
    logits, summed = [], []
    product, add = module._product_into, module.add_product_float32
    monkeypatch.setattr(module, "_product_into", lambda out, *x: (logits.append(len(out)), product(out, *x)))
    monkeypatch.setattr(
        module, "add_product_float32", lambda *x, **y: (summed.append(len(x[2])), add(*x, **y))
    )
    inputs = draw(60, torch.float16)
    ours = results_of(linear_cross_entropy, inputs, chunk_bytes=chunk_bytes)
    by_16s = [16, 16, 16, 12]
    assert logits == {0: [1] * 60, 5: [4] * 15, 9: [8] * 4 + [7] * 4, 20: by_16s, 1000: [60]}[granted]
    assert summed == {0: [1] * 60, 5: by_16s, 9: [32, 28], 20: [], 1000: []}[granted]
    plain = results_of(linear_cross_entropy_reference, inputs)
    for one, other, exact in zip(ours, plain, truth_of(*inputs), strict=True):
        assert (one - exact).norm() <= 2 * (other - exact).norm() + 1e-6


@pytest.mark.parametrize("num_rows, rows_in_group", [(4099, 1500), (1000, 40), (33, 32), (16, 16), (100, 17)])
def test_all_chunks_have_equally_aligned_pointers(monkeypatch, num_rows, rows_in_group):
    """For each way in which they are not multiples of 16 bytes, Triton compiles it once more."""
    rows = []

    def look(logits, labels, weights, gradient):
        assert all(x.data_ptr() % 16 == 0 for x in (logits, labels, weights, gradient))
        rows.append(len(labels))
        return torch.zeros_like(weights), torch.zeros_like(weights)

    monkeypatch.setattr(module, "rows_and_gradient", look)
    linear_cross_entropy(*draw(num_rows), chunk_bytes=rows_in_group * ROW_BYTES)
    assert sum(rows) == num_rows and max(rows) <= rows_in_group


@pytest.mark.usefixtures("any_cpu")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows_in_chunk", [30, 1000])
@pytest.mark.parametrize("rows_in_tile", [7, 1000])
def test_in_half_precision_chunks_are_as_exact_as_the_plain_version(
    monkeypatch, dtype, rows_in_chunk, rows_in_tile
):
    monkeypatch.setattr(module, "CPU_TILE_BYTES", rows_in_tile * ROW_BYTES)
    inputs = draw(200, dtype)
    truth = truth_of(*inputs)
    plain = results_of(linear_cross_entropy_reference, inputs)
    chunked = results_of(chunked_linear_cross_entropy, inputs, chunk_bytes=rows_in_chunk * ROW_BYTES)
    for ours, theirs, exact in zip(chunked, plain, truth, strict=True):
        assert (ours - exact).norm() <= 2 * (theirs - exact).norm() + 1e-6


@pytest.mark.skipif(DEVICE.type == "cuda", reason="of products on a CPU with AMX")
def test_the_padding_between_rows_of_logits_is_zero():
    """On AMX oneDNN's product reads up to 31 values after a row, and counts on a product with 0 being 0."""
    logits = module._empty_logits(torch.empty(3, HIDDEN), 3, VOCAB, torch.bfloat16)
    assert logits.isnan().all()
    assert logits.stride() == (48, 1)
    assert logits.as_strided((3, 48), (48, 1))[:, VOCAB:].eq(0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, *([torch.bfloat16, torch.float16] if DEVICE.type == "cuda" else [])],
    ids=str,
)
@IN_CHUNKS
def test_the_loss_has_five_digits_in_any_dtype(loss_of, dtype):
    """On a GPU the product of halves keeps its float32 sums; a CPU rounds them."""
    inputs = draw(200, dtype)
    assert_close(loss_of(*inputs)[:1], truth_of(*inputs)[:1], atol=0.0, rtol=1e-5)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="of products on a CPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_without_instructions_for_half_precision_a_cpu_rounds_no_logits(dtype, monkeypatch):
    monkeypatch.setattr(runtime, "_cpu_flags", frozenset)
    inputs = draw(200, dtype)
    loss, nll = chunked_linear_cross_entropy(*inputs)
    assert_close((loss, nll), truth_of(*inputs)[:2], atol=0.0, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_logits_in_the_weights_dtype_give_about_the_same(dtype):
    inputs = draw(20, dtype)
    loss, _, *gradients = results_of(
        linear_cross_entropy, inputs, logits_dtype=dtype, chunk_bytes=7 * ROW_BYTES // 2
    )
    true_loss, _, *true_gradients = truth_of(*inputs)
    assert abs(loss - true_loss) <= 1e-2 * true_loss
    for ours, truth in zip(gradients, true_gradients, strict=True):
        assert (ours - truth).norm() <= 3e-2 * truth.norm()


def test_logits_narrower_than_the_gradient_are_refused():
    with pytest.raises(
        ValueError, match="linear_cross_entropy: logits_dtype must be torch.float32: torch.bf"
    ):
        linear_cross_entropy(*draw(20), logits_dtype=torch.bfloat16)


@IN_CHUNKS
def test_without_weights_it_is_pytorchs_mean(loss_of):
    hidden, weight, labels, _ = draw(20)
    loss, _ = loss_of(hidden, weight, labels)
    truth = F.cross_entropy(hidden @ weight.t(), labels)
    torch.testing.assert_close(loss, truth)
    gradients = [torch.autograd.grad(x, (hidden, weight)) for x in (loss, truth)]
    assert_close(*gradients, atol=1e-6)


@IN_CHUNKS
@pytest.mark.parametrize("gap", [2.0, 5.0, 10.0, 14.0])
def test_the_gradient_keeps_its_digits_where_the_label_is_almost_certain(loss_of, gap):
    """p = 0.9 to 0.999999: subtracting 1 from it would leave float32 with few digits."""
    hidden = torch.eye(3, device=DEVICE).requires_grad_()
    weight = torch.zeros(5, 3, device=DEVICE)
    weight[1] = gap
    labels = torch.ones(3, dtype=torch.int64, device=DEVICE)
    inputs = (hidden, weight.requires_grad_(), labels, torch.ones(3, device=DEVICE))
    assert_close(results_of(loss_of, inputs), truth_of(*inputs), atol=0.0)


@IN_CHUNKS
def test_logits_of_any_size_stay_finite(loss_of):
    inputs = draw(20, scale=1e4)
    assert_close(results_of(loss_of, inputs)[1:], truth_of(*inputs)[1:], atol=0.1, rtol=1e-4)


@ANY
def test_no_rows_give_zero_and_zero_gradients(loss_of):
    loss, nll, grad_hidden, grad_weight = results_of(loss_of, draw(0))
    assert loss == 0.0 and nll.shape == (0,) and grad_hidden.shape == (0, HIDDEN)
    assert torch.equal(grad_weight, torch.zeros_like(grad_weight))


@IN_CHUNKS
def test_backward_scales_by_the_incoming_gradient_and_runs_once(loss_of):
    inputs = draw(9)
    once = torch.autograd.grad(loss_of(*inputs)[0], inputs[:2])
    loss, _ = loss_of(*inputs)
    tripled = torch.autograd.grad(loss * 3, inputs[:2], retain_graph=True)
    for one, three in zip(once, tripled, strict=True):
        torch.testing.assert_close(three, one * 3)
    with pytest.raises(RuntimeError, match="backward has used up its gradients; call forward again"):
        torch.autograd.grad(loss, inputs[:2])


@IN_CHUNKS
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_inputs_change_no_other_gradient(loss_of, frozen):
    hidden, weight, *rest = draw(9)
    inputs = {"hidden": hidden, "weight": weight}
    gradients = torch.autograd.grad(loss_of(hidden, weight, *rest)[0], (hidden, weight))
    expected = dict(zip(inputs, gradients, strict=True))
    inputs[frozen] = inputs[frozen].detach()
    loss, _ = loss_of(*inputs.values(), *rest)
    (trained,) = inputs.keys() - {frozen}
    assert torch.equal(torch.autograd.grad(loss, inputs[trained])[0], expected[trained])


@IN_CHUNKS
def test_products_for_unneeded_gradients_are_skipped(monkeypatch, loss_of):
    def unwanted(*_, **__):
        raise AssertionError("the weight's gradient was formed")

    monkeypatch.setattr(module, "add_product_float32", unwanted)
    options = {"chunk_bytes": 3 * ROW_BYTES}
    hidden, weight, labels, weights = draw(9)
    loss_of(hidden, weight.detach(), labels, weights, **options)[0].backward()
    assert hidden.grad is not None
    with torch.no_grad():
        loss, _ = loss_of(hidden, weight, labels, weights, **options)
    assert not loss.requires_grad
    with pytest.raises(AssertionError, match="was formed"):
        loss_of(hidden, weight, labels, weights, **options)


@ANY
def test_without_gradients_the_loss_is_the_same(loss_of):
    inputs = draw(9)
    with torch.no_grad():
        loss, nll = loss_of(*inputs)
    expected = loss_of(*inputs)
    assert torch.equal(loss, expected[0]) and torch.equal(nll, expected[1])


@IN_CHUNKS
def test_inside_autocast_the_given_dtypes_are_used(loss_of):
    """An autocast product would round float32 weights."""
    inputs = draw(9)
    expected = results_of(loss_of, inputs, chunk_bytes=3 * ROW_BYTES)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        results = results_of(loss_of, inputs, chunk_bytes=3 * ROW_BYTES)
    assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))
