"""float8 training, rounded as a GPU rounds it and multiplied by the CPU."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import config_of

from fastling import ops
from fastling.errors import UserError
from fastling.model.llama import Llama
from fastling.model.llama_config import LlamaConfig
from fastling.train import train
from fastling.training import float8, parallel

pytest.importorskip("torchao")
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def tiny_model(**changes) -> Llama:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50, max_position_embeddings=64, **SHAPE | changes)
    return Llama(config).to(torch.bfloat16)


def loss_and_gradients(model: Llama) -> tuple[float, dict[str, torch.Tensor]]:
    """Of 37 tokens: no multiple of 16, as packs come."""
    torch.manual_seed(1)
    tokens, bounds = torch.randint(50, (37,)), torch.tensor([0, 20, 37], dtype=torch.int32)
    rows = torch.tensor([1, 5, 18, 30, 35])
    loss, _ = model(tokens, bounds, labels=tokens[rows + 1], loss_index=rows, weights=torch.full((5,), 0.2))
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in model.named_parameters()}


def test_loss_and_gradients_equal_bf16s_but_for_rounding():
    ops.configure()
    wide, narrow = tiny_model(), tiny_model()
    float8.use_float8(narrow, emulate=True)
    loss, gradients = loss_and_gradients(wide)
    narrow_loss, narrow_gradients = loss_and_gradients(narrow)
    assert narrow_loss == pytest.approx(loss, rel=0.02)
    assert narrow_gradients.keys() == gradients.keys()
    rounded = 0
    for name, gradient in gradients.items():
        ours = narrow_gradients[name]
        assert torch.cosine_similarity(ours.float().flatten(), gradient.float().flatten(), 0) > 0.97, name
        rounded += not torch.equal(ours, gradient)
    assert rounded > len(gradients) / 2  # else nothing was in float8


def test_only_the_layers_are_in_float8():
    model = tiny_model()
    float8.use_float8(model, emulate=True)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["model.layers.0.mlp.down_proj"] == "Float8Linear"
    assert kinds["lm_head"] == "Linear" and kinds["model.embed_tokens"] == "Embedding"


def test_a_model_without_such_products_is_refused():
    with pytest.raises(UserError, match=r"multiples of 16: 0.mlp.gate_up_proj.weight is \(200, 64\)"):
        float8.use_float8(tiny_model(intermediate_size=100))


def test_a_device_without_such_products_is_refused_before_anything_is_prepared(tiny_run):
    config = config_of("--config", tiny_run(), "--train.precision", "fp8")
    with pytest.raises(UserError, match="fp8 needs a GPU of compute capability 8.9 or newer"):
        train(config)


@pytest.mark.slow
def test_a_whole_run_trains_and_exports(tiny_run, monkeypatch):
    monkeypatch.setattr(parallel, "check_float8", lambda _: None)
    monkeypatch.setattr(parallel, "use_float8", partial(float8.use_float8, emulate=True))
    options = ["--train.precision", "fp8", "--model.hidden_size", "64", "--model.intermediate_size", "96"]
    config = config_of("--config", tiny_run(), *options)
    done = train(config)
    assert done["loss_last"] < done["loss_first"]
    exported = json.loads(Path(done["export"], "config.json").read_text(encoding="utf-8"))
    assert exported["torch_dtype"] == "bfloat16"
