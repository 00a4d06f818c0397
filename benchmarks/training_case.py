"""What every trainer of benchmarks.train is given: one folder with the same weights and the same packs.

model/        the initial weights, as a Hugging Face folder, for a case with peers
config.yaml   the run, for fastling
packs.jsonl   its packs in the order of the steps, for the others: input_ids, labels (-100 where masked,
              not shifted) and seq_lengths of the documents
case.json     what a trainer needs to know besides
"""

import dataclasses
import json
from pathlib import Path

import torch

from fastling.config import Config, Data, Model, Optimizer, Source, Train
from fastling.data.batches import IGNORED
from fastling.data.store import Store
from fastling.errors import UserError
from fastling.export import make_export
from fastling.files import write_text
from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig
from fastling.prepare import Prepared, make_encoder, prepare_data
from fastling.training.build import model_config

SHAPE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "tie_word_embeddings",
)
# 41m and 58m differ in one matrix; the last three are Llama-3.2-1B, LLaMA-7B and Llama-3-8B.
SIZES = {
    "demo": (2000, 192, 3, 6, 6, 512, False),
    "41m": (32000, 512, 8, 8, 8, 1376, True),
    "58m": (32000, 512, 8, 8, 8, 1376, False),
    "1b": (128256, 2048, 16, 32, 8, 8192, True),
    "7b": (32000, 4096, 32, 32, 32, 11008, False),
    "8b": (128256, 4096, 32, 32, 8, 14336, False),
}


def make_shape(size: str, **changes: int) -> LlamaConfig:
    """The shape of a size, with some settings changed."""
    return LlamaConfig(**dict(zip(SHAPE, SIZES[size], strict=True)) | changes)


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison."""

    size: str
    data: str
    tokenizer: str
    template: str = "bayling"
    sequence_length: int = 2048
    batch_tokens: int = 8192
    micro_batch_tokens: int = 8192
    steps: int = 20
    precision: str = "bf16"
    peers: bool = True
    """Whether there are peers, which read the weights from a file. Without any, weights are drawn on the
    device, which takes seconds and not minutes."""
    processes: int = 1
    """Processes that share the packs of a step."""

    @property
    def packs(self) -> int:
        """Packs in a step."""
        return self.batch_tokens // self.sequence_length

    @property
    def learning_rate(self) -> float:
        """The learning rate, lower for wider models (Yang et al. 2022). Otherwise the first steps would throw
        a model off, and slightly different rounding would end with another loss."""
        return 1e-3 * min(1.0, 512 / self.shape().hidden_size)

    def shape(self) -> Model:
        """The shape of this size, as settings."""
        return Model(**dict(zip(SHAPE, SIZES[self.size], strict=True)))

    def config(self, folder: Path) -> Config:
        """The run of this case, with its files in `folder`."""
        return Config(
            run_dir=str(folder / "run"),
            model=Model(pretrained=str(folder / "model")) if self.peers else self.shape(),
            data=Data(
                tokenizer=self.tokenizer,
                template=self.template,
                sequence_length=self.sequence_length,
                sources=[Source(name="rows", path=self.data)],
                store=str(folder / "store"),
            ),
            train=Train(
                steps=self.steps,
                global_batch_tokens=self.batch_tokens,
                micro_batch_tokens=self.micro_batch_tokens,
                precision=self.precision,
            ),
            optimizer=Optimizer(lr=self.learning_rate, schedule="constant", warmup_ratio=0.0),
        )

    def llama_config(self, folder: Path) -> LlamaConfig:
        """The model's shape, with a vocabulary at least as large as the tokenizer's."""
        config, shape = self.config(folder), self.shape()
        encoder = make_encoder(config)
        shape = dataclasses.replace(shape, vocab_size=max(shape.vocab_size, encoder.tokenizer.vocab_size))
        return model_config(dataclasses.replace(config, model=shape), encoder)


def check_case(case: Case) -> None:
    """Raises UserError for what cannot be compared."""
    if case.batch_tokens % case.sequence_length:
        raise UserError("--batch-tokens", f"is no multiple of {case.sequence_length}: {case.batch_tokens}")
    if case.packs % case.processes:
        words = f"cannot share the {case.packs} packs of a step evenly: {case.processes}"
        raise UserError("--processes", words)


def make_case(case: Case, folder: Path) -> Prepared:
    """Fill the folder. Raises UserError for data that cannot be prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    config = case.config(folder)
    write_text(folder / "config.yaml", config.as_yaml())
    write_text(folder / "case.json", json.dumps(dataclasses.asdict(case)))
    if case.peers:
        make_weights(case, folder)
    prepared = prepare_data(config)
    _write_packs(prepared, folder / "packs.jsonl")
    return prepared


def make_weights(case: Case, folder: Path) -> None:
    """model/ in the folder: drawn from a seed, in float32."""
    config, shape = case.config(folder), case.llama_config(folder)
    export = make_export(folder / "model", shape, make_encoder(config), config, torch.float32)
    torch.manual_seed(config.seed)
    export.rehearse()
    export.write(Llama(shape))


def _write_packs(prepared: Prepared, path: Path) -> None:
    store, plan = prepared.training, prepared.plan
    lines = (json.dumps(pack_row(store, plan.pack(number).tolist())) for number in range(len(plan)))
    write_text(path, "".join(line + "\n" for line in lines))


def pack_row(store: Store, documents: list[int]) -> dict:
    """One pack as TRL and transformers take it."""
    ids, labels, lengths = [], [], []
    for number in documents:
        tokens, spans = store.document(number)
        row = [IGNORED] * len(tokens)
        for start, stop in spans.tolist():
            row[start:stop] = tokens[start:stop].tolist()
        ids += tokens.tolist()
        labels += row
        lengths.append(len(tokens))
    return {"input_ids": ids, "labels": labels, "seq_lengths": lengths}


def read_case(folder: Path) -> Case:
    return Case(**json.loads((folder / "case.json").read_text(encoding="utf-8")))


def read_packs(folder: Path) -> list[dict]:
    with open(folder / "packs.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
