"""Run by test_generation.py under torchrun: ranks with different prompts generate from one sharded model."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fastling.errors import leave
from fastling.model.decoding import Decoding
from fastling.model.generation import generate, stream
from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=67,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    initializer_range=0.3,
    max_position_embeddings=64,
)
PROMPTS = [[[5, 9, 2], [11], [3, 4, 5, 6, 7, 8]], []]


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    whole, model = Llama(CONFIG), Llama(CONFIG)
    model.load_state_dict(whole.state_dict())
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("shard",))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for prompts in (PROMPTS[rank], PROMPTS[1 - rank], [[rank + 1] * (7 * rank + 1)]):
        for decoding in (Decoding(max_new_tokens=5 + rank), Decoding(max_new_tokens=5, beams=2)):
            said = generate(model, prompts, decoding, stop_ids={30}, cache_bytes=1)
            assert said == generate(whole, prompts, decoding, stop_ids={30})
    decoding = Decoding(max_new_tokens=3 + 2 * rank)
    assert list(stream(model, [7], decoding, stop_ids=set())) == list(
        stream(whole, [7], decoding, stop_ids=set())
    )
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    print("as one process says", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    leave(0)
