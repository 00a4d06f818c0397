"""One step of training: forward and backward of every micro-batch, then the optimizer's update."""

from dataclasses import dataclass

import torch

from fastling.config import Config
from fastling.data.batches import Step
from fastling.model.llama import Llama
from fastling.training.evaluation import sums_by
from fastling.training.gradient import add_gradients
from fastling.training.metrics import Mark, Measured
from fastling.training.optimizer import clip, learning_rate
from fastling.training.parallel import World


@dataclass(frozen=True)
class Updater:
    """Makes the optimizer steps of a model."""

    config: Config
    world: World
    model: Llama
    optimizer: torch.optim.AdamW
    num_sources: int
    """Number of sources of the data, whose losses are summed separately."""
    num_steps: int
    """Steps of the whole run, on which the learning rate's schedule depends."""

    def update(self, step: Step, number: int, *, stops: bool = False) -> Measured:
        """Make the step with this number, counted from 1, without waiting for the device.

        `stops` says whether this process received a stop signal; the step's numbers tell all processes.
        """
        config, device = self.config, self.world.device
        sums = torch.zeros(1 + 2 * self.num_sources + 1, device=device)
        for batch, loss, nll in add_gradients(self.model, step.batches, config, device):
            sums[:-1] += torch.cat([loss.view(1), sums_by(batch.sources, nll, self.num_sources)])
        sums[-1].fill_(float(stops))  # an assignment would copy the number, and the host would wait
        grad_norm = clip(self.optimizer, config.optimizer.clip_norm)
        lr = learning_rate(config.optimizer, number - 1, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        numbers = torch.cat([grad_norm.view(1), self.world.sum(sums)])
        # Copy now: a later copy would wait for all work queued until then.
        return Measured(number, step, lr, numbers.to("cpu", non_blocking=True), finished=Mark(device))
