"""Small models in folders, made by transformers and so independent of the code under test."""

import json
import shutil
from pathlib import Path

import torch
import transformers
from conftest import DEMO
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SHAPE = {
    "vocab_size": 2000,  # as the demo's tokenizer has
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def make_model(
    folder: Path, *, seed: int = 0, dtype=torch.float16, tokenizer: str = "spm", shards=None, **changes
) -> Path:
    """Save a random model; `tokenizer` is spm (the demo's .model alone), bytes (a tokenizer.json) or none."""
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(SHAPE | changes))).to(dtype)
    model.save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
    if tokenizer == "spm":
        shutil.copyfile(DEMO / "tokenizer.model", folder / "tokenizer.model")
    if tokenizer == "bytes":
        make_byte_level(folder)
    return folder


def make_byte_level(folder: Path, size: int = 500) -> None:
    """A byte-level tokenizer.json like Llama 3's, and the config beside it."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|begin|>", "<|end|>"],
    )  # fmt: skip
    built.train_from_iterator((DEMO / "held-out.jsonl").read_text(encoding="utf-8").splitlines(), trainer)
    built.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {}, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, read with safetensors alone."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def tuned(base: Path, folder: Path, *, seed: int = 1, share: float = 0.3, tokenizer: str = "spm") -> Path:
    """A fine-tuned model: every weight of the base times a factor between 1 - share and 1 + share."""
    shutil.copytree(base, folder)
    torch.manual_seed(seed)
    for file in folder.glob("*.safetensors"):
        held = load_file(file)
        moved = {
            name: (tensor.float() * (1 + share * (2 * torch.rand(tensor.shape) - 1))).to(tensor.dtype)
            for name, tensor in held.items()
        }
        save_file(moved, file, metadata={"format": "pt"})
    return folder


def change(folder: Path, edit) -> None:
    """Rewrite a folder's one weight file with `edit(tensors)` applied."""
    file = folder / "model.safetensors"
    held = load_file(file)
    held = {name: tensor.clone() for name, tensor in held.items()}
    edit(held)
    save_file(held, file, metadata={"format": "pt"})


def logits_of(folder: Path, ids: list[int]) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]
