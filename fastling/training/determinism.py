"""One order of addition on a GPU, so that a resumed run comes out the same bit for bit (P10).

FlashAttention's backward adds up the gradients of queries with atomics, in whatever order they come, unless
it is told not to. All else in a step adds in one order anyway; PyTorch then sees to it that cuBLAS does.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastling import ops

CAN_ADD_IN_ONE_ORDER = ("flash3", "flash2", "torch")
"""Attention backends; PyTorch refuses the backward of others when it is asked for one order."""


def prepare_device() -> None:
    """Before CUDA starts: what cuBLAS needs for one order, and what it takes on Hopper by itself."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def one_order(wanted: bool, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Forward and backward within add in one order where `wanted`, on a GPU, and possible."""
    if not (wanted and device.type == "cuda" and ops.picked_attention(device, dtype) in CAN_ADD_IN_ONE_ORDER):
        yield
        return
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # a help for debugging that costs a pass
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled
