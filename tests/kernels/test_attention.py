"""Attention inside documents against its formula, and the choice between backends in words."""

import sys
from types import ModuleType

import pytest
import torch
from torch.nn.attention import varlen

from fastling.kernels import attention as attention_kernels
from fastling.kernels.attention import attention, available, choose

LENGTHS = [3, 3, 9, 1, 4]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def inputs(num_heads: int, num_kv_heads: int, dtype=torch.float32, device=CPU):
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    qkv = [
        torch.randn(total, heads, 8, generator=generator).to(device, dtype).requires_grad_()
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    ]
    return qkv, torch.tensor([0, *LENGTHS]).cumsum(0).int().to(device)


def formula(q, k, v):
    """Scores masked by one (T, T) matrix: same document, and not later."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).to(q.device)
    allowed = (document[:, None] == document[None]).tril()
    scores = torch.einsum("tnd,snd->nts", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return torch.einsum("nts,snd->tnd", weights, v)


on_a_cpu = pytest.mark.parametrize("backend", ["sdpa", "tiled"])


@on_a_cpu
@pytest.mark.parametrize("lengths", [LENGTHS, None])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_every_cpu_backend_equals_the_formula_with_gradients(num_heads, num_kv_heads, lengths, backend):
    qkv, cu_seqlens = inputs(num_heads, num_kv_heads)
    out = attention(*qkv, cu_seqlens, max(LENGTHS), backend=backend, lengths=lengths)
    truth = formula(*qkv)
    torch.testing.assert_close(out.double(), truth, atol=1e-6, rtol=1e-5)
    direction = torch.randn_like(out)
    ours = torch.autograd.grad((out * direction).sum(), qkv)
    theirs = torch.autograd.grad((truth * direction).sum(), qkv)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@on_a_cpu
@pytest.mark.parametrize("bounds", [[0, 3], [1, 5], [0, 8], [0, 4, 2, 5], [5, 0], [0], []], ids=str)
def test_borders_that_do_not_match_the_stream_are_refused(bounds, backend):
    """Rows outside of all documents would be whatever lay in that memory."""
    q = torch.randn(5, 2, 8)
    with pytest.raises(ValueError, match="attention: cu_seqlens must ascend from 0 to the 5 tokens"):
        attention(q, q, q, torch.tensor(bounds, dtype=torch.int32), 5, backend=backend)


@on_a_cpu
@pytest.mark.parametrize("lengths", [[], [3], [6, -1]], ids=str)
def test_lengths_that_do_not_match_the_stream_are_refused(lengths, backend):
    q, bounds = torch.randn(5, 2, 8), torch.tensor([0, 5], dtype=torch.int32)
    with pytest.raises(ValueError, match="attention: lengths must be >= 0 and sum to the 5 tokens"):
        attention(q, q, q, bounds, 5, backend=backend, lengths=lengths)


@on_a_cpu
def test_a_wrong_max_seqlen_is_refused(backend):
    q, bounds = torch.randn(5, 2, 8), torch.tensor([0, 5], dtype=torch.int32)
    with pytest.raises(ValueError, match="attention: max_seqlen must be at least the longest's 5: 4"):
        attention(q, q, q, bounds, 4, backend=backend, lengths=[5])


@on_a_cpu
@pytest.mark.parametrize("bounds", [[0], [0, 0]], ids=["no document", "an empty one"])
def test_zero_tokens_give_an_empty_result_with_a_gradient(bounds, backend):
    q = torch.zeros(0, 2, 8, requires_grad=True)
    out = attention(q, q, q, torch.tensor(bounds, dtype=torch.int32), 0, backend=backend)
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert out.shape == gradient.shape == (0, 2, 8)


def fake_flash(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, *, causal, deterministic):
    assert deterministic  # as everything is in these tests
    assert causal and max_q == max_k == 9 and torch.equal(cu_seqlens_q, cu_seqlens_k)
    return formula(q, k, v).to(q.dtype)


@pytest.mark.parametrize(
    ("backend", "module"), [("flash3", "flash_attn_interface"), ("flash2", "flash_attn")]
)
def test_flash_attention_is_called_causal_with_both_bounds(monkeypatch, backend, module):
    stand_in = ModuleType(module)
    stand_in.flash_attn_varlen_func = fake_flash
    monkeypatch.setitem(sys.modules, module, stand_in)
    qkv, cu_seqlens = inputs(4, 2)
    out = attention(*qkv, cu_seqlens, 9, backend=backend)
    torch.testing.assert_close(out, formula(*qkv).float())


@pytest.fixture
def reads_anew():
    """Have ours imported again, now and after the test, whatever is in PyTorch's module by then."""

    def read_anew():
        sys.modules.pop("fastling.kernels.torch_attention", None)

    yield read_anew
    read_anew()


def test_pytorchs_varlen_attention_is_called_as_each_version_spells_it(monkeypatch, reads_anew):
    """With fewer kv heads in all: copies of them would cost memory and time in every layer."""

    def torch_2_11(query, key, value, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1)):
        assert window_size == (-1, 0) and key.shape[1] == value.shape[1] == 2
        return formula(query, key, value)

    def torch_2_13(query, key, value, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
        assert window_size == (-1, 0) and enable_gqa and key.shape[1] == 2
        return formula(query, key, value)

    qkv, cu_seqlens = inputs(4, 2)
    for version in (torch_2_11, torch_2_13):
        monkeypatch.setattr(varlen, "varlen_attn", version)
        reads_anew()
        out = attention(*qkv, cu_seqlens, 9, backend="torch")
        torch.testing.assert_close(out, formula(*qkv))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("backend", ["flash3", "flash2", "torch", "xformers", "sdpa"])
def test_every_gpu_backend_equals_the_formula_with_gradients(backend, num_kv_heads):
    """Of fewer kv heads the gradients are sums over their query heads."""
    if missing := available(backend, CUDA, torch.bfloat16):
        pytest.skip(missing)
    qkv, cu_seqlens = inputs(4, num_kv_heads, torch.bfloat16, CUDA)
    out = attention(*qkv, cu_seqlens, max(LENGTHS), backend=backend, lengths=LENGTHS)
    truth = formula(*qkv)
    direction = torch.randn_like(out)
    found = (out, *torch.autograd.grad((out * direction).sum(), qkv))
    expected = (truth, *torch.autograd.grad((truth * direction).sum(), qkv))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other.double()).norm() <= 2e-2 * other.double().norm()


@pytest.mark.parametrize(
    ("backend", "device", "dtype", "capability", "missing"),
    [
        ("sdpa", CPU, torch.float32, None, None),
        ("flash2", CPU, torch.bfloat16, None, "needs a CUDA device"),
        ("flash3", CUDA, torch.bfloat16, (9, 0), "flash_attn_interface is not installed"),
        ("xformers", CUDA, torch.bfloat16, (9, 0), "xformers is not installed"),
        ("torch", CUDA, torch.float32, (9, 0), "needs float16 or bfloat16"),
        ("torch", CUDA, torch.bfloat16, (7, 5), "needs compute capability 8.0 or newer"),
        ("torch", CUDA, torch.bfloat16, (9, 0), None),
    ],
)
def test_a_missing_backend_is_explained(monkeypatch, backend, device, dtype, capability, missing):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    if missing and missing.endswith("is not installed"):
        monkeypatch.setattr(attention_kernels, "find_spec", lambda _: None)
    assert available(backend, device, dtype) == missing


def test_flash_attention_3_wants_exactly_hopper(monkeypatch):
    monkeypatch.setattr(attention_kernels, "find_spec", lambda _: object())
    monkeypatch.setattr(attention_kernels, "import_module", lambda _: object())
    for capability, missing in (((9, 0), None), ((10, 0), "needs compute capability 9.0")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert available("flash3", CUDA, torch.bfloat16) == missing


def test_a_broken_package_is_skipped_by_auto_and_refused_by_name(monkeypatch, tmp_path):
    """Built for another PyTorch, as packages with compiled kernels often are."""
    (tmp_path / "flash_attn.py").write_text(
        "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    words = "flash_attn is installed and cannot be imported: flash_attn_2_cuda.so: undefined symbol: _ZN3"
    backend, reason = choose("auto", CUDA, torch.bfloat16)
    assert backend == "torch" and words in reason
    with pytest.raises(ValueError, match=words):
        choose("flash2", CUDA, torch.bfloat16)


def test_auto_takes_the_first_backend_that_can_run_and_says_why_not_the_others(monkeypatch):
    missing = {"flash3": "is missing", "flash2": "is missing too"}
    monkeypatch.setattr(attention_kernels, "available", lambda backend, *_: missing.get(backend))
    backend, reason = choose("auto", CUDA, torch.bfloat16)
    assert backend == "torch"
    assert reason == "first that can run here; flash3 is missing; flash2 is missing too"


def test_on_a_cpu_auto_is_tiled():
    backend, reason = choose("auto", CPU, torch.float32)
    assert backend == "tiled" and "flash2 needs a CUDA device" in reason
    assert available("tiled", CUDA, torch.float32) == "is for a CPU"


def test_a_named_backend_is_used_or_refused():
    assert choose("sdpa", CPU, torch.float32) == ("sdpa", "named in the config")
    with pytest.raises(ValueError, match="'torch' cannot run on cpu in torch.float32: needs a CUDA"):
        choose("torch", CPU, torch.float32)
    with pytest.raises(ValueError, match="'best' is not one of auto, flash3, flash2"):
        choose("best", CPU, torch.float32)


@pytest.mark.parametrize("head_dim", [8, 6], ids=lambda head_dim: f"{head_dim} lanes")
def test_heads_that_a_fused_kernel_would_misread_are_refused(monkeypatch, head_dim):
    """Six lanes in half precision are 12 bytes: the second head does not begin at a multiple of 16."""
    monkeypatch.setitem(attention_kernels._BACKENDS, "flash2", lambda q_TND, *_: q_TND)
    q = torch.zeros(4, 2, head_dim, dtype=torch.float16)
    bounds = torch.tensor([0, 4], dtype=torch.int32)
    if head_dim == 8:
        assert attention(q, q, q, bounds, 4, backend="flash2") is q
        q = torch.zeros(4 * 2 * 8 + 1, dtype=torch.float16)[1:].view(4, 2, 8)  # begins at 2
    with pytest.raises(ValueError, match="q_TND must have heads that begin at multiples of 16 bytes"):
        attention(q, q, q, bounds, 4, backend="flash2")
    assert attention(q, q, q, bounds, 4, backend="sdpa", lengths=[4]).shape == q.shape
