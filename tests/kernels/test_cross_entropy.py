"""Cross-entropy of logits: what the table of cases leaves out."""

import pytest
import torch
import torch.nn.functional as F
from conftest import slow_without_gpu
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastling.kernels import cross_entropy_rows as module
from fastling.kernels.cross_entropy import (
    IGNORE_INDEX,
    cross_entropy,
    cross_entropy_reference,
    rows_and_gradient,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAN, INF = float("nan"), float("inf")
BOTH = pytest.mark.parametrize("loss_of", [cross_entropy, cross_entropy_reference])


def draw(num_rows: int, vocab: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels of which every fourth is left out, and weights."""
    logits = (torch.randn(num_rows, vocab, device=DEVICE) * 3).to(dtype).requires_grad_()
    labels = torch.randint(vocab, (num_rows,), device=DEVICE)
    labels[1::4] = IGNORE_INDEX
    return logits, labels, torch.rand(num_rows, device=DEVICE)


def formula(logits, labels, weights, label_smoothing=0.0, z_loss=0.0) -> dict[str, Tensor]:
    """In float64: a smoothed target beside the prediction, row by row."""
    logits = logits.double()
    counted = labels != IGNORE_INDEX
    one_hot = F.one_hot(labels.where(counted, 0), logits.shape[1]).double()
    target = (1 - label_smoothing) * one_hot + label_smoothing / logits.shape[1]
    p = logits.softmax(-1)
    lse = logits.exp().sum(-1).log()
    rows = -(target * p.log()).sum(-1) + z_loss * lse**2
    by_row = {
        "nll": -(one_hot * p.log()).sum(-1),
        "lse": lse,
        "correct": logits.argmax(-1) == labels,
        "entropy": -(p * p.log()).sum(-1),
    }
    loss = (weights.double() * rows)[counted].sum()
    return {"loss": loss} | {name: x.where(counted, 0) for name, x in by_row.items()}


def assert_is_its_formula(loss_of, logits, labels, weights, **options) -> None:
    ours = loss_of(logits, labels, weights, entropy=True, **options)
    truth = formula(logits, labels, weights, **options)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours.loss, truth["loss"])]
    for name, expected in truth.items():
        result = getattr(ours, name)
        torch.testing.assert_close(result.to(expected.dtype), expected, atol=1e-6, rtol=1e-5)
        assert name == "loss" or not result.requires_grad
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


@slow_without_gpu
@BOTH
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("vocab", [37, 3 * 8192 + 5])
def test_every_result_and_option_is_its_formula(loss_of, vocab, label_smoothing, z_loss):
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    assert_is_its_formula(loss_of, *draw(5, vocab), **options)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    num_rows=st.integers(1, 6),
    vocab=st.integers(2, 300),
    label_smoothing=st.sampled_from([0.0, 0.3]),
    z_loss=st.sampled_from([0.0, 1e-2]),
    block=st.sampled_from([16, 64, 1024]),
)
@example(num_rows=2, vocab=32, label_smoothing=0.3, z_loss=1e-2, block=16)  # whole blocks, and one more token
@example(num_rows=2, vocab=33, label_smoothing=0.3, z_loss=1e-2, block=16)
def test_any_shape_in_blocks_of_any_size(num_rows, vocab, label_smoothing, z_loss, block):
    """Small blocks, so that the running sum and the label's place in it go through many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROUND_BYTES", 4 * block)
        options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
        assert_is_its_formula(cross_entropy, *draw(num_rows, vocab), **options)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_without_weights_it_is_pytorchs_mean(label_smoothing):
    logits, labels, _ = draw(9, 37)
    loss = cross_entropy(logits, labels, label_smoothing=label_smoothing).loss
    truth = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    torch.testing.assert_close(loss, truth)
    gradients = [torch.autograd.grad(x, logits)[0] for x in (loss, truth)]
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    "loss_of",
    [
        cross_entropy,
        cross_entropy_reference,
    ],
)
def test_results_are_float32_and_correct_is_bool(loss_of):
    loss, nll, lse, correct, entropy = loss_of(*draw(5, 37, torch.bfloat16), entropy=True)
    assert {x.dtype for x in (loss, nll, lse, entropy)} == {torch.float32} and correct.dtype == torch.bool


def test_entropy_is_none_unless_asked_for():
    assert cross_entropy(*draw(5, 37)).entropy is None
    assert cross_entropy_reference(*draw(5, 37)).entropy is None


@BOTH
def test_the_first_and_the_last_token_can_be_labels(loss_of):
    logits, _, weights = draw(2, 37)
    assert_is_its_formula(loss_of, logits, torch.tensor([0, 36], device=DEVICE), weights)


@BOTH
def test_a_tie_counts_as_correct(loss_of):
    logits = torch.tensor([[1.0, 2.0, 2.0], [1.0, 2.0, 3.0]], device=DEVICE)
    assert loss_of(logits, torch.tensor([1, 1], device=DEVICE)).correct.tolist() == [True, False]


@BOTH
def test_a_vocabulary_of_one_token_gives_zero_loss(loss_of):
    logits = torch.randn(3, 1, device=DEVICE).requires_grad_()
    result = loss_of(logits, torch.zeros(3, dtype=torch.int64, device=DEVICE), entropy=True)
    (gradient,) = torch.autograd.grad(result.loss, logits)
    for zero in (result.loss, result.nll, result.entropy, gradient):
        assert torch.equal(zero.detach(), torch.zeros_like(zero))
    torch.testing.assert_close(result.lse, logits.detach()[:, 0])
    assert result.correct.all()


@BOTH
def test_rows_of_weight_zero_have_no_gradient_but_are_measured(loss_of):
    logits, labels, weights = draw(5, 37)
    weights[0] = 0
    result = loss_of(logits, labels, weights)
    (gradient,) = torch.autograd.grad(result.loss, logits)
    assert gradient[0].eq(0).all() and gradient[2].ne(0).any() and result.nll[0] > 0


def test_strided_rows_and_labels_at_any_address():
    """Logits with padding after each row; labels that begin 8 bytes after a multiple of 16."""
    base, labels, weights = draw(6, 50)
    torch.manual_seed(1)
    shifted = torch.randint(37, (7,), device=DEVICE)[1:]
    assert shifted.data_ptr() % 16 == 8
    for y in (labels.where(labels < 37, 3), shifted):
        ours = cross_entropy(base[:, :37], y, weights).loss
        truth = formula(base[:, :37], y, weights)["loss"]
        gradients = [torch.autograd.grad(loss, base)[0] for loss in (ours, truth)]
        torch.testing.assert_close(ours.double(), truth, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


# Values that are not ordinary ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss_of",
    [
        cross_entropy,
        cross_entropy_reference,
    ],
)
@pytest.mark.parametrize("label_is_hidden", [False, True])
def test_tokens_masked_by_minus_infinity_take_no_part(loss_of, label_is_hidden):
    """As masks over the vocabulary have it: the loss is that of the other tokens."""
    logits, labels, weights = draw(5, 37)
    labels[labels == 4] = 5
    hidden = logits.detach().clone()
    hidden[:, 4] = -INF
    hidden.requires_grad_()
    if label_is_hidden:
        labels[0] = 4
    result = loss_of(hidden, labels, weights, entropy=True)
    (gradient,) = torch.autograd.grad(result.loss, hidden)
    assert gradient.isfinite().all() and result.entropy.isfinite().all()
    if label_is_hidden:
        assert result.loss == INF and result.nll[0] == INF
        torch.testing.assert_close(gradient[0, 4], -weights[0])  # a GPU's x / x need not be 1
    else:
        others = [token for token in range(37) if token != 4]
        truth = formula(hidden[:, others], labels - (labels > 4).long(), weights)
        (true_gradient,) = torch.autograd.grad(truth["loss"], hidden)
        torch.testing.assert_close(result.loss.double(), truth["loss"], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(gradient, true_gradient, atol=1e-6, rtol=1e-5)
        assert gradient[:, 4].eq(0).all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@BOTH
@pytest.mark.parametrize("place", ["label", "other token"])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_nan_and_infinity_stay_in_their_row(loss_of, bad, place):
    logits, labels, weights = draw(5, 37)
    logits = logits.detach()
    logits[2, labels[2] if place == "label" else (labels[2] + 1) % 37] = bad
    logits.requires_grad_()
    result = loss_of(logits, labels, weights)
    (gradient,) = torch.autograd.grad(result.loss, logits)
    assert result.loss.isnan()
    assert result.nll.isnan().nonzero().tolist() == [[2]]
    assert gradient.isnan().any(dim=1).nonzero().tolist() == [[2]]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_row_of_only_minus_infinity_is_nan():
    logits = torch.full((2, 37), -INF, device=DEVICE)
    assert cross_entropy(logits, torch.zeros(2, dtype=torch.int64, device=DEVICE)).loss.isnan()


@pytest.mark.parametrize("bad", [-1, 37, 40, -101, 2**40, -(2**62)])
def test_a_label_outside_the_vocabulary_is_never_an_address(bad):
    """2**40 rows further there is no memory."""
    logits, labels, weights = draw(5, 37)
    labels[2] = bad
    result = cross_entropy(logits, labels, weights)
    (gradient,) = torch.autograd.grad(result.loss, logits)
    assert result.loss.isnan() and result.nll.isnan().nonzero().tolist() == [[2]]
    assert gradient.isnan().all(dim=1).nonzero().tolist() == [[2]]
    assert gradient[[0, 1, 3, 4]].isfinite().all()


@BOTH
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_logits_of_any_size_stay_finite(loss_of, scale):
    logits, labels, weights = draw(5, 37)
    logits = (logits.detach() * scale).requires_grad_()
    result = loss_of(logits, labels, weights, entropy=True)
    (gradient,) = torch.autograd.grad(result.loss, logits)
    truth = F.cross_entropy(logits.double(), labels, reduction="none", ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(result.nll.double(), truth, atol=1e-5, rtol=1e-5)
    assert result.loss.isfinite() and gradient.isfinite().all() and result.entropy.isfinite().all()


@pytest.mark.parametrize("offset", [2.0**20, -(2.0**20)])
def test_the_same_offset_on_all_logits_changes_nothing(offset):
    """Logits are subtracted from each other before anything rounds them."""
    logits, labels, weights = draw(5, 300)
    logits = (logits.detach() * 8).round() / 8  # exact 2**20 away
    results = []
    for x in (logits.requires_grad_(), (logits.detach() + offset).requires_grad_()):
        result = cross_entropy(x, labels, weights, entropy=True)
        results.append((result.nll, result.entropy, *torch.autograd.grad(result.loss, x)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


# What is launched ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocab", "dtype", "num_warps"),
    [
        (5, torch.bfloat16, 1), (32_000, torch.bfloat16, 4), (32_000, torch.float32, 8),
        (50_257, torch.float16, 8), (128_256, torch.bfloat16, 16), (128_256, torch.float32, 16),
    ],
)  # fmt: skip
def test_long_rows_get_many_warps(monkeypatch, vocab, dtype, num_warps):
    """So that a multiprocessor holds about as many bytes of rows whatever their length."""
    launched = []
    monkeypatch.setattr(module, "_kernel", {(3,): lambda *_, **options: launched.append(options)})
    logits = torch.empty(3, vocab, dtype=dtype, device="meta")
    rows_and_gradient(logits, *torch.empty(2, 3, device="meta"), None)
    (options,) = launched
    assert options["num_warps"] == num_warps
    assert 0 < vocab - options["WHOLE"] <= options["BLOCK"] and options["WHOLE"] % options["BLOCK"] == 0


# The gradient over the logits ----------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [37, 3 * 8192 + 5])
def test_the_gradient_may_be_written_over_the_logits(vocab):
    logits, labels, weights = draw(5, vocab)
    expected = cross_entropy(logits, labels, weights)
    overwritten = logits * 1
    address = overwritten.data_ptr()
    result = cross_entropy(overwritten, labels, weights, overwrite_logits=True)
    (gradient,) = torch.autograd.grad(result.loss, overwritten)
    assert torch.equal(result.loss, expected.loss) and torch.equal(result.nll, expected.nll)
    assert torch.equal(gradient, torch.autograd.grad(expected.loss, logits)[0])
    assert gradient.data_ptr() == address


def test_backward_raises_if_the_overwritten_logits_were_saved():
    logits, labels, weights = draw(5, 37)
    capped = logits.tanh()  # keeps its result for its backward
    loss = cross_entropy(capped, labels, weights, overwrite_logits=True).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_gradients_nothing_is_overwritten():
    logits, labels, weights = draw(5, 37)
    before = logits.detach().clone()
    with torch.no_grad():
        cross_entropy(logits * 1, labels, weights, overwrite_logits=True)
        cross_entropy(logits, labels, weights, overwrite_logits=True)
    assert torch.equal(logits, before)


def test_a_leaf_or_strided_logits_are_not_overwritten():
    logits, labels, weights = draw(5, 37)
    before = logits.detach().clone()
    for refused in (logits, (logits * 1)[:, :30]):
        with pytest.raises(ValueError, match="cross_entropy: overwrite_logits takes contiguous logits"):
            cross_entropy(refused, labels.clamp(max=29), weights, overwrite_logits=True)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("vocab", [37, 2 * 8192 + 5])
def test_the_gradient_may_have_a_type_and_rows_of_its_own(vocab):
    logits, labels, weights = draw(5, vocab)
    truth = torch.autograd.grad(formula(logits, labels, weights)["loss"], logits)[0]
    padded = torch.randn(5, vocab + 3, device=DEVICE)
    padded[:, :vocab] = logits.detach()
    gradient = torch.full((5, vocab + 11), 7.0, dtype=torch.float16, device=DEVICE)
    rows_and_gradient(padded[:, :vocab], labels, weights, gradient[:, :vocab])
    torch.testing.assert_close(gradient[:, :vocab].float(), truth, atol=1e-6, rtol=1e-3)
    assert torch.equal(padded[:, :vocab], logits) and gradient[:, vocab:].eq(7).all()


def test_backward_scales_the_gradient_formed_in_forward_and_runs_once():
    logits, labels, weights = draw(5, 37)
    (once,) = torch.autograd.grad(cross_entropy(logits, labels, weights).loss, logits)
    loss = cross_entropy(logits, labels, weights).loss
    (tripled,) = torch.autograd.grad(loss * 3, logits, retain_graph=True)
    torch.testing.assert_close(tripled, once * 3)
    with pytest.raises(RuntimeError, match="cross_entropy: backward has used up the gradient; call forward"):
        torch.autograd.grad(loss, logits)
