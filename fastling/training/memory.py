"""Keeps freed memory for the next step, which needs about as much again."""

import ctypes
import os

# Options of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
GROWTH_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory instead of giving it back to the kernel; return whether it does.

    glibc returns large blocks at once, so that the kernel has to clear new ones in every step, which takes
    a fifth of the step's time. PyTorch keeps a GPU's memory in the same way.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # No block is mapped separately, nothing is trimmed, and the heap grows in large steps.
    return all(
        mallopt(*option) for option in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, GROWTH_BYTES))
    )


def let_blocks_grow() -> None:
    """Let PyTorch's blocks of GPU memory grow, unless the user has configured them. Call before CUDA starts.

    The sizes of tensors change from step to step, which would leave holes in blocks of fixed sizes.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
