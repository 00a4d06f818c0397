"""Checks of an op's tensors before it starts: their shapes, types and strides, and that they share a device.

Nothing here looks at values, so nothing waits for the device. Each message names the op and the
argument, says what is accepted, and ends with what was given.
"""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
PLAIN = (Tensor, torch.nn.Parameter)


def shape(op: str, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raise ValueError if `tensor` has another shape."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{op}: {name} must be {tuple(expected)}: {tuple(tensor.shape)}")


def dimensions(op: str, name: str, tensor: Tensor, *accepted: int) -> None:
    """Raise ValueError if `tensor` has another number of dimensions."""
    if tensor.dim() not in accepted:
        wanted = " or ".join(map(str, accepted))
        raise ValueError(f"{op}: {name} must have {wanted} dimensions: {tuple(tensor.shape)}")


def dtype(op: str, name: str, tensor: Tensor, *accepted: torch.dtype) -> None:
    """Raise ValueError if `tensor` has another type."""
    if tensor.dtype not in accepted:
        raise ValueError(f"{op}: {name} must be {' or '.join(map(str, accepted))}: {tensor.dtype}")


def floating(op: str, name: str, tensor: Tensor) -> None:
    """Raise ValueError if `tensor` holds integers, to which a result of its type would be truncated."""
    if not tensor.is_floating_point():
        dtype(op, name, tensor, *FLOATS)


def device(op: str, name: str, tensor: Tensor, expected: torch.device) -> None:
    """Raise ValueError if `tensor` is on another device."""
    if tensor.device != expected:
        raise ValueError(f"{op}: {name} must be on {expected}: {tensor.device}")


def rows(op: str, name: str, tensor: Tensor) -> None:
    """Raise ValueError unless the last dimension is contiguous: kernels read rows, and copy nothing."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{op}: {name} must be contiguous in its last dimension: strides {tensor.stride()}")


def whole(op: str, name: str, tensor: Tensor) -> None:
    """Raise ValueError if `tensor` is a DTensor: a rank holds only some of its rows."""
    if type(tensor) in PLAIN:  # nearly always true, and spares the import
        return
    from torch.distributed.tensor import DTensor

    if isinstance(tensor, DTensor):
        raise ValueError(
            f"{op}: {name} is a DTensor, sharded over ranks; call {op} inside the forward of the module that "
            f"FSDP shards, where the weight is gathered, or give {name}.full_tensor(): {tuple(tensor.shape)}"
        )
