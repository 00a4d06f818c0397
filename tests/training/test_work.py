"""The arithmetic of a step, against torch's own counter, and the rates of GPUs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastling import ops
from fastling.model.llama import Llama, LlamaConfig
from fastling.training.work import Work, peak_flops

SHAPE = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture
def reference_kernels():
    ops.configure("reference")
    yield
    ops.configure()


def test_matrix_work_equals_torchs_flop_count(reference_kernels):
    """torch's counter sees every matrix product of forward and backward; attention is left out of both."""
    model = Llama(LlamaConfig(**SHAPE))
    tokens, supervised = 48, 20
    ids, index = torch.arange(tokens), torch.arange(supervised)
    with FlopCounterMode(display=False) as counter:
        loss, _ = model(
            ids, torch.tensor([0, tokens], dtype=torch.int32), labels=index, loss_index=index,
            weights=torch.ones(supervised),
        )  # fmt: skip
        loss.backward()
    counts = counter.get_flop_counts()["Global"]
    matrices = sum(count for op, count in counts.items() if str(op).split(".")[-1] in ("mm", "addmm"))
    assert Work(model.config).needed(tokens, supervised, 0) == pytest.approx(matrices, rel=0.01)


def test_attention_counts_only_pairs_that_see_each_other():
    work = Work(LlamaConfig(**SHAPE))
    pairs = 10**2 / 2 + 30**2 / 2  # two documents
    per_pair = (
        3 * 2 * 2 * SHAPE["num_hidden_layers"] * SHAPE["hidden_size"]
    )  # fwd + 2 bwd, QK and PV, 2 per MAC
    assert work.needed(0, 0, 10**2 + 30**2) == pytest.approx(pairs * per_pair)


def test_the_usual_count_treats_every_token_as_trained_in_full_sequences():
    """6 n a token of every matrix, the head among them, and 12 * layers * hidden * sequence for attention."""
    matrices = 3 * (32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 48) + 64 * 32
    assert Work(LlamaConfig(**SHAPE)).usual_count(40, 64) == 40 * (6 * matrices + 12 * 3 * 32 * 64)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 9.89e14), ("NVIDIA H100 PCIe", 7.56e14), ("NVIDIA H100 NVL", 8.35e14),
        ("NVIDIA H200", 9.89e14), ("NVIDIA GH200 480GB", 9.89e14), ("NVIDIA B200", 2.25e15),
        ("NVIDIA GB200", 2.5e15), ("NVIDIA A100-SXM4-80GB", 3.12e14), ("NVIDIA GeForce RTX 4090", None),
    ],
)  # fmt: skip
def test_each_kind_of_a_gpu_has_its_own_rate(monkeypatch, name, rate):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == rate
