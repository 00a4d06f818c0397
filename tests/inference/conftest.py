"""The tokenizers and templates of tests/data, and the export of an untrained model."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import config_of

# Fixtures of the tests of data.
from data.conftest import kinds, own_template, sentencepiece_model  # noqa: F401

from fastling.export import make_export
from fastling.model.llama import Llama, LlamaConfig
from fastling.prepare import make_encoder


def write_export(folder: Path, **changes) -> Path:
    """An export with random weights and the demo's tokenizer; `changes` are to its shape or its template."""
    demo = config_of()
    template = changes.pop("template", None)
    if template:
        demo = dataclasses.replace(demo, data=dataclasses.replace(demo.data, template=template))
    encoder = make_encoder(demo)
    shape = {
        "vocab_size": encoder.tokenizer.vocab_size,
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 512,
    }  # fmt: skip
    export = make_export(folder, LlamaConfig(**{**shape, **changes}), encoder, demo)
    export.rehearse()
    torch.manual_seed(0)
    export.write(Llama(export.shape))
    return folder


@pytest.fixture(scope="session")
def export(tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("exported") / "export")
