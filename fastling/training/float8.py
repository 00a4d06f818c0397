"""float8 for the layers' matrix products (Micikevicius et al. 2022), by torchao.

The linear layers round their inputs, weights and gradients to float8 with one scale a row, on the way into
each product, whose sums stay float32; everything else is as in bf16: weights and optimizer float32, the
embedding, the head and the norms untouched. Parameters keep their names and shapes.
"""

import dataclasses
from importlib.util import find_spec

import torch

from fastling.errors import UserError
from fastling.model.llama import Llama

# Such products came with Ada and Hopper.
FIRST_CAPABILITY = (8, 9)
MULTIPLE = 16
"""Both sizes of a weight must be multiples of this; the number of tokens is padded to one."""


def check_float8(device: torch.device) -> None:
    """Raises UserError where there are no such products, or no torchao."""
    where = "train.precision"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        raise UserError(where, "fp8 needs a GPU of compute capability 8.9 or newer", "Use bf16.")
    if find_spec("torchao") is None:
        raise UserError(where, "fp8 needs torchao, which is not installed", "pip install 'fastling[float8]'")


def use_float8(model: Llama, *, emulate: bool = False) -> None:
    """Exchange the layers' linear modules, in place, before they are compiled and sharded.

    `emulate` rounds as the GPU would and multiplies in the wide type, on any device. Raises UserError for a
    model whose sizes have no float8 products.
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
