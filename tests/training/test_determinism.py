"""One order of addition on a GPU: asked for within a step only, and of those that can."""

import pytest
import torch

from fastling import ops
from fastling.training.determinism import one_order

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def picks(monkeypatch):
    """Have ops pick a backend that need not be here."""

    def pick(backend: str) -> None:
        monkeypatch.setattr(ops, "picked_attention", lambda device, dtype: backend)

    return pick


def asked_for(wanted: bool, device: torch.device) -> bool:
    with one_order(wanted, device, torch.bfloat16):
        found = torch.are_deterministic_algorithms_enabled()
        assert not (found and torch.utils.deterministic.fill_uninitialized_memory)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    return found


@pytest.mark.parametrize("backend", ["flash3", "flash2", "torch"])
def test_flash_attention_on_a_gpu_is_asked_for_one_order(picks, backend):
    picks(backend)
    assert asked_for(True, GPU)
    assert not asked_for(False, GPU)


def test_other_devices_are_left_alone(picks):
    """PyTorch would refuse their backward, and a CPU has one order anyway."""
    picks("sdpa")
    assert not asked_for(True, GPU)
    picks("tiled")
    assert not asked_for(True, CPU)


def test_a_step_that_fails_leaves_nothing_behind(picks):
    picks("torch")
    with pytest.raises(RuntimeError, match="out of memory"), one_order(True, GPU, torch.bfloat16):
        raise RuntimeError("out of memory")
    assert not torch.are_deterministic_algorithms_enabled()
