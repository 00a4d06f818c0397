"""Builds one rank's model and loader from a config."""

import torch

from fastling.config import Config, resolve
from fastling.data.batches import Loader
from fastling.data.encoding import Encoder
from fastling.data.packing import Plan
from fastling.data.store import Store
from fastling.errors import UserError
from fastling.model.huggingface import load_weights, read_config
from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig
from fastling.training.parallel import World, shard

CPU_SIZES = 64
"""On a CPU the numbers of tokens and supervised rows of a micro-batch are rounded up to multiples of this.
oneDNN compiles half-precision products for each new size, and keeps a thousand of them, half a MiB each."""


def model_config(config: Config, encoder: Encoder) -> LlamaConfig:
    """The shape of the model, read from its folder or made from the settings.

    Raises UserError if it is not fully given, or if the tokenizer or the sequence length do not fit it.
    """
    needed = encoder.tokenizer.vocab_size
    if config.model.pretrained:
        found = read_config(resolve(config.model.pretrained, "model.pretrained"))
    else:
        shape = config.model.shape()
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if name not in shape:
                raise UserError(
                    f"model.{name}", "is not set", "Give model.pretrained, or the whole shape of a new model."
                )
        defaults = {"vocab_size": needed, "max_position_embeddings": config.data.sequence_length}
        found = LlamaConfig(**{**defaults, **shape})
    found.check_vocab_size(needed)
    found.check_sequence_length(config.data.sequence_length)
    return found


def build_model(config: Config, shape: LlamaConfig, world: World, *, load: bool = True) -> Llama:
    """A sharded model on its device, with weights from the pretrained folder or drawn from the seed.

    No weight is held twice: the model is created without memory and sharded, and then each rank fills in its
    own rows. Without `load` the weights are left uninitialised, for a checkpoint to fill.
    """
    model = Llama.on_meta(shape)
    shard(model, config, world)
    model.to_empty(device=world.device)
    if load and config.model.pretrained:
        load_weights(model, resolve(config.model.pretrained, "model.pretrained"))
    elif load:
        torch.manual_seed(config.seed)
        model.reset_parameters()
    return model


def share_of_step(config: Config, processes: int, *, evenly: bool = True) -> tuple[int, int]:
    """(micro-batches of each process in a step, packs of each micro-batch), with the fewest micro-batches.

    Raises UserError when a pack is larger than a micro-batch or, `evenly`, when some processes would get
    fewer packs than others.
    """
    length, train = config.data.sequence_length, config.train
    global_packs = config.global_packs
    if evenly and global_packs % processes:
        raise UserError(
            "train.global_batch_tokens",
            f"{train.global_batch_tokens} makes {global_packs} packs of {length}, "
            f"which {processes} processes cannot share evenly",
            f"Use a multiple of {length * processes}, or a number of processes that divides {global_packs}.",
        )
    if train.micro_batch_tokens < length:
        raise UserError(
            "train.micro_batch_tokens",
            f"is less than one pack (data.sequence_length {length}): {train.micro_batch_tokens}",
            f"Give at least {length}, or a shorter data.sequence_length.",
        )
    packs = -(-global_packs // processes)
    micro_batches = -(-packs // (train.micro_batch_tokens // length))
    return micro_batches, -(-packs // micro_batches)


def make_loader(config: Config, world: World, store: Store, plan: Plan, *, evenly: bool = True) -> Loader:
    """The loader of this rank's share of every step. Raises UserError as `share_of_step` does."""
    micro_batches, _ = share_of_step(config, world.size, evenly=evenly)
    loss, packs = config.train.loss, config.global_packs
    return loader_of_rank(world, store, plan, global_packs=packs, micro_batches=micro_batches, loss=loss)


def loader_of_rank(
    world: World, store: Store, plan: Plan, *, global_packs: int, micro_batches: int, loss: str
) -> Loader:
    """The loader of this rank: with pinned memory for a GPU, and with rounded sizes on a CPU."""
    return Loader(
        store,
        plan,
        global_packs=global_packs,
        ranks=world.size,
        rank=world.rank,
        micro_batches=micro_batches,
        loss=loss,
        pin=world.device.type == "cuda",
        round_to=CPU_SIZES if world.device.type == "cpu" else 1,
    )
