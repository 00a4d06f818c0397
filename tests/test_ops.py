"""The door to the kernels: what it picks, what it says, and what it refuses."""

import pytest
import torch
from torch import nn

from fastling import ops
from fastling.errors import UserError
from fastling.kernels import attention as attention_kernels


@pytest.fixture(autouse=True)
def restore_choice():
    yield
    ops.configure()


def test_the_choice_on_a_cpu_is_a_table_with_reasons():
    choices = ops.configure(device="cpu", dtype=torch.float32)
    picked = {choice.op: choice.implementation for choice in choices}
    assert picked == {
        "rms_norm": "reference",
        "rotary": "reference",
        "swiglu": "reference",
        "linear_cross_entropy": "chunked",
        "attention": "sdpa",
    }
    assert all(choice.reason for choice in choices)
    assert "needs a CUDA device" in str(choices[-1])


def test_reference_runs_the_plain_loss(monkeypatch):
    def unwanted(*_):
        raise AssertionError("the chunked loss ran")

    monkeypatch.setattr(ops, "chunked_linear_cross_entropy", unwanted)
    ops.configure(kernels="reference")
    loss, _ = ops.linear_cross_entropy(
        torch.ones(2, 4), torch.ones(8, 4), torch.zeros(2, dtype=torch.int64), torch.ones(2)
    )
    assert loss.item() == pytest.approx(2 * torch.tensor(8.0).log().item())


@pytest.mark.parametrize(
    ("settings", "where", "what"),
    [
        ({"kernels": "triton"}, "model.kernels", "not part of this version"),
        ({"kernels": "fast"}, "model.kernels", "'fast' is not one of auto, triton, reference"),
        ({"attention": "fast"}, "model.attention", "'fast' is not one of auto, flash3"),
        ({"attention": "flash2"}, "model.attention", "'flash2' cannot run on cpu.*CUDA device"),
    ],
)
def test_a_choice_that_cannot_be_had_is_refused_never_swapped(settings, where, what):
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
        (lambda: ops.swiglu(rows(3, 5)), r"must be even: \(3, 5\)"),
        (
            lambda: ops.rotary(rows(3, 2, 4), rows(9, 2), rows(9, 2), rows(4)),
            r"positions_T must be \(3,\): \(4,\)",
        ),
        (
            lambda: ops.rotary(rows(3, 2, 4), rows(9, 4), rows(9, 4), rows(3)),
            r"cos must be \(9, 2\): \(9, 4\)",
        ),
        (
            lambda: ops.rotary(rows(3, 2, 4), rows(9, 2, dtype=torch.bfloat16), rows(9, 2), rows(3)),
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
            "lengths sum to 2, tokens are 3",
        ),
    ],
)
def test_wrong_inputs_are_refused_with_the_offending_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_loss_refuses_a_sharded_weight(monkeypatch):
    class Sharded(torch.Tensor):
        pass

    monkeypatch.setattr(ops, "DTensor", Sharded)
    weight = nn.Parameter(torch.ones(8, 4)).detach().as_subclass(Sharded)
    with pytest.raises(ValueError, match="weight is sharded"):
        ops.linear_cross_entropy(rows(1, 4), weight, rows(1, dtype=torch.int64), rows(1))
