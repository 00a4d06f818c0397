"""The gradient of a step computed the plain way, and how far training's gradient is from it (P7).

The plain way is one conversation at a time, neither packed nor padded, with logits of every token, in one
process, by PyTorch's own operations. In float32 training must give the same gradient. In a shorter type the
plain gradient shows the error that the type alone causes, and training's may be twice as large.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from fastling import ops
from fastling.config import Config
from fastling.data.packing import Plan
from fastling.data.store import Store
from fastling.model.llama import Llama, whole
from fastling.model.llama_config import LlamaConfig
from fastling.training.build import build_model, make_loader
from fastling.training.gradient import add_gradients
from fastling.training.parallel import World, compute_dtype

LAYERS = 2
"""Layers of the model that is compared: selective checkpointing recomputes one of them, not the last."""
PACKS = 2
"""Packs of each process, one per micro-batch."""
ALLOWED_IN_FLOAT32 = 1e-4
TIMES_PLAIN = {"bf16": 2.0, "fp8": 2.0 * 2**4}
"""By train.precision: how many times the plain error is allowed. float8 has 4 bits less than bfloat16."""
ALLOWED_LOSS = 5e-4
"""In a shorter type the loss may always be off by this, times the factor above, because the plain loss, a
single number, may be close to the exact one by chance."""

MOST_ALLOWED = 0.5
"""Largest error that is ever allowed, however large the plain one's is; a gradient of zeros has error 1."""

Gradients = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Distance:
    """The error of the loss or of one parameter's gradient, and the largest allowed.

    The error is ||training's - plain|| / ||plain||, where plain is in float32.
    """

    name: str
    error: float
    allowed: float


def compare_gradients(
    config: Config, shape: LlamaConfig, store: Store, plan: Plan, world: World
) -> list[Distance]:
    """Compute the gradient of a small step both ways; return the Distance of each part, on rank 0.

    The model has the widths of `shape`, two layers and random weights; the step has two packs of each
    process. All ranks must call this together.
    """
    shape = replace(shape, num_hidden_layers=min(LAYERS, shape.num_hidden_layers))
    length, packs = config.data.sequence_length, PACKS * world.size
    train = replace(config.train, global_batch_tokens=packs * length, micro_batch_tokens=length)
    config = replace(config, train=train, model=replace(config.model, pretrained=None))
    documents = [int(number) for pack in range(packs) for number in plan.pack(pack)]
    expected, allowed = {}, {}
    if world.is_main:
        expected, allowed = _expected(config, shape, store, documents, world.device)
    found = training_gradient(config, shape, store, plan, world)
    distances = []
    for name, gradient in found:
        if world.is_main:
            distances.append(Distance(name, distance(gradient, expected[name]), allowed[name]))
    return distances


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||; infinite if a value is not finite, so that a maximum shows it."""
    smallest = torch.finfo(torch.float32).tiny
    error = float((found.float() - expected).norm() / expected.norm().clamp(min=smallest))
    return error if math.isfinite(error) else math.inf


def _expected(
    config: Config, shape: LlamaConfig, store: Store, documents: list[int], device: torch.device
) -> tuple[Gradients, dict[str, float]]:
    """The plain gradient in float32, and the largest error allowed of each part."""
    ops.configure("reference", "sdpa", device=device)
    torch.manual_seed(config.seed)
    with device:
        model = Llama(shape)
    expected = plain_gradient(model, store, documents, config.train.loss)
    if config.train.precision == "fp32":
        return expected, dict.fromkeys(expected, ALLOWED_IN_FLOAT32)
    shorter = plain_gradient(model.to(compute_dtype(config)), store, documents, config.train.loss)
    times = TIMES_PLAIN[config.train.precision]
    allowed = {name: min(MOST_ALLOWED, times * distance(shorter[name], expected[name])) for name in expected}
    return expected, {**allowed, "loss": max(allowed["loss"], times * ALLOWED_LOSS)}


def plain_gradient(model: Llama, store: Store, documents: list[int], loss: str) -> Gradients:
    """Name of a parameter -> its gradient in float32, and "loss" -> the loss, of documents one at a time."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(each, dtype=torch.float32) for name, each in parameters.items()}
    total["loss"], units = torch.zeros((), device=model.head_weight.device), 0
    for number in documents:
        tokens, spans = store.document(number)
        ids = torch.tensor(tokens.astype("int64"), device=model.head_weight.device)
        logits = model.logits(ids, torch.tensor([0, len(ids)], dtype=torch.int32, device=ids.device)).float()
        turns = [
            F.cross_entropy(logits[start - 1 : stop - 1], ids[start:stop], reduction="none")
            for start, stop in spans.tolist()
        ]
        value, more_units = _sum_of(turns, loss)
        units += more_units
        total["loss"] += value.detach()
        for name, gradient in zip(
            parameters, torch.autograd.grad(value, list(parameters.values())), strict=True
        ):
            total[name] += gradient
    return {name: each / max(1, units) for name, each in total.items()}


def _sum_of(turns: list[torch.Tensor], loss: str) -> tuple[torch.Tensor, int]:
    """A document's loss summed over its units (tokens, turns, or the document itself), and their number."""
    if loss == "turn":
        return torch.stack([turn.mean() for turn in turns]).sum(), len(turns)
    tokens = torch.cat(turns)
    return (tokens.sum(), len(tokens)) if loss == "token" else (tokens.mean(), 1)


def training_gradient(
    config: Config, shape: LlamaConfig, store: Store, plan: Plan, world: World
) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield ("loss", loss) and (name, whole gradient) of training's first step, on every rank."""
    ops.configure(
        config.model.kernels, config.model.attention, device=world.device, dtype=compute_dtype(config)
    )
    model = build_model(config, shape, world)
    loss = torch.zeros((), device=world.device)
    batches = make_loader(config, world, store, plan).step(0).batches
    for _, part, _ in add_gradients(model, batches, config, world.device):
        loss += part
    yield "loss", world.sum(loss)
    for name, parameter in model.named_parameters():
        yield name, whole(parameter.grad)
