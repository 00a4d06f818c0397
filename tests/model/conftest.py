"""Tiny random models of transformers, one for each family, as independent oracles."""

from types import SimpleNamespace

import pytest
import torch
import transformers

_TINY = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _config(family: str) -> transformers.PreTrainedConfig:
    if family == "llama2":
        return transformers.LlamaConfig(**_TINY, tie_word_embeddings=False)
    if family == "llama3.2":
        return transformers.LlamaConfig(
            **_TINY,
            num_key_value_heads=2,
            head_dim=16,
            rope_parameters=_LLAMA3_SCALING,
            tie_word_embeddings=True,
        )
    if family == "mistral":
        return transformers.MistralConfig(**_TINY, num_key_value_heads=2, sliding_window=48)
    if family == "qwen2.5":
        return transformers.Qwen2Config(**_TINY, num_key_value_heads=2)
    return transformers.Qwen3Config(**_TINY, num_key_value_heads=1, head_dim=16)


@pytest.fixture(scope="session", params=["llama2", "llama3.2", "mistral", "qwen2.5", "qwen3"], ids=str)
def oracle(request, tmp_path_factory) -> SimpleNamespace:
    """A model of transformers, and the folder that its save_pretrained wrote."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(_config(request.param)).float()
    with torch.no_grad():
        for parameter in model.parameters():  # also norms and biases, which start as 1 and 0
            parameter.add_(torch.randn_like(parameter) * 0.15)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return SimpleNamespace(family=request.param, model=model, folder=folder)


@pytest.fixture
def pack() -> SimpleNamespace:
    """Five documents in one stream, two equally long; all tokens but the last have labels."""
    lengths = [5, 5, 11, 1, 7]
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(67, (length,), generator=generator) for length in lengths]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    spans = zip(starts[:-1].tolist(), lengths, strict=True)
    loss_index = torch.cat([torch.arange(start, start + length - 1) for start, length in spans])
    labels = torch.cat([torch.cat([document[1:], document.new_tensor([-100])]) for document in documents])
    return SimpleNamespace(
        documents=documents,
        labels=labels,
        lengths=lengths,
        tokens=torch.cat(documents),
        cu_seqlens=starts.int(),
        positions=torch.cat([torch.arange(length) for length in lengths]).int(),
        max_seqlen=max(lengths),
        loss_index=loss_index,
        weights=torch.rand(len(loss_index), generator=generator),
    )
