"""The door to the kernels: what it picks, what it says, and what it refuses."""

import platform

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from fastling import Llama, LlamaConfig, ops
from fastling.errors import UserError
from fastling.kernels import attention as attention_kernels
from fastling.kernels import linear_cross_entropy as loss_kernels
from fastling.kernels import runtime
from fastling.model.cache import CacheStep, KVCache


@pytest.fixture(autouse=True)
def restore_choice():
    yield
    ops.configure()


def test_the_choice_on_a_cpu_is_a_table_with_reasons():
    choices = ops.configure(device="cpu", dtype=torch.float32)
    picked = {choice.op: choice.implementation for choice in choices}
    assert picked == {
        "rms_norm": "tiled",
        "rotary": "tiled",
        "swiglu": "tiled",
        "linear_cross_entropy": "chunked",
        "attention": "tiled",
    }
    assert all(choice.reason for choice in choices)
    assert "needs a CUDA device" in str(choices[-1])


def test_on_a_cpu_without_instructions_for_bfloat16_its_products_are_said_to_be_in_float32(monkeypatch):
    monkeypatch.setattr(runtime, "_cpu_flags", frozenset)
    said = str(ops.configure(device="cpu", dtype=torch.bfloat16)[-1])
    assert said.startswith("products: float32: this CPU has no instructions for torch.bfloat16")
    assert "products" not in {choice.op for choice in ops.configure(device="cpu", dtype=torch.float32)}
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert "products" not in {choice.op for choice in ops.configure(device="cpu", dtype=torch.bfloat16)}


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not hasattr(torch.cpu, "get_capabilities"),
    reason="other processors' instructions, and an older PyTorch's, have other names",
)
def test_cpu_flags_of_linux_agree_with_pytorchs():
    found = {name for name, there in torch.cpu.get_capabilities().items() if there is True}
    for dtype, flags in runtime.PRODUCT_FLAGS.items():
        assert runtime.lacks_products(torch.device("cpu"), dtype) == found.isdisjoint(flags)


def test_on_a_gpu_auto_takes_triton_and_says_why_not_where_it_cannot(monkeypatch):
    """No GPU is needed to decide."""
    monkeypatch.setattr(attention_kernels, "available", lambda *_: None)

    def picked(capability: tuple[int, int], **settings) -> dict[str, ops.Choice]:
        monkeypatch.setattr(runtime, "_capability", lambda _: capability)
        return {
            choice.op: choice for choice in ops.configure(device="cuda", dtype=torch.bfloat16, **settings)
        }

    choices = picked((9, 0))
    assert {choices[op].implementation for op in choices if op != "attention"} == {"triton"}
    old = picked((7, 5))
    assert old["rms_norm"].implementation == "tiled"
    assert old["linear_cross_entropy"].implementation == "chunked"
    assert old["rms_norm"].reason == "needs compute capability 8.0 or newer"
    assert picked((9, 0), kernels="reference")["swiglu"].implementation == "reference"


def test_without_triton_the_plain_ops_run_and_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(runtime, "INSTALLED", False)
    assert ops.configure()[0] == ops.Choice("rms_norm", "tiled", "triton is not installed")
    with pytest.raises(UserError, match="triton is not installed"):
        ops.configure(kernels="triton")


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, {"model_type": "qwen3", "num_key_value_heads": 1}], ids=str)
def test_the_model_computes_the_same_with_every_choice(config):
    """Loss, and the gradient of every weight (norms too), of two packed documents."""
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=37, max_position_embeddings=16, **shape | config))
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):  # ones would hide a weight that is not used
            nn.init.uniform_(weight, 0.5, 1.5)
    tokens, bounds = torch.randint(37, (9,)), torch.tensor([0, 4, 9], dtype=torch.int32)
    rows = torch.tensor([1, 2, 5, 7])

    def results(kernels: str) -> dict[str, torch.Tensor]:
        ops.configure(kernels)
        loss, nll = model(tokens, bounds, labels=tokens[rows + 1], loss_index=rows, weights=torch.rand(4))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        names = [name for name, _ in model.named_parameters()]
        return {"loss": loss, "nll": nll} | dict(zip(names, gradients, strict=True))

    everything = []
    for kernels in ("reference", "auto", "triton"):
        torch.manual_seed(1)
        everything.append(results(kernels))
    for name, plain in everything[0].items():
        for other in everything[1:]:
            torch.testing.assert_close(other[name], plain, msg=name, atol=1e-6, rtol=1e-5)


def test_reference_runs_the_plain_loss(monkeypatch):
    def unwanted(*_):
        raise AssertionError("a loss in chunks ran")

    monkeypatch.setattr(loss_kernels, "_in_chunks", unwanted)
    ops.configure(kernels="reference")
    loss, _ = ops.linear_cross_entropy(
        torch.ones(2, 4), torch.ones(8, 4), torch.zeros(2, dtype=torch.int64), torch.ones(2)
    )
    assert loss.item() == pytest.approx(2 * torch.tensor(8.0).log().item())


@pytest.mark.parametrize(
    ("settings", "where", "what"),
    [
        ({"kernels": "triton"}, "model.kernels", "'triton' cannot run here: needs a CUDA device"),
        ({"kernels": "fast"}, "model.kernels", "'fast' is not one of auto, triton, reference"),
        ({"attention": "fast"}, "model.attention", "'fast' is not one of auto, flash3"),
        ({"attention": "flash2"}, "model.attention", "'flash2' cannot run on cpu.*CUDA device"),
    ],
)
def test_a_choice_that_cannot_be_had_is_refused_never_swapped(settings, where, what, monkeypatch):
    monkeypatch.setattr(runtime, "INTERPRETED", False)
    with pytest.raises(UserError, match=what) as refused:
        ops.configure(**settings)
    assert refused.value.where == where


def test_the_named_attention_backend_is_the_one_that_runs(monkeypatch):
    seen = []

    def record(q_TND, *_, backend, **__):
        seen.append(backend)
        return q_TND

    monkeypatch.setattr(attention_kernels, "attention", record)
    monkeypatch.setattr(attention_kernels, "available", lambda *_: None)
    q = torch.ones(2, 1, 4)
    for wanted, expected in (("xformers", "xformers"), ("auto", "flash3")):
        ops.configure(attention=wanted)
        ops.attention(q, q, q, torch.tensor([0, 2], dtype=torch.int32), 2)
        assert seen[-1] == expected


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.rms_norm(rows(3, 4), rows(5), 1e-6), r"weight must be \(4,\): \(5,\)"),
        (lambda: ops.swiglu(rows(3, 5)), r"must have an even last dimension: \(3, 5\)"),
        (
            lambda: ops.rotary(rows(3, 2, 4), rows(3, 1, 4), rows(9, 2), rows(9, 2), rows(4)),
            r"positions_T must be \(3,\): \(4,\)",
        ),
        (
            lambda: ops.rotary(rows(3, 2, 4), rows(3, 1, 4), rows(9, 4), rows(9, 4), rows(3)),
            r"cos must be \(9, 2\): \(9, 4\)",
        ),
        (
            lambda: ops.rotary(
                rows(3, 2, 4), rows(3, 1, 4), rows(9, 2, dtype=torch.bfloat16), rows(9, 2), rows(3)
            ),
            "cos must be torch.float32: torch.bfloat16",
        ),
        (
            lambda: ops.linear_cross_entropy(rows(3, 4), rows(9, 4), rows(3, dtype=torch.int32), rows(3)),
            "labels_S must be torch.int64: torch.int32",
        ),
        (
            lambda: ops.linear_cross_entropy(
                rows(3, 4), rows(9, 4), rows(3, dtype=torch.int64), rows(3, dtype=torch.bfloat16)
            ),
            "weights_S must be torch.float32: torch.bfloat16",
        ),
        (
            lambda: ops.linear_cross_entropy(rows(3, 4), rows(9, 5), rows(3, dtype=torch.int64), rows(3)),
            r"weight_VH must be \(9, 4\): \(9, 5\)",
        ),
        (
            lambda: ops.attention(rows(3, 3, 4), rows(3, 2, 4), rows(3, 2, 4), rows(2, dtype=torch.int32), 3),
            "3 heads over 2 kv heads",
        ),
        (
            lambda: ops.attention(
                rows(3, 2, 4),
                rows(3, 2, 4),
                rows(3, 2, 4),
                rows(2, dtype=torch.int32),
                3,
                lengths=[2],
            ),
            "lengths must be >= 0 and sum to the 3 tokens: \\[2\\]",
        ),
    ],
)
def test_wrong_inputs_are_refused_with_the_offending_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_loss_refuses_a_sharded_weight(monkeypatch):
    class Sharded(torch.Tensor):
        pass

    monkeypatch.setattr(torch.distributed.tensor, "DTensor", Sharded)
    weight = nn.Parameter(torch.ones(8, 4)).detach().as_subclass(Sharded)
    with pytest.raises(ValueError, match="weight_VH is a DTensor, sharded over ranks"):
        ops.linear_cross_entropy(rows(1, 4), weight, rows(1, dtype=torch.int64), rows(1))


def test_on_a_gpu_attention_of_many_lengths_is_never_left_to_cudnn(monkeypatch):
    """It makes a plan for each new shape, and PyTorch prefers it on Hopper."""
    asked = []

    def answer(q, *_, **__):
        asked.append(torch.backends.cuda.cudnn_sdp_enabled())
        return q.clone()

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", answer)
    with FakeTensorMode():  # no GPU is needed
        x = torch.empty(7, 2, 8, device="cuda", dtype=torch.bfloat16)
        borders = torch.empty(3, device="cuda", dtype=torch.int32)
        attention_kernels.attention(x, x, x, borders, 4, backend="sdpa", lengths=[3, 4])
    assert asked == [False] * 2
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_on_a_gpu_attention_of_generation_is_never_left_to_cudnn(monkeypatch):
    """Each of its steps is one token longer than the last."""
    shapes = []
    monkeypatch.setattr(ops, "plain_attention", lambda q, *_, **__: shapes.append(q.shape) or q)
    shape = LlamaConfig(
        vocab_size=9, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    x, rows = torch.randn(7, 2, 8), torch.arange(7)
    step = CacheStep(KVCache(shape, 7, 16), rows, torch.full_like(rows, 4), [5] * 7, 5)
    step.attend(0, x, x, x, torch.zeros(1, dtype=torch.int32), 0, [])
    assert shapes == [(7, 2, 1, 8)]
