"""One step of training, as the host sees it."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastling.config import Config
from fastling.data.batches import Step
from fastling.training.optimizer import make_optimizer
from fastling.training.parallel import World
from fastling.training.update import Updater


class Copies(TorchDispatchMode):
    """Keeps the sizes of all that is copied into a tensor."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is torch.ops.aten.copy_.default:
            self.sizes.append(arguments[1].shape)
        return function(*arguments, **(options or {}))


def test_a_step_copies_no_scalar():
    """As `tensor[i] = number` does: on a GPU the host would wait for all that is queued before the copy."""
    model, config = torch.nn.Linear(2, 2, bias=False), Config()
    model.weight.grad = torch.ones(2, 2)
    world = World(0, 1, torch.device("cpu"), mesh=None)
    optimizer = make_optimizer(model, config.optimizer)
    updater = Updater(config, world, model, optimizer, num_sources=1, num_steps=1)
    with Copies() as copies:
        measured = updater.update(Step([], 0, 0, 0, 0), 1, stops=True)
    assert measured.stops() and torch.Size([]) not in copies.sizes
