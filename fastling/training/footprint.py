"""What a training run holds in the memory of each GPU, by arithmetic; nothing here has met a GPU yet.

Weights, two moments and, in the end, gradients are float32 and sharded. What is gathered, kept for backward
or on its way to be reduced comes and goes: of the points at which most of it is there, the fullest counts.
tests/training/test_whole_step.py counts the same as steps allocate it, on tensors without memory.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from fastling.config import Config
from fastling.errors import UserError
from fastling.kernels import runtime
from fastling.kernels.linear_cross_entropy import GPU_CHUNK_BYTES, GPU_MEMORY_SHARE
from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig
from fastling.training.parallel import is_alone, recomputes

GIB = 2**30
KEPT_BYTES = 12
"""Of a weight between steps: itself and two moments, in float32."""
GRADIENT_BYTES = 4
"""Beside it where gradients of micro-batches add up, and when it is updated."""
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


def kept_by_layer(shape: LlamaConfig, value_bytes: int, tokens: int, wanted: int | None = None) -> int:
    """Bytes that a layer's forward on so many tokens keeps for its backward, through the Triton kernels.

    Two norms each keep input and output; attention its queries, keys, values and output; the MLP gate, up and
    their product. Float32: a norm's inverse root mean square, attention's log-sum-exp of each head. In the
    last layer only the `wanted` rows go on after attention, whose output is then kept of those as well.
    """
    heads, kv_heads, head_dim = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    values = 2 * shape.hidden_size + 2 * (heads + kv_heads) * head_dim
    float32 = 1 + heads
    if shape.qk_norm:  # the heads before their norm as well, and a root of each
        values += (heads + kv_heads) * head_dim
        float32 += heads + kv_heads
    later = 2 * shape.hidden_size + 3 * shape.intermediate_size + (0 if wanted is None else heads * head_dim)
    rows = tokens if wanted is None else wanted
    return tokens * (values * value_bytes + float32 * 4) + rows * (later * value_bytes + 4)


def working_in_layer(shape: LlamaConfig, value_bytes: int, rows: int) -> int:
    """Bytes that come and go in a layer's backward, at its fullest, when SwiGLU's gradient is formed.

    The gradients of gate, up and, twice, of the residual stream; that of their product takes its place.
    """
    return 2 * (shape.intermediate_size + shape.hidden_size) * value_bytes * rows


def footprint(
    config: Config,
    shape: LlamaConfig,
    *,
    shards: int,
    tokens: int,
    supervised: int,
    micro_batches: int,
    gpu_memory: int,
) -> Footprint:
    """Of a micro-batch of so many tokens, with each model sharded over `shards` GPUs of so many bytes.

    `supervised` of them are trained on: in the micro-batch with the most of them. A step of each GPU has so
    many `micro_batches`.
    """
    kind = _Alone if is_alone(config, shards * config.parallel.replicate) else _Sharded
    adds_up = micro_batches > 1
    there = kind(config, shape, Weights.of(shape), shards, tokens, supervised, adds_up, gpu_memory)
    fullest = max(there.points(), key=lambda point: sum(point.values()))
    parts = {"weights and moments": KEPT_BYTES * -(-there.weights.total // shards), **fullest}
    parts[ASSUMED] = OTHER_BYTES + round(OTHER_SHARE * sum(parts.values()))
    return Footprint(parts)


@dataclass(frozen=True)
class _MicroBatch:
    """What there is at each point of a micro-batch, beside weights and moments."""

    config: Config
    shape: LlamaConfig
    weights: Weights
    shards: int
    tokens: int
    supervised: int
    adds_up: bool
    """Whether gradients of other micro-batches are there."""
    gpu_memory: int

    def points(self) -> Iterator[dict[str, int]]:
        yield self.at_loss()
        for layer in range(self.last + 1):
            yield from self.in_backward_of(layer)
        yield from self.at_embedding()

    @property
    def last(self) -> int:
        return self.shape.num_hidden_layers - 1

    @property
    def value_bytes(self) -> int:
        return 4 if self.config.train.precision == "fp32" else 2

    @property
    def head(self) -> int:
        """Values of the head, or of the embedding."""
        return self.shape.vocab_size * self.shape.hidden_size

    def at_loss(self) -> dict[str, int]:
        # The last norm's input and output, and the gradient that is formed of them.
        rows = 3 * self.supervised * self.shape.hidden_size
        logits = head_and_loss(self.shape, self.value_bytes, self.supervised, self.gpu_memory)
        return {
            **self.gradients(0),
            "activations": self.kept_before(self.last + 1),
            "head and loss": logits + self.value_bytes * (self.head + rows),
        }

    def gradients(self, layers: int, more: int = 0) -> dict[str, int]:
        """With those of so many layers done, and more bytes on their way."""
        there = self.weights.total if self.adds_up else layers * self.weights.layer
        return {"gradients": GRADIENT_BYTES * there // self.shards + more}

    def working_in(self, layer: int) -> int:
        rows = self.supervised if layer == self.last else self.tokens
        return working_in_layer(self.shape, self.value_bytes, rows)

    def whole(self, layer: int) -> int:
        """Activations of a layer when it is not recomputed, or has been."""
        wanted = self.supervised if layer == self.last else None
        return kept_by_layer(self.shape, self.value_bytes, self.tokens, wanted)

    def kept_before(self, layer: int) -> int:
        """Activations of the layers before it, until their backward."""
        return sum(map(self._kept_of, range(layer)))

    def _kept_of(self, layer: int) -> int:
        if recomputes(self.config.train.activation_checkpointing, layer):
            return self.shape.hidden_size * self.value_bytes * self.tokens
        return self.whole(layer)


class _Sharded(_MicroBatch):
    """With FSDP: weights are gathered, and gradients leave layer by layer, in float32."""

    def at_loss(self) -> dict[str, int]:
        return {**self.gathered(self.gathered_by(self.last)), **super().at_loss()}

    def in_backward_of(self, layer: int) -> Iterator[dict[str, int]]:
        """When SwiGLU's gradient is formed, and when all of the layer's are copied into float32."""
        of_head = self.value_bytes * self.head
        # On their way are those of the layer that came before, and down_proj's.
        before = 4 * self.weights.layer if layer < self.last else 0
        down = self.value_bytes * self.shape.hidden_size * self.shape.intermediate_size
        yield {
            **self.gathered(self.gathered_by(layer)),
            **self.gradients(self.last - layer, before + down + of_head),
            "activations": self.kept_before(layer) + self.whole(layer) + self.working_in(layer),
        }
        copied = (self.value_bytes + 4) * self.weights.layer
        yield {
            **self.gathered(self.gathered_by(layer) - 1),
            **self.gradients(self.last - layer, copied + of_head),
            "activations": self.kept_before(layer),
        }

    def at_embedding(self) -> Iterator[dict[str, int]]:
        """When its gradient is formed, copied into float32, and reduced."""
        # Beside the head's; where they are one weight, their sum is made as well.
        of_both = (3 if self.shape.tie_word_embeddings else 2) * self.value_bytes * self.head
        layers, rest = self.last + 1, self.weights.rest
        yield self.gathered(0) | self.gradients(layers, 4 * self.weights.layer + of_both)
        yield self.gradients(layers, (self.value_bytes + 4) * rest)
        yield self.gradients(layers, 4 * rest + GRADIENT_BYTES * rest // self.shards)

    def gathered(self, layers: int) -> dict[str, int]:
        return {"gathered weights": self.value_bytes * (self.weights.rest + layers * self.weights.layer)}

    def gathered_by(self, layer: int) -> int:
        """Layers that are there whole while one is at work: with it the next, or all that are to come."""
        return layer + 2 if self.config.parallel.shard == "gradients" else min(layer + 1, 2)


class _Alone(_MicroBatch):
    """Without FSDP: a weight is rounded for its product, and gradients are float32 from the first."""

    def at_loss(self) -> dict[str, int]:
        return {**self.rounded(self.head), **super().at_loss()}

    def in_backward_of(self, layer: int) -> Iterator[dict[str, int]]:
        """When SwiGLU's gradient is formed, and when the weight of gate and up is rounded after it."""
        matrix = self.shape.hidden_size * self.shape.intermediate_size
        # The head's waits for the embedding's where they are one weight, and else is among those that add up.
        of_head = 0 if self.adds_up and not self.shape.tie_word_embeddings else self.head
        down = 0 if self.adds_up else matrix
        done = self.gradients(self.last - layer, GRADIENT_BYTES * (of_head + down))
        there = self.kept_before(layer) + self.whole(layer) + self.working_in(layer)
        yield {**done, "activations": there}
        rows = self.supervised if layer == self.last else self.tokens
        gate_and_up = 2 * self.shape.intermediate_size * self.value_bytes * rows
        yield {**self.rounded(2 * matrix), **done, "activations": there - gate_and_up}

    def at_embedding(self) -> Iterator[dict[str, int]]:
        """When its gradient is formed: whole, before it is added."""
        # Where the head is the same weight, its gradient waits for it, and their sum is made.
        of_both = 3 if self.shape.tie_word_embeddings else 1 + (not self.adds_up)
        of_rows = (self.value_bytes + GRADIENT_BYTES) * self.tokens * self.shape.hidden_size
        yield self.gradients(self.last + 1, of_both * GRADIENT_BYTES * self.head + of_rows)

    def rounded(self, values: int) -> dict[str, int]:
        return {"rounded weights": self.value_bytes * values if self.value_bytes < 4 else 0}


def head_and_loss(shape: LlamaConfig, value_bytes: int, supervised: int, gpu_memory: int) -> int:
    """Bytes that the loss of so many rows takes, beside the gradient of the head."""
    # Beside half-precision gradients lie float32 logits, and a float32 total unless all rows fit at once.
    of_logits, of_total = (4, 0) if value_bytes == 4 else (6, 4 * shape.vocab_size * shape.hidden_size)
    most = min(GPU_CHUNK_BYTES, gpu_memory // GPU_MEMORY_SHARE) + of_total
    return min(most, of_logits * supervised * shape.vocab_size)


def check_memory(shape: LlamaConfig, shards: int, device: torch.device) -> None:
    """Raise UserError where not even weights, gradients and moments fit; a CPU's swap does not count."""
    needed = (KEPT_BYTES + GRADIENT_BYTES) * -(-Weights.of(shape).total // shards)
    if device.type == "cuda":
        holder, there = "each GPU", runtime.total_memory(device)
    else:
        holder, there = "this machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        needed *= int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes that share it
    if needed > there:
        takes, has = f"{needed / GIB:,.1f} GiB", f"{there / GIB:,.1f}"
        what = f"weights, gradients and moments take {takes}, and {holder} has {has}"
        raise UserError("model", what, "`fastling plan` shows how many GPUs it takes.")
