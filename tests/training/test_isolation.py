"""P5: training refuses to start on an attention path that mixes packed documents."""

import pytest
import torch
import torch.nn.functional as F

from fastling import ops
from fastling.errors import RunError, UserError
from fastling.model.llama import LlamaConfig
from fastling.training.isolation import prove_isolation

CONFIG = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_real_path_passes(dtype):
    prove_isolation(CONFIG, torch.device("cpu"), dtype)


def contaminated(q, k, v, cu_seqlens, max_seqlen, *, lengths=None):
    """What a side channel that is ignored amounts to: one causal sequence."""
    heads = q.shape[1] // k.shape[1]
    q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
    k, v = k.repeat_interleave(heads, 0), v.repeat_interleave(heads, 0)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1)


def leaky_gradient(q, k, v, cu_seqlens, max_seqlen, *, lengths=None):
    """Right outputs, wrong gradients: everything also receives a little of the whole."""
    right = ops_attention(q, k, v, cu_seqlens, max_seqlen, lengths=lengths)
    return right + (v.sum() - v.sum().detach()) * 1e-3


ops_attention = ops.attention


@pytest.mark.parametrize(
    ("wrong", "said"), [(contaminated, "output of other documents"), (leaky_gradient, "gradient")]
)
def test_a_path_that_mixes_documents_is_refused(monkeypatch, wrong, said):
    monkeypatch.setattr(ops, "attention", wrong)
    with pytest.raises(RunError, match=said):
        prove_isolation(CONFIG, torch.device("cpu"), torch.float32)


def test_a_backend_that_rejects_the_heads_is_explained(monkeypatch):
    """As fused attention refuses head dimensions that are no multiple of 8."""

    def refuse(*_, **__):
        raise RuntimeError("head_dim should be a multiple of 8\nException raised from mha_varlen_fwd")

    monkeypatch.setattr(ops, "attention", refuse)
    said = "model.attention: fails on 4 heads of 8 in torch.float32: head_dim should be a multiple of 8\n"
    with pytest.raises(UserError, match=said):
        prove_isolation(CONFIG, torch.device("cpu"), torch.float32)


def test_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    prove_isolation(CONFIG, torch.device("cpu"), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_out_of_memory_is_not_blamed_on_the_backend(monkeypatch):
    monkeypatch.setattr(ops, "attention", lambda *_, **__: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="allocate"):
        prove_isolation(CONFIG, torch.device("cpu"), torch.float32)
