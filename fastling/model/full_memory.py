"""Recognises the errors that mean that a GPU's or a CPU's memory is full, and explains them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastling.errors import RunError, first_line

OF_A_CPU = "DefaultCPUAllocator: "
"""Stands before PyTorch's words about a CPU's full memory, which has no type of error of its own."""
OF_CUDA = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What errors say if CUDA itself or cuBLAS, and not PyTorch, found no memory; they have no type either."""


def said_of_full_memory(error: Exception) -> str | None:
    """What an error says if it means that memory is full, and how much was wanted; else None."""
    _, of_a_cpu, said = str(error).partition(OF_A_CPU)
    if any(words in str(error) for words in OF_CUDA):
        return first_line(error)
    if not (of_a_cpu or isinstance(error, (torch.OutOfMemoryError, MemoryError))):
        return None
    return ". ".join((said or str(error) or "memory is full").split(". ")[:2])


@contextmanager
def full_memory_in_words(where: str, fix: str = "", what: str = "") -> Iterator[None]:
    """Turn an error of full memory in the block into RunError(where, what, fix).

    If `what` is empty, the error's own words take its place. Other errors pass unchanged.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = said_of_full_memory(error)
        if said is None:
            raise
        raise RunError(where, what or said, fix) from None
