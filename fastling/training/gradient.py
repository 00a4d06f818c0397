"""The gradient of a step: forward and backward of every micro-batch, as training makes them."""

from collections.abc import Iterator, Sequence

import torch

from fastling.config import Config
from fastling.data.batches import Batch
from fastling.model.llama import Llama, is_sharded
from fastling.training.determinism import one_order
from fastling.training.parallel import compute_dtype


def add_gradients(
    model: Llama, batches: Sequence[Batch], config: Config, device: torch.device
) -> Iterator[tuple[Batch, torch.Tensor, torch.Tensor]]:
    """Run forward and backward of each batch, adding up the gradients of a model, sharded or not.

    Yields each batch on the device, its float32 loss () and the negative log-likelihood (S,), both detached.
    """
    for number, batch in enumerate(batches, start=1):
        # Copies of the model add up their gradients once a step, not once a micro-batch.
        if is_sharded(model):
            model.set_requires_all_reduce(number == len(batches))
        batch = batch.to(device)
        with one_order(config.train.deterministic, device, compute_dtype(config)):
            loss, nll = model.loss_and_nll(batch)
            loss.backward()
        yield batch, loss.detach(), nll
