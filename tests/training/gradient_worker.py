"""Run by test_gradients.py under torchrun: the gradients of one step as training makes them."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from fastling.config import build_parser, parse
from fastling.prepare import prepare_data
from fastling.training.build import build_model, make_loader, model_config
from fastling.training.parallel import open_world


def main() -> None:
    config_path, out = sys.argv[1:3]
    for loss in ("token", "turn", "sample"):
        arguments = ["--config", config_path, "--train.loss", loss, *sys.argv[3:]]
        config, _ = parse(build_parser("worker", ""), arguments)
        with open_world(config) as world:
            prepared = prepare_data(config)
            model = build_model(config, model_config(config, prepared.encoder), world)
            loader = make_loader(config, world, prepared.training, prepared.plan)
            total = torch.zeros(())
            for batch in loader.step(0).batches:
                value = model.loss(batch)
                value.backward()
                total += value.detach()
            world.sum(total)
            gradients = {
                name: parameter.grad.full_tensor().clone()
                for name, parameter in model.named_parameters()
                if isinstance(parameter.grad, DTensor)
            }
            if world.is_main:
                save_file({**gradients, "loss": total.view(1)}, Path(out) / f"{loss}.safetensors")


if __name__ == "__main__":
    main()
