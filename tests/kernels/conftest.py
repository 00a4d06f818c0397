"""What all tests of kernels share: the same random numbers each time, and memory that is NaN until written."""

import os

# Before CUDA starts: without it, deterministic products are refused.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

from fastling.kernels import runtime, tiles


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """torch.empty is full of NaN, so that a value which a kernel forgets to write shows in every test."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["triton", "tiled"])
def either_version(request, monkeypatch):
    """The kernels, and the plain version with tiles so small that every test has several."""
    if request.param == "tiled":
        monkeypatch.setattr(runtime, "takes", lambda _: False)
        monkeypatch.setattr(tiles, "TILE_BYTES", 2**10)
    return request.param


@pytest.fixture(params=["with", "without"])
def any_cpu(request, monkeypatch):
    """A CPU with instructions for products in half precision, and one without, whatever this one has."""
    flags = frozenset().union(*runtime.PRODUCT_FLAGS.values()) if request.param == "with" else frozenset()
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: flags)
    return request.param
