"""Attention on a CPU: any documents, in any order, as their own attention alone would be."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from fastling.kernels import tiled_attention as tiled

N, K, D = 4, 2, 8


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that a few short documents make many tiles, some of them of one document only."""
    monkeypatch.setattr(tiled, "TILE_TOKENS", 64)
    tiled._layout.cache_clear()
    yield
    tiled._layout.cache_clear()


def draw(num_tokens: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """q, k and v as they come: parts of one buffer."""
    return list(torch.randn(num_tokens, N + 2 * K, D).to(dtype).requires_grad_().split([N, K, K], dim=1))


def packed(q_TND, k_TKD, v_TKD, lengths) -> torch.Tensor:
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return tiled.tiled_attention(q_TND, k_TKD, v_TKD, cu_seqlens)


def alone(q_TND, k_TKD, v_TKD, lengths) -> torch.Tensor:
    """Each document by itself, in float64, from the formula."""
    parts = []
    for q, k, v in zip(*(x.double().split(lengths) for x in (q_TND, k_TKD, v_TKD)), strict=True):
        keys, values = (x.repeat_interleave(N // K, dim=1) for x in (k, v))
        scores = torch.einsum("tnd,snd->nts", q, keys) / D**0.5
        future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        parts.append(torch.einsum("nts,snd->tnd", weights, values))
    return torch.cat(parts)


def pytorchs(q_TND, k_TKD, v_TKD, lengths) -> torch.Tensor:
    """One call of its fused attention for each document."""
    parts = []
    for part in zip(*(x.split(lengths) for x in (q_TND, k_TKD, v_TKD)), strict=True):
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in part)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        parts.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(parts)


def results(function, leaves, lengths, direction) -> list[torch.Tensor]:
    out = function(*leaves, lengths)
    return [out, *torch.autograd.grad(out, leaves, direction.to(out.dtype))]


@settings(max_examples=40)
@given(st.lists(st.integers(0, 70), min_size=1, max_size=12))
def test_packed_attention_equals_each_documents_own_with_gradients(lengths):
    leaves = draw(sum(lengths))
    direction = torch.randn(sum(lengths), N, D)
    ours, truth = (results(function, leaves, lengths, direction) for function in (packed, alone))
    for one, other in zip(ours, truth, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("any_cpu")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("lengths", [[5, 60, 5, 5, 61, 33], [tiled.LONGEST_WIDENED + 1] * 2, [300]], ids=str)
def test_half_precision_is_as_exact_as_pytorchs(lengths, dtype):
    leaves, direction = draw(sum(lengths), dtype), torch.randn(sum(lengths), N, D)
    truth = results(alone, leaves, lengths, direction.to(dtype))
    found = (results(function, leaves, lengths, direction) for function in (packed, pytorchs))
    for ours, plain, true in zip(*found, truth, strict=True):
        error, plain_error = ((x.double() - true.double()).norm() for x in (ours, plain))
        assert ours.dtype == dtype
        assert error <= 1.1 * plain_error


def test_recomputation_gives_the_same_gradients():
    """Recomputing gives what was saved only once."""
    leaves, lengths, direction = draw(100), [30, 70], torch.randn(100, N, D)

    def recomputed(*inputs):
        return checkpoint(packed, *inputs, use_reentrant=False)

    ours, plain = (results(each, leaves, lengths, direction) for each in (recomputed, packed))
    for one, other in zip(ours, plain, strict=True):
        assert one.equal(other)


def test_nothing_of_a_document_enters_another_not_even_nan():
    """Documents of 30 and 31 tokens share a tile, and the shorter one's padding lies beside the other."""
    lengths = [30, 31]
    leaves = [x.detach().clone() for x in draw(61)]
    for x in leaves:
        x[:30] = float("nan")
        x.requires_grad_()
    direction = torch.ones(61, N, D)
    for ours in results(packed, leaves, lengths, direction):
        assert ours[:30].isnan().any()
        assert ours[30:].isfinite().all()


def test_the_padding_of_the_longest_tile_is_small():
    for length in range(1, 5000):
        assert length <= tiled._padded(length) <= max(length * 9 / 8, length + 1)


PROGRAM = """
import torch
from fastling.kernels.tiled_attention import tiled_attention

def resident_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024

def attend(lengths):
    for length in lengths:
        x = torch.randn(length, 4, 64).bfloat16().requires_grad_()
        tiled_attention(x, x, x, torch.tensor([0, length])).sum().backward()

attend([480, 512, 480, 512])
before = resident_mib()
attend(range(450, 513))
print(resident_mib() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells no resident memory")
def test_documents_of_ever_new_lengths_do_not_grow_memory():
    """63 lengths, each of which PyTorch's half-precision products would keep some MiB for."""
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 30
