"""Run by test_gradients.py under torchrun: the gradients of one step as training makes them."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from fastling.config import Config, build_parser, parse
from fastling.errors import leave
from fastling.prepare import prepare_data
from fastling.training.build import build_model, make_loader, model_config
from fastling.training.parallel import World, open_world


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
    """Whole gradients by name, and the loss, after this rank's share of the first step."""
    prepared = prepare_data(config)
    model = build_model(config, model_config(config, prepared.encoder), world)
    loader = make_loader(config, world, prepared.training, prepared.plan)
    total = torch.zeros(())
    for batch in loader.step(0).batches:
        value = model.loss(batch)
        value.backward()
        total += value.detach()
    named = {name: parameter.grad.full_tensor().clone() for name, parameter in model.named_parameters()}
    return {**named, "loss": world.sum(total).view(1)}


if __name__ == "__main__":
    main()
    leave(0)
