"""Freed memory is kept: the kernel is not asked for it, and need not clear it, a second time."""

import ctypes
import os
import subprocess
import sys

import pytest

from fastling.training import memory

FAULTS = """
import resource, torch
from fastling.training.memory import keep_freed_memory

def faults():
    for step in range(20):
        if step == 10:  # by then the heap has room for all
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(size * 2**20, dtype=torch.uint8) for size in (1, 20, 40, 3)]
        del blocks
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10

gives_back = faults()
assert keep_freed_memory()
print(gives_back, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="for glibc")
def test_freed_memory_is_kept_and_reused():
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    gives_back, keeps = map(int, done.stdout.split())
    assert gives_back > 2000  # pages of the 40 MiB at least, if they are of 4 KiB
    assert keeps < 200


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert memory.keep_freed_memory() is False


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_expandable_segments_are_on_unless_the_user_configures_the_allocator(name, monkeypatch):
    environment = {}
    monkeypatch.setattr(os, "environ", environment)
    memory.let_blocks_grow()
    assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    environment.clear()
    environment[name] = "max_split_size_mb:128"
    memory.let_blocks_grow()
    assert environment == {name: "max_split_size_mb:128"}
