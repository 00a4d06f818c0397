"""What a run holds on each GPU: the arithmetic against tensors that are really there."""

import os
from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from fastling import ops
from fastling.config import Config, Model, Train
from fastling.errors import UserError
from fastling.kernels import runtime
from fastling.model.llama import Documents, Layer, Llama
from fastling.model.llama_config import LlamaConfig
from fastling.model.rotary import rotary_tables
from fastling.training.footprint import GIB, GRADIENT_BYTES, Weights, check_memory, footprint, kept_by_layer
from fastling.training.optimizer import make_optimizer

SHAPE = LlamaConfig(
    vocab_size=300, hidden_size=48, intermediate_size=80, num_hidden_layers=5, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
QWEN3 = replace(SHAPE, model_type="qwen3", head_dim=16)
TOKENS = 64
GPU = 80 * GIB


@pytest.fixture
def triton_kernels():
    ops.configure("triton", "tiled")
    yield
    ops.configure()


def bytes_kept(shape: LlamaConfig, dtype: torch.dtype, wanted: int | None) -> int:
    """Of all tensors that autograd holds after a layer's forward, each once, without weights and tables."""
    layer = Layer(shape, 0)
    layer = layer.to_empty(device="cpu").to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.ones_(parameter)
    cos, sin = rotary_tables(shape)
    borders = torch.tensor([0, TOKENS], dtype=torch.int32)
    documents = Documents(torch.arange(TOKENS).int(), borders, TOKENS, [TOKENS], cos, sin)
    rows = None if wanted is None else torch.arange(wanted)
    known = {each.untyped_storage().data_ptr() for each in (*layer.parameters(), *vars(documents).values(), rows)
             if isinstance(each, torch.Tensor)}  # fmt: skip
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hidden = torch.randn(TOKENS, shape.hidden_size).to(dtype).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(hidden, documents, rows)
    assert out.requires_grad
    return sum(kept.values())


@pytest.mark.slow
@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("wanted", [None, 24], ids=["", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [SHAPE, QWEN3], ids=["llama", "qwen3"])
def test_a_layer_saves_as_many_bytes_as_calculated(shape, dtype, wanted):
    assert bytes_kept(shape, dtype, wanted) == kept_by_layer(shape, dtype.itemsize, TOKENS, wanted)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_and_optimizer_are_sixteen_bytes_a_weight(tied):
    shape = replace(SHAPE, tie_word_embeddings=tied)
    model = Llama(shape)
    optimizer = make_optimizer(model, Config().optimizer)
    model.logits(torch.arange(9), torch.tensor([0, 9], dtype=torch.int32)).sum().backward()
    optimizer.step()
    tensors = [*model.parameters(), *(parameter.grad for parameter in model.parameters())]
    tensors += [each for state in optimizer.state.values() for each in state.values() if each.dim()]
    held = sum(each.numel() * each.element_size() for each in tensors)
    assert Weights.of(shape).total == sum(parameter.numel() for parameter in model.parameters())
    parts = footprint_of(shape, tokens=1, supervised=1, micro_batches=2)
    assert parts["weights and moments"] + Weights.of(shape).total * GRADIENT_BYTES == held


def footprint_of(
    shape=SHAPE, gpu_memory=GPU, tokens=TOKENS, micro_batches=1, supervised=None, **train
) -> dict:
    """The parts of it, on one GPU (what is held on several is in test_whole_step.py)."""
    sizes = {"tokens": tokens, "supervised": supervised or tokens // 2, "micro_batches": micro_batches}
    config = Config(train=Train(**train), model=Model())
    return footprint(config, shape, shards=1, gpu_memory=gpu_memory, **sizes).parts


def test_logits_never_exceed_their_byte_budget():
    gradient = 6 * 128_000 * SHAPE.hidden_size  # float32 while groups are summed, and bf16
    of_head = partial(footprint_of, replace(SHAPE, vocab_size=128_000), tokens=2**16)
    part = "head and loss"
    rows = 3 * 2**15 * SHAPE.hidden_size  # around the last norm
    assert of_head()[part] == 2 * GIB + gradient + 2 * rows
    assert of_head(gpu_memory=16 * GIB)[part] == GIB // 2 + gradient + 2 * rows
    in_float32 = 4 * 128_000 * SHAPE.hidden_size  # which is its own total
    assert of_head(precision="fp32")[part] == 2 * GIB + in_float32 + 4 * rows


@pytest.mark.parametrize(("precision", "weight", "logit"), [("bf16", 2, 6), ("fp32", 4, 4)])
def test_few_rows_need_only_their_own_logits(precision, weight, logit):
    """Float32 logits beside their bf16 gradient, or under it where that is float32; and no total."""
    found = footprint_of(replace(SHAPE, vocab_size=128_000), tokens=1024, precision=precision)
    around = 3 * 512 * SHAPE.hidden_size
    assert found["head and loss"] == weight * (128_000 * SHAPE.hidden_size + around) + logit * 512 * 128_000


def test_a_gpu_too_small_for_its_share_of_the_weights_is_refused(monkeypatch):
    llama = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32,
    )  # fmt: skip
    share, gpu = 16 * 6_738_415_616 // 4, torch.device("cuda", 0)  # LLaMA-7B's weights, over four
    monkeypatch.setattr(runtime, "total_memory", lambda device: share)
    check_memory(llama, 4, gpu)
    with pytest.raises(UserError, match="model: weights, .* take 33.5 GiB, and each GPU has 25.1"):
        check_memory(llama, 3, gpu)


def test_processes_on_a_cpu_share_its_memory(monkeypatch):
    memory = {"SC_PAGE_SIZE": 16, "SC_PHYS_PAGES": Weights.of(SHAPE).total}
    monkeypatch.setattr(os, "sysconf", memory.get)
    check_memory(SHAPE, 1, torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="this machine has"):
        check_memory(SHAPE, 1, torch.device("cpu"))
