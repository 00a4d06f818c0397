"""The rotary tables of a model: cos and sin (P, D/2), with LLaMA 3's and linear scaling.

Shapes: P positions, D head dim.
"""

import math

import torch
from torch import Tensor

from fastling.model.llama_config import LlamaConfig


def rotary_tables(config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """Return cos and sin, (P, D/2) float32 on the CPU, as transformers computes them."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
    frequencies = 1.0 / config.rope_theta ** (exponents / config.head_dim)
    if config.rope_scaling is not None:
        frequencies = _scaled_frequencies(frequencies, config.rope_scaling)
    positions = torch.arange(config.max_position_embeddings, dtype=torch.float32, device="cpu")
    angles = torch.outer(positions, frequencies)
    return angles.cos(), angles.sin()


def _scaled_frequencies(frequencies: Tensor, scaling: dict) -> Tensor:
    factor = scaling["factor"]
    if scaling["rope_type"] == "linear":
        return frequencies / factor
    # llama3: long waves are stretched by `factor`, short ones kept, those between interpolated.
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves_in_context = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((waves_in_context - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / factor
