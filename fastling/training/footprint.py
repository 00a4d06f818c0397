"""How much memory a training run needs on each GPU, by arithmetic; it has not been compared with a GPU yet.

Weights, two moments and, at the end of a step, gradients are float32 and sharded. In addition there are
gathered weights, activations kept for the backward, and gradients being reduced. These come and go, so every
point of a step where their sum may peak is counted, and the largest sum is the result.
tests/training/test_whole_step.py compares it with what steps allocate, on tensors without memory.
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
"""Bytes kept of a weight between steps: the weight and two moments, in float32."""
GRADIENT_BYTES = 4
"""Bytes of its gradient, while gradients of micro-batches are added up and during the update."""
OTHER_BYTES = 2 * GIB
"""Assumed for CUDA, NCCL and cuBLAS."""
OTHER_SHARE = 0.05
"""Assumed for gaps in the allocator's blocks, as a share of all that is counted."""
ASSUMED = "CUDA, NCCL, gaps (assumed)"


@dataclass(frozen=True)
class Footprint:
    """Bytes of each part at the fullest point of a step."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())

    @property
    def counted(self) -> int:
        """Bytes without the assumed ones: the run cannot fit into less memory."""
        return self.total - self.parts[ASSUMED]


@dataclass(frozen=True)
class Weights:
    """Numbers of weights of a model."""

    layer: int
    """In one layer."""
    rest: int
    """In the embedding, the last norm, and the head if it is not the embedding."""
    total: int

    @classmethod
    def of(cls, shape: LlamaConfig) -> "Weights":
        """Count the weights of a model of this shape."""
        model = Llama.on_meta(replace(shape, num_hidden_layers=1))
        layer = sum(each.numel() for each in model.model.layers.parameters())
        rest = sum(each.numel() for each in model.parameters()) - layer
        return cls(layer, rest, rest + layer * shape.num_hidden_layers)


def kept_by_layer(shape: LlamaConfig, value_bytes: int, tokens: int, wanted: int | None = None) -> int:
    """Bytes that a layer's forward on `tokens` tokens keeps for its backward, with the Triton kernels.

    Each of the two norms keeps its input and output; attention its queries, keys, values and output; the MLP
    gate, up and their product. In float32 there are each norm's inverse root mean square and attention's
    log-sum-exp of each head. In the last layer only the `wanted` rows go on after attention, and attention's
    output is kept once more for them.
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
    """Bytes of gradients in a layer's backward at its fullest point, when SwiGLU's gradient is computed.

    These are the gradients of gate and up and, twice, that of the residual stream; the gradient of the
    product of gate and up takes that product's place.
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
    """The memory of a micro-batch of `tokens` tokens, with each copy of the model sharded over `shards` GPUs.

    `supervised` is the largest number of supervised tokens in a micro-batch, `micro_batches` the number of
    micro-batches of each GPU in a step, and `gpu_memory` the bytes of a GPU.
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
    """Bytes, by part, at each point of a micro-batch that may be the fullest; without weights and moments."""

    config: Config
    shape: LlamaConfig
    weights: Weights
    shards: int
    tokens: int
    supervised: int
    adds_up: bool
    """Whether gradients of earlier micro-batches of the step are there as well."""
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
        """Number of weights of the head, and of the embedding."""
        return self.shape.vocab_size * self.shape.hidden_size

    def at_loss(self) -> dict[str, int]:
        # The last norm's input and output, and its gradient.
        rows = 3 * self.supervised * self.shape.hidden_size
        logits = head_and_loss(self.shape, self.value_bytes, self.supervised, self.gpu_memory)
        return {
            **self.gradients(0),
            "activations": self.kept_before(self.last + 1),
            "head and loss": logits + self.value_bytes * (self.head + rows),
        }

    def gradients(self, layers: int, more: int = 0) -> dict[str, int]:
        """Bytes of gradients when those of `layers` layers are done, with `more` bytes of others."""
        there = self.weights.total if self.adds_up else layers * self.weights.layer
        return {"gradients": GRADIENT_BYTES * there // self.shards + more}

    def working_in(self, layer: int) -> int:
        rows = self.supervised if layer == self.last else self.tokens
        return working_in_layer(self.shape, self.value_bytes, rows)

    def whole(self, layer: int) -> int:
        """Bytes of activations of a layer that is not recomputed, or has just been recomputed."""
        wanted = self.supervised if layer == self.last else None
        return kept_by_layer(self.shape, self.value_bytes, self.tokens, wanted)

    def kept_before(self, layer: int) -> int:
        """Bytes of activations that the layers before this one keep until their backward."""
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
        """When SwiGLU's gradient is computed, and when all gradients of the layer are copied into float32."""
        of_head = self.value_bytes * self.head
        # Those of the layer whose backward came before are being reduced, and down_proj's is computed.
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
        """When its gradient is computed, when it is copied into float32, and when it is reduced."""
        # The head's gradient is there, too; if head and embedding are one weight, so is their sum.
        of_both = (3 if self.shape.tie_word_embeddings else 2) * self.value_bytes * self.head
        layers, rest = self.last + 1, self.weights.rest
        yield self.gathered(0) | self.gradients(layers, 4 * self.weights.layer + of_both)
        yield self.gradients(layers, (self.value_bytes + 4) * rest)
        yield self.gradients(layers, 4 * rest + GRADIENT_BYTES * rest // self.shards)

    def gathered(self, layers: int) -> dict[str, int]:
        return {"gathered weights": self.value_bytes * (self.weights.rest + layers * self.weights.layer)}

    def gathered_by(self, layer: int) -> int:
        """Number of layers whose gathered weights are there during the backward of this one: it and the one
        whose backward comes next; or, if gathered weights are kept, all whose backward is still to come, and
        one more."""
        return layer + 2 if self.config.parallel.shard == "gradients" else min(layer + 1, 2)


class _Alone(_MicroBatch):
    """Without FSDP: each weight is rounded to bf16 only for its product, and gradients are always float32."""

    def at_loss(self) -> dict[str, int]:
        return {**self.rounded(self.head), **super().at_loss()}

    def in_backward_of(self, layer: int) -> Iterator[dict[str, int]]:
        """When SwiGLU's gradient is computed, and when the weight of gate and up is rounded after that."""
        matrix = self.shape.hidden_size * self.shape.intermediate_size
        # The head's gradient waits for the embedding's if they are one weight; else it is added up.
        of_head = 0 if self.adds_up and not self.shape.tie_word_embeddings else self.head
        down = 0 if self.adds_up else matrix
        done = self.gradients(self.last - layer, GRADIENT_BYTES * (of_head + down))
        there = self.kept_before(layer) + self.whole(layer) + self.working_in(layer)
        yield {**done, "activations": there}
        rows = self.supervised if layer == self.last else self.tokens
        gate_and_up = 2 * self.shape.intermediate_size * self.value_bytes * rows
        yield {**self.rounded(2 * matrix), **done, "activations": there - gate_and_up}

    def at_embedding(self) -> Iterator[dict[str, int]]:
        """When the embedding's gradient is computed: in a tensor of its own, before it is added."""
        # If the head is the same weight, there are the head's gradient and the sum of the two as well.
        of_both = 3 if self.shape.tie_word_embeddings else 1 + (not self.adds_up)
        of_rows = (self.value_bytes + GRADIENT_BYTES) * self.tokens * self.shape.hidden_size
        yield self.gradients(self.last + 1, of_both * GRADIENT_BYTES * self.head + of_rows)

    def rounded(self, values: int) -> dict[str, int]:
        return {"rounded weights": self.value_bytes * values if self.value_bytes < 4 else 0}


def head_and_loss(shape: LlamaConfig, value_bytes: int, supervised: int, gpu_memory: int) -> int:
    """Bytes that the loss of `supervised` rows takes, without the gradient of the head's weight."""
    # In half precision: gradients beside float32 logits, and a float32 sum unless all rows fit at once.
    of_logits, of_total = (4, 0) if value_bytes == 4 else (6, 4 * shape.vocab_size * shape.hidden_size)
    most = min(GPU_CHUNK_BYTES, gpu_memory // GPU_MEMORY_SHARE) + of_total
    return min(most, of_logits * supervised * shape.vocab_size)


def check_memory(shape: LlamaConfig, shards: int, device: torch.device) -> None:
    """Raise UserError if not even weights, gradients and moments fit; swap does not count as memory."""
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
