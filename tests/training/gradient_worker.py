"""Run by test_gradients.py under torchrun: writes the gradients of one step, as training computes them."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from fastling.config import Config, build_parser, parse
from fastling.errors import leave
from fastling.prepare import prepare_data
from fastling.training.build import model_config
from fastling.training.parallel import World, open_world
from fastling.training.plain_gradient import training_gradient


def main() -> None:
    config_path, out, *more = sys.argv[1:]
    parser = build_parser("worker", "")
    configs = [
        parse(parser, ["--config", config_path, "--train.loss", loss, *more])[0]
        for loss in ("token", "turn", "sample")
    ]
    with open_world(configs[0]) as world:
        for config in configs:
            found = gradients(config, world)
            if world.is_main:
                save_file(found, Path(out) / f"{config.train.loss}.safetensors")


def gradients(config: Config, world: World) -> dict[str, torch.Tensor]:
    """Name -> whole gradient of the first step, and "loss" -> its loss."""
    prepared = prepare_data(config)
    shape = model_config(config, prepared.encoder)
    found = dict(training_gradient(config, shape, prepared.training, prepared.plan, world))
    return {**found, "loss": found["loss"].view(1)}


if __name__ == "__main__":
    main()
    leave(0)
