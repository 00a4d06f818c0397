"""float8 for the layers' matrix products (Micikevicius et al. 2022), by torchao.

The linear layers round inputs, weights and gradients to float8, with one scale for each row, only for their
products, whose sums stay float32. Everything else is as in bf16: weights and optimizer state are float32, and
the embedding, the head and the norms are not changed. Parameters keep their names and shapes.
"""

import dataclasses
from importlib.util import find_spec

import torch

from fastling.errors import UserError
from fastling.model.llama import Llama

# Float8 products came with Ada and Hopper.
FIRST_CAPABILITY = (8, 9)
MULTIPLE = 16
"""Both sizes of a weight must be multiples of this; the number of tokens is padded to one."""


def check_float8(device: torch.device) -> None:
    """Raise UserError if the device has no float8 products, or torchao is not installed."""
    where = "train.precision"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        raise UserError(where, "fp8 needs a GPU of compute capability 8.9 or newer", "Use bf16.")
    if find_spec("torchao") is None:
        raise UserError(where, "fp8 needs torchao, which is not installed", "pip install 'fastling[float8]'")


def use_float8(model: Llama, *, emulate: bool = False) -> None:
    """Replace the linear modules of the model's layers, in place; call before compiling and sharding.

    With `emulate` values are rounded as on a GPU, but multiplied in the wide type, which works on any device.
    Raises UserError if the model's sizes allow no float8 products.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # optional

    for name, weight in model.model.layers.named_parameters():
        if weight.dim() == 2 and any(size % MULTIPLE for size in weight.shape):
            raise UserError(
                "train.precision",
                f"fp8 needs sizes that are multiples of {MULTIPLE}: {name} is {tuple(weight.shape)}",
                "Use bf16.",
            )
    config = Float8LinearConfig.from_recipe_name("rowwise")
    config = dataclasses.replace(config, emulate=emulate, pad_inner_dim=True)
    convert_to_float8_training(model.model.layers, config=config)
