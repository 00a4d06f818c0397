"""Memory that is full, of a GPU or of a CPU, told in words."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastling.errors import RunError

OF_A_CPU = "DefaultCPUAllocator: "
"""Before what PyTorch says of a CPU's memory, which has no type of error of its own."""


def said_of_full_memory(error: Exception) -> str | None:
    """What an error says, if it means that memory is full: that it is, and how much was wanted."""
    _, of_a_cpu, said = str(error).partition(OF_A_CPU)
    if not (of_a_cpu or isinstance(error, (torch.OutOfMemoryError, MemoryError))):
        return None
    return ". ".join((said or str(error) or "memory is full").split(". ")[:2])


@contextmanager
def full_memory_in_words(where: str, fix: str = "", what: str = "") -> Iterator[None]:
    """Raise RunError where memory is full, with what is said of it, if not with words of its own."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = said_of_full_memory(error)
        if said is None:
            raise
        raise RunError(where, what or said, fix) from None
