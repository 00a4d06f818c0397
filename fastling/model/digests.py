"""SHA-256 of tensors, taken from memory before they are written, to compare with what the disk gives back.

And a digest by which the weights of a folder are recognised.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from fastling.model.safetensors_folder import SafetensorsFolder

MARK_PLACES, MARK_BYTES = 64, 2**14
"""Samples of each file, spread over it, and bytes of each sample: a model tuned from another one may have the
same embedding, and has the same shapes."""


def digest(name: str, tensor: Tensor) -> str:
    """SHA-256, in hexadecimal, of a tensor's name, dtype, shape and bytes; the tensor must be on the CPU."""
    found = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def digested(
    named_tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype, digests: dict[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in `dtype`, and put the digest of each one into `digests` before it is written."""
    for name, tensor in named_tensors:
        tensor = tensor.to(dtype)
        digests[name] = digest(name, tensor)
        yield name, tensor


def misread(folder: Path, digests: Mapping[str, str]) -> str | None:
    """A description of how a folder's tensors differ from those that were written; None if they do not."""
    with closing(SafetensorsFolder(folder)) as source:
        if source.shapes.keys() != digests.keys():
            return "other tensors are in the files than were written"
        for name, shape in source.shapes.items():
            if digest(name, source.read(name, 0, shape[0])) != digests[name]:
                return f"{name} is not what was written"
    return None


def mark_of_weights(folder: Path) -> str:
    """A digest of samples of a folder's weights. It stays the same when the folder is moved."""
    found = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("consolidated.*.pth")]):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            for place in range(0, size, -(-size // MARK_PLACES) or 1):
                file.seek(place)
                found.update(file.read(MARK_BYTES))
    return found.hexdigest()[:16]
