"""What becomes of freed memory: it is kept for the next step, which needs about as much again."""

import ctypes
import os

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
GROWTH_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, in place of giving it back; whether it can be told so.

    glibc gives large blocks back to the kernel at once, and every step then waits while the kernel clears
    them anew: a fifth of a step's time. PyTorch keeps a GPU's memory in the same way.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # No block is mapped alone, nothing is trimmed, and the heap grows by large steps.
    return all(
        mallopt(*option) for option in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, GROWTH_BYTES))
    )


def let_blocks_grow() -> None:
    """Before CUDA starts: PyTorch's blocks of a GPU's memory grow, unless the user has set what they do.

    The sizes of a step's tensors change with its packs, and would leave holes in blocks of fixed sizes.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
