"""A fixed order of additions on a GPU, so that a resumed run repeats its results bit for bit (P10).

By default FlashAttention's backward adds up the gradients of queries with atomics, in varying order.
Everything else in a step adds in a fixed order anyway, and so does cuBLAS when PyTorch asks for it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastling import ops

CAN_ADD_IN_ONE_ORDER = ("flash3", "flash2", "torch")
"""Attention backends with a fixed order. PyTorch refuses the backward of all others when asked for one."""


def prepare_device() -> None:
    """Set the workspace that cuBLAS needs for a fixed order (Hopper's default). Call before CUDA starts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def one_order(wanted: bool, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Make forward and backward in the block add in a fixed order, if `wanted`, on a GPU, and possible."""
    if not (wanted and device.type == "cuda" and ops.picked_attention(device, dtype) in CAN_ADD_IN_ONE_ORDER):
        yield
        return
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs a pass
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled
