"""The arithmetic of a step in FLOPs, and the peak rate of a device (P14)."""

import torch
from torch import nn

from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig

# Dense bf16 matrix rate in FLOP/s, without sparsity, from NVIDIA's data sheets, by a part of the GPU's name.
# The first that matches counts, so variants with a rate of their own come before the general name.
PEAK_FLOPS = {
    "H100 PCIe": 7.56e14, "H100 NVL": 8.35e14, "H200 NVL": 8.35e14, "H100": 9.89e14, "H200": 9.89e14,
    "GB200": 2.5e15, "B200": 2.25e15, "A100": 3.12e14, "L40S": 3.62e14,
}  # fmt: skip


class Work:
    """FLOPs of a step, forward and backward, without recomputation.

    A weight matrix of n elements costs 6 n for each token; the head, and in the last layer all that follows
    attention, only for each supervised token. Causal attention costs 12 * heads * head_dim in each layer for
    each pair of tokens that see each other; a document of n tokens has about n^2 / 2 such pairs. The usual
    count takes all matrices for all tokens, and attention as if every token saw a whole sequence.
    """

    def __init__(self, config: LlamaConfig):
        layers = Llama.on_meta(config).model.layers
        last = layers[-1]
        self.head_weights = config.vocab_size * config.hidden_size
        self.layer_weights = _in_matrices(layers)
        self.last_weights = _in_matrices(last.self_attn.o_proj) + _in_matrices(last.mlp)
        self.attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim

    def needed(self, tokens: int, supervised_tokens: int, squared_tokens: int) -> float:
        """FLOPs that a step needs; `squared_tokens` is the sum of its documents' squared lengths."""
        return (
            6.0 * (self.layer_weights - self.last_weights) * tokens
            + 6.0 * (self.head_weights + self.last_weights) * supervised_tokens
            + self.attention * squared_tokens / 2
        )

    def usual_count(self, tokens: int, sequence_length: int) -> float:
        """FLOPs of a step as they are usually counted, which are more."""
        per_token = 6.0 * (self.layer_weights + self.head_weights) + self.attention * sequence_length
        return per_token * tokens


def _in_matrices(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)


def peak_flops(device: torch.device) -> float | None:
    """The device's bf16 matrix rate in FLOP/s; None if it is not known (a CPU, or a GPU not in the list)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in PEAK_FLOPS.items() if part in name), None)
