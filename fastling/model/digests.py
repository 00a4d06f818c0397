"""SHA-256 of tensors: taken from memory before they are written, compared with what the disk gives back.

And of a folder's weights, to know them again.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastling.model.safetensors_folder import SafetensorsFolder

MARK_BYTES = 2**20
"""Of each file: what its tensors are called and where they lie, and some of their values."""


def digest(name: str, tensor: Tensor) -> str:
    """Of a tensor's name, dtype, shape and bytes."""
    found = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def digested(
    named_tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype, digests: dict[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """Pass tensors on in `dtype`, and note what each one is before it is written."""
    for name, tensor in named_tensors:
        tensor = tensor.to(dtype)
        digests[name] = digest(name, tensor)
        yield name, tensor


def misread(folder: Path, digests: Mapping[str, str]) -> str | None:
    """In words, how the tensors of a folder are not those that were written; None if they are."""
    source = SafetensorsFolder(folder)
    try:
        if source.shapes.keys() != digests.keys():
            return "other tensors are in the files than were written"
        for name, shape in source.shapes.items():
            if digest(name, source.read(name, 0, shape[0])) != digests[name]:
                return f"{name} is not what was written"
    finally:
        source.close()
    return None


def mark_of_weights(folder: Path) -> str:
    """A digest that tells a folder's weights from others, wherever it lies, and reads little of them."""
    found = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("consolidated.*.pth")]):
        with open(path, "rb") as file:
            found.update(f"{path.name} {path.stat().st_size}\n".encode() + file.read(MARK_BYTES))
    return found.hexdigest()[:16]
