"""A whole step at the size of an 8B model's layers, on one GPU and over eight, on tensors without memory.

All that a GPU would be given is issued: FSDP's collectives, the Triton kernels (which nobody runs), autograd and
the optimizer. What the host would have to wait for raises, and what would be held is counted.
"""

import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

import torch.distributed as dist
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from triton.runtime import interpreter

from fastling import ops
from fastling.config import Config, Model, Parallel, Train
from fastling.data.batches import Batch, Step
from fastling.kernels import attention as attention_kernels
from fastling.kernels import linear as linear_kernels
from fastling.kernels import linear_cross_entropy as loss_kernels
from fastling.kernels import runtime
from fastling.model.llama import Llama, is_sharded
from fastling.model.llama_config import LlamaConfig
from fastling.training import parallel
from fastling.training.footprint import GIB, footprint
from fastling.training.optimizer import make_optimizer
from fastling.training.parallel import World
from fastling.training.update import Updater

LLAMA_3 = LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=5, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=8192,
)  # fmt: skip
LLAMA_3_2 = replace(
    LLAMA_3, hidden_size=2048, intermediate_size=8192, tie_word_embeddings=True, vocab_size=128256
)
CPU, GPU_BYTES = torch.device("cpu"), 80 * GIB


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors that are there, and the most that there were."""

    def __init__(self, model: Llama, optimizer: torch.optim.Optimizer):
        super().__init__()
        self.storages, self.most = {}, 0
        moments = (each for state in optimizer.state.values() for each in state.values())
        for tensor in (*model.parameters(), *moments):
            self.see(tensor)

    def see(self, tensor: torch.Tensor) -> None:
        storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
        self.storages[storage._cdata] = weakref.ref(storage)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        for each in tree_iter((arguments, options, out)):
            if isinstance(each, torch.Tensor):
                self.see(each)
        there = [storage for reference in self.storages.values() if (storage := reference()) is not None]
        self.storages = {storage._cdata: weakref.ref(storage) for storage in there}
        self.most = max(self.most, sum(storage.nbytes() for storage in there))  # FSDP empties them in place
        return out


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Kernels are launched and do nothing; attention and the loss ask for what they ask for on a GPU."""
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda *_, **__: None)
    monkeypatch.setitem(attention_kernels._BACKENDS, "sdpa", attention_kernels._BACKENDS["torch"])
    monkeypatch.setattr(loss_kernels, "_product_into", lambda *_: None)
    for kernels in (loss_kernels, linear_kernels):
        monkeypatch.setattr(kernels, "add_product_float32", lambda *_, **__: None)
    monkeypatch.setattr(loss_kernels, "_default_chunk_bytes", chunk_bytes_on_a_gpu)
    monkeypatch.setattr(runtime, "lacks_products", lambda *_: False)
    ops.configure("triton", "sdpa")
    yield
    ops.configure()
    if dist.is_initialized():
        dist.destroy_process_group()


def chunk_bytes_on_a_gpu(hidden_SH, weight_VH, needs_weight, logits_dtype) -> int:
    sizes = (len(hidden_SH), len(weight_VH), hidden_SH.shape[1])
    return loss_kernels.gpu_chunk_bytes(GPU_BYTES, *sizes, hidden_SH.dtype, needs_weight, logits_dtype)


def make_batch(tokens: int, supervised: int, documents: int = 8) -> Batch:
    """What it says does not matter, only how much."""
    tokens_T, rows_S = torch.zeros(tokens, dtype=torch.int64), torch.zeros(supervised, dtype=torch.int64)
    length = tokens // documents
    return Batch(
        tokens_T, tokens_T, tokens_T.int(), torch.zeros(documents + 1, dtype=torch.int32), length,
        [length] * documents, rows_S, rows_S.float(), rows_S, rows_S,
    )  # fmt: skip


def give_memory(model: Llama) -> Llama:
    """As `to_empty`, which cannot exchange fake tensors that nothing has sharded."""
    if is_sharded(model):
        return model.to_empty(device=CPU)
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            empty = torch.empty_like(tensor, device=CPU)
            setattr(module, name, nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty)
    return model


def most_held(config: Config, shape: LlamaConfig, gpus: int, make_step: Callable[[], Step]) -> int:
    """Bytes, in the second of two steps: in the first one moments are made."""
    dist.init_process_group("fake", rank=0, world_size=gpus, store=FakeStore())
    world = World(0, gpus, CPU, parallel._mesh(config, CPU))
    with FakeTensorMode():
        step = make_step()
        model = give_memory(parallel.shard(Llama.on_meta(shape), config, world))
        updater = Updater(config, world, model, make_optimizer(model, config.optimizer), 1, num_steps=2)
        updater.update(step, 1)
        with Held(model, updater.optimizer) as held:
            updater.update(step, 2)
    return held.most


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("shape", "gpus", "tokens", "micro_batches", "settings"),
    [
        slow(LLAMA_3, 8, 4096, 1, {}),
        slow(LLAMA_3, 8, 65536, 2, {"activation_checkpointing": "selective"}),
        slow(LLAMA_3, 8, 4096, 2, {"shard": "gradients"}),
        slow(LLAMA_3, 8, 65536, 1, {"replicate": 2, "activation_checkpointing": "full"}),
        (LLAMA_3, 8, 4096, 1, {"precision": "fp32"}),
        (LLAMA_3, 1, 4096, 1, {"activation_checkpointing": "full"}),
        slow(LLAMA_3, 1, 65536, 1, {}),
        slow(LLAMA_3, 1, 65536, 2, {"activation_checkpointing": "full"}),
        slow(LLAMA_3, 1, 4096, 2, {"precision": "fp32"}),
        slow(LLAMA_3_2, 1, 4096, 2, {}),
        slow(LLAMA_3_2, 1, 65536, 2, {"activation_checkpointing": "full"}),
        slow(LLAMA_3_2, 8, 65536, 1, {}),
        slow(LLAMA_3_2, 8, 4096, 2, {"activation_checkpointing": "full"}),
        (LLAMA_3_2, 1, 4096, 1, {"activation_checkpointing": "selective"}),
    ],
)
def test_a_step_never_syncs_and_holds_the_planned_tensors(shape, gpus, tokens, micro_batches, settings):
    config = make_config(**settings)
    supervised = tokens * 2 // 5
    planned = footprint(
        config, shape, shards=gpus // config.parallel.replicate, tokens=tokens, supervised=supervised,
        micro_batches=micro_batches, gpu_memory=GPU_BYTES,
    )  # fmt: skip

    def make_step() -> Step:
        batches = [make_batch(tokens, supervised) for _ in range(micro_batches)]
        return Step(batches, tokens, supervised, packs=1, squared_tokens=1)

    held = most_held(config, shape, gpus, make_step)
    assert 0.999 < planned.counted / held < 1.05, planned.parts


def make_config(shard: str = "full", replicate: int = 1, **train) -> Config:
    train = Train(**{"precision": "bf16", **train})
    return Config(train=train, parallel=Parallel(shard=shard, replicate=replicate), model=Model())


def test_the_check_would_notice_an_item_call():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.zeros(()).item()
