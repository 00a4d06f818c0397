"""What the kernels run on: Triton's compiler on a GPU, its interpreter on a CPU (TRITON_INTERPRET=1).

The files of the kernels take `triton` and `tl` from here, so that they can be imported, and their plain
versions used, where Triton is not installed (CPU builds of PyTorch come without it).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:

    class _Absent:
        """Stands in for Triton while kernels are defined: any attribute is itself, decorators do nothing."""

        def __getattr__(self, name):
            return self

        def __call__(self, function, **_):
            return function

    triton = tl = _Absent()
    INSTALLED = INTERPRETED = False
else:
    INSTALLED = True
    INTERPRETED = triton.knobs.runtime.interpret


def _constant(function: Callable) -> Callable:
    """torch.compiler.assume_constant_result, without importing the compiler, which is a fifth of a start."""
    function._dynamo_marked_constant = True
    return function


@_constant
def missing(device: torch.device) -> str | None:
    """None if the Triton kernels can run on `device`, else a description of what is missing."""
    if not INSTALLED:
        return "triton is not installed"
    if device.type != "cuda":
        return None if INTERPRETED else "needs a CUDA device"
    return None if _capability(device) >= (8, 0) else "needs compute capability 8.0 or newer"


def takes(tensor: Tensor) -> bool:
    """Whether the Triton kernels can run on such a tensor here; if not, the plain version does."""
    return missing(tensor.device) is None


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Make the tensor's device the current one, on which Triton launches."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return nullcontext()


# Flags in /proc/cpuinfo of instructions that multiply a half-precision type, on x86 and on ARM.
PRODUCT_FLAGS = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"},
    torch.float16: {"avx512_fp16", "amx_fp16", "asimdhp"},
}


def lacks_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device is a CPU without instructions for products of this half-precision type.

    PyTorch's products of such tensors take four times as long as those in float32, and more in float16.
    """
    flags = PRODUCT_FLAGS.get(dtype)
    return flags is not None and device.type == "cpu" and _cpu_flags().isdisjoint(flags)


@cache
def _cpu_flags() -> frozenset[str]:
    """What Linux says of the CPU. Elsewhere, all flags: PyTorch's own products are left alone there."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return frozenset().union(*PRODUCT_FLAGS.values())


@cache
def num_multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; few on a CPU, so that persistent loops take several turns there."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 3


@cache
def shared_bytes(device: torch.device) -> int:
    """Bytes of shared memory that one program may have on a GPU: 227 KiB on an H100, 163 on an A100, 99 on
    GeForce and the like. On a CPU it is as on an A100.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    return 163 * 2**10


@_constant
def total_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory."""
    return torch.cuda.get_device_properties(device).total_memory


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is not below `number` (1 for 0)."""
    return 1 << max(0, number - 1).bit_length()


def cdiv(number: int, divisor: int) -> int:
    """number / divisor, rounded up."""
    return -(-number // divisor)
