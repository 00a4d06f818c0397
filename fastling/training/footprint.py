"""What a training run holds in the memory of each GPU, by arithmetic; nothing here has met a GPU yet.

Weights, gradients and two moments are float32 and sharded. What is gathered, kept for backward or waiting to
be reduced comes and goes: of the three points of a step at which most of it is there, the fullest counts.
"""

import os
from dataclasses import dataclass, replace

import torch

from fastling.config import Config
from fastling.errors import UserError
from fastling.kernels import runtime
from fastling.kernels.linear_cross_entropy import GPU_CHUNK_BYTES, GPU_MEMORY_SHARE
from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig

GIB = 2**30
KEPT_BYTES = 16
"""Of a weight when it is updated: itself, its gradient and two moments, in float32."""
GATHERED_LAYERS = 2
"""The one at work and the one after it; likewise for gradients on their way."""
OTHER_BYTES = 2 * GIB
"""CUDA, NCCL and cuBLAS: assumed."""
OTHER_SHARE = 0.05
"""Gaps in the allocator's blocks: assumed, of all the rest."""
ASSUMED = "CUDA, NCCL, gaps (assumed)"


@dataclass(frozen=True)
class Footprint:
    """Bytes of each part at the fullest point of a step."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def counted(self) -> int:
        """Without what is assumed: in less it cannot fit."""
        return self.total - self.parts[ASSUMED]


@dataclass(frozen=True)
class Weights:
    """How many a model has."""

    layer: int
    """Of one layer."""
    rest: int
    """Embedding, last norm, and the head where it is not the embedding."""
    total: int

    @classmethod
    def of(cls, shape: LlamaConfig) -> "Weights":
        model = Llama.on_meta(replace(shape, num_hidden_layers=1))
        layer = sum(each.numel() for each in model.model.layers.parameters())
        rest = sum(each.numel() for each in model.parameters()) - layer
        return cls(layer, rest, rest + layer * shape.num_hidden_layers)


def kept_by_layer(shape: LlamaConfig, value_bytes: int) -> int:
    """Bytes a token that a layer's forward keeps for its backward, through the Triton kernels.

    Two norms each keep input and output; attention its queries, keys, values and output; the MLP gate, up and
    their product. Float32: a norm's inverse root mean square, attention's log-sum-exp of each head.
    """
    heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
    values = 4 * shape.hidden_size + (2 * heads + 2 * kv_heads) * shape.head_dim + 3 * shape.intermediate_size
    float32 = 2 + heads
    if shape.qk_norm:  # the heads before their norm as well, and a root of each
        values += (heads + kv_heads) * shape.head_dim
        float32 += heads + kv_heads
    return values * value_bytes + float32 * 4


def footprint(
    config: Config, shape: LlamaConfig, *, shards: int, tokens: int, supervised: int, gpu_memory: int
) -> Footprint:
    """Of a micro-batch of so many tokens, with each model sharded over `shards` GPUs of so many bytes.

    `supervised` of them are trained on: in the micro-batch with the most of them.
    """
    weights, value_bytes = Weights.of(shape), 4 if config.train.precision == "fp32" else 2
    keeps_weights = config.parallel.shard == "gradients"
    gathered_layers = shape.num_hidden_layers if keeps_weights else GATHERED_LAYERS
    recomputed = {"none": 0, "selective": -(-shape.num_hidden_layers // 2), "full": shape.num_hidden_layers}
    recomputed_layers = recomputed[config.train.activation_checkpointing]
    of_layer = kept_by_layer(shape, value_bytes) * tokens
    inputs = recomputed_layers * shape.hidden_size * value_bytes * tokens
    activations = (shape.num_hidden_layers - recomputed_layers) * of_layer + inputs
    head = shape.vocab_size * shape.hidden_size
    head_gradient = value_bytes * head
    # Beside half-precision gradients lie float32 logits, and a float32 total unless all rows fit at once.
    of_logits, of_total = (4, 0) if value_bytes == 4 else (6, 4 * head)
    most = min(GPU_CHUNK_BYTES, gpu_memory // GPU_MEMORY_SHARE) + of_total
    logits = min(most, of_logits * supervised * shape.vocab_size)
    on_its_way = (value_bytes + 4) * weights.layer * GATHERED_LAYERS
    points = (
        {"activations": activations, "head and loss": logits + head_gradient},
        {
            "activations": activations + (of_layer if recomputed_layers else 0),
            "gradients not yet reduced": head_gradient + on_its_way,
        },
        {"gradients not yet reduced": (value_bytes + 4) * weights.rest},
    )
    parts = {
        "weights, gradients, moments": KEPT_BYTES * -(-weights.total // shards),
        "gathered weights": value_bytes * (weights.rest + gathered_layers * weights.layer),
        **max(points, key=lambda point: sum(point.values())),
    }
    parts[ASSUMED] = OTHER_BYTES + round(OTHER_SHARE * sum(parts.values()))
    return Footprint(parts)


def check_memory(shape: LlamaConfig, shards: int, device: torch.device) -> None:
    """Raise UserError where not even weights, gradients and moments fit; a CPU's swap does not count."""
    needed = KEPT_BYTES * -(-Weights.of(shape).total // shards)
    if device.type == "cuda":
        holder, there = "each GPU", runtime.total_memory(device)
    else:
        holder, there = "this machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        needed *= int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes that share it
    if needed > there:
        takes, has = f"{needed / GIB:,.1f} GiB", f"{there / GIB:,.1f}"
        what = f"weights, gradients and moments take {takes}, and {holder} has {has}"
        raise UserError("model", what, "`fastling plan` shows how many GPUs it takes.")
