"""A tiny model, made in a second, for tests that ask a model."""

import pytest
import torch
from conftest import DEMO, config_of

from fastling.data.tokenizer import load_tokenizer
from fastling.export import make_export
from fastling.model.llama import Llama, LlamaConfig
from fastling.prepare import make_encoder


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory):
    """An untrained model with the demo's tokenizer and a context of 256 tokens; its answers are noise."""
    demo = config_of()
    shape = LlamaConfig(
        vocab_size=load_tokenizer(DEMO / "tokenizer.model").vocab_size,
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model") / "tiny"
    export = make_export(folder, shape, make_encoder(demo), demo)
    export.rehearse()
    torch.manual_seed(0)
    export.write(Llama(shape))
    return folder
